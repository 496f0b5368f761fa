"""The commands of `distill`, with one thin file for each."""
