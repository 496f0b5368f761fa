"""The published checkpoints of EDM and EDM2, read without running anything in them."""
