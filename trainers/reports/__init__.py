"""Reports of runs: one HTML file that needs no network, and no other file, to be read."""

from trainers.reports.page import write_comparison, write_report

__all__ = ["write_comparison", "write_report"]
