"""Benchmarks, which print ratios that are measured side by side in one run. The wheel does not hold them."""
