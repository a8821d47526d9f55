"""Training: the run, its state, optimizer, checkpoints, logs, processes."""

from fractal_jax.errors import UserError


class CheckpointError(UserError, RuntimeError):
  """A work directory or checkpoint that can't be used as asked."""
