"""Source files that travel with exported weights; each needs only torch and diffusers."""

from __future__ import annotations

from importlib.resources import files


def shipped_source(name: str) -> str:
    """Return the text of a file in this folder, `name` without its ending."""
    return (files(__name__) / f"{name}.py").read_text("utf-8")
