"""Which checkpoints to keep."""
