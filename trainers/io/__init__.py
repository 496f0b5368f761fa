"""Atomic files and folders, logs, locks, the console and pictures."""
