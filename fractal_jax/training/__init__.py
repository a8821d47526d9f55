"""Training: the run, its state, optimizer, checkpoints, logs, processes."""
