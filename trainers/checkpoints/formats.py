"""The JSON files of a checkpoint as types, and the reader that checks every field of them."""

import stat
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from distill.errors import UserError

LARGEST = 2**26  # bytes of the largest file that is read; a state.json holds one recipe
Count = Annotated[int, Field(ge=0, lt=2**63)]


@with_config(ConfigDict(strict=True, extra="allow"))
class State(TypedDict):
    """The content of state.json, as `trainers.checkpoints.checkpoint.state_description` makes it."""

    format: int
    images: Count
    processes: Annotated[int, Field(ge=1, le=2**20)]
    counters: dict[str, dict[str, Count]]
    unfinished: list[str]
    teacher: str | None
    recipe: dict[str, Any]
    shape: NotRequired[list[Annotated[int, Field(ge=1)]]]  # older checkpoints lack these
    classes: NotRequired[Count]
    data: NotRequired[dict[str, Any] | None]


@with_config(ConfigDict(strict=True, extra="allow"))
class ListedFile(TypedDict):
    """The size in bytes and the SHA-256 of a file, in manifest.json."""

    bytes: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


Manifest = dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], ListedFile]
"""The content of manifest.json: the files of a checkpoint by name, none of which leads out of the folder."""


def read_record(file: Path, kind: Any) -> Any:
    """Return the content of a JSON file, of which every field has been checked.

    Args:
        file: The file.
        kind: The type of its content, for pydantic.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It is no regular file or a very large one, it is no JSON, or a field has another type or range.
    """
    facts = file.stat()
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > LARGEST:  # a pipe or a device would block, or never end
        raise UserError(f"{file.name} is no regular file of at most {LARGEST:,} bytes")
    try:
        return TypeAdapter(kind).validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        where = f": key '{key:.80}'" if key else ""
        raise UserError(f"{file.name} is damaged{where}: {first['msg']:.120}") from error
