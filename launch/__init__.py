"""The `distill` command, which alone reads argv and the environment."""
