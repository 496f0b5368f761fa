"""Training: the only place that knows Accelerate and ranks."""
