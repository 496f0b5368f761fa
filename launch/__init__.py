"""The `distill` command: the only place that reads argv and the environment."""
