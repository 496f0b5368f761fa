"""Runs that are broken on purpose: `make test-faults` writes docs/results/faults.md."""
