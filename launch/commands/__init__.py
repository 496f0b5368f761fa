"""The commands of `distill`, one thin file each."""
