"""Checkpoints: their format, the saver, tensors on disk, post-hoc averages."""
