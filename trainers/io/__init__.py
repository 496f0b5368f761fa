"""Files that are written whole, logs, locks, the console and images."""
