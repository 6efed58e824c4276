"""The checkpoints under one URI."""
