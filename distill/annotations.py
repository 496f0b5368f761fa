"""Annotations of settings, which the reader of recipes understands."""

from __future__ import annotations

from typing import Annotated

LocalPath = Annotated[str, "local path"]
"""A file or folder. The reader of a recipe makes what exists absolute, so that the run finds it from anywhere later."""
