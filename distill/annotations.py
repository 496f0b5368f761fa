"""Annotations of settings that the reader of recipes understands."""

from typing import Annotated

LocalPath = Annotated[str, "local path"]
"""The path of a file or folder. The reader of a recipe makes it absolute where it exists, so later commands find it."""
