"""Source files that travel with exported weights. Each needs torch and diffusers alone."""

from importlib.resources import files


def shipped_source(name: str) -> str:
    """Return the text of the file `name`.py in this folder."""
    return (files(__name__) / f"{name}.py").read_text("utf-8")
