"""What a run takes: parameters, FLOPs, memory, hours."""
