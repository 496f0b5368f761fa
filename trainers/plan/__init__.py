"""The memory and communication plan of a run."""
