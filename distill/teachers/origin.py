"""The name of the published model that a teacher's folder was imported from."""

import json
from pathlib import Path

from pydantic import with_config
from typing_extensions import TypedDict

from distill.records import EXTENSIBLE, read_record

ORIGIN = "origin.json"  # it counts for nothing in the teacher's hash


@with_config(EXTENSIBLE)
class Origin(TypedDict):
    """The content of origin.json."""

    model: str


def write_origin(folder: Path, model: str) -> None:
    """Write the name of the published model into a teacher's folder.

    Args:
        folder: The folder.
        model: The id on the Hugging Face hub, or the name under which the checkpoint is published.
    """
    (folder / ORIGIN).write_text(json.dumps({"model": model}, indent=2) + "\n")


def read_origin(folder: Path) -> str | None:
    """Return the name of the published model that a teacher's folder was imported from, or None if it is not known.

    Raises:
        UserError: origin.json is damaged.
    """
    try:
        return str(read_record(folder / ORIGIN, Origin)["model"])
    except FileNotFoundError:
        return None
