"""JSON that may come from elsewhere, or may be damaged: one reader, which checks all of it before any of it is used.

A format is a type, such as a TypedDict with the settings STRICT, whose fields state their types and ranges.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from distill.errors import UserError, one_line
from distill.saved_files import read_bounded

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""The settings of a format of which every key is known."""
EXTENSIBLE = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
"""The settings of a format that later versions may add keys to."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
MAX_MARKS = 2**19
"""The most commas and opening brackets in a text, and so of its values: each takes memory, and so does its error."""

Positive = Annotated[float, Field(gt=1e-6, lt=1e6)]
"""A number that is positive and within reason."""


def read_record(file: Path, kind: Any = dict[str, Any], shown: str | None = None, finite: bool = True) -> Any:
    """Return the content of a JSON file, of which every field has been checked.

    Args:
        file: The file.
        kind: The type of its content, for pydantic.
        shown: The beginning of an error's message, which names the file. None for its path.
        finite: Whether NaN and infinity are refused everywhere. Other libraries write them.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: The file cannot be read, is no regular file or too large, or its content is not of this type.
    """
    with reading(f"'{file}'" if shown is None else shown):
        return parse_record(read_bounded(file), kind, finite)


@contextmanager
def reading(shown: str) -> Iterator[None]:
    """Turn the errors of reading and parsing a file into a UserError, but for FileNotFoundError.

    Args:
        shown: The beginning of the message, which names the file.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{shown} cannot be read: {error.strerror or one_line(error)}") from error
    except ValueError as error:  # a path with a NUL character, too
        raise UserError(f"{shown} is damaged: {one_line(error)}") from error


def parse_record(text: bytes | str, kind: Any = dict[str, Any], finite: bool = True) -> Any:
    """Return the value of a JSON text, of which every field has been checked. The arguments are those of `read_record`.

    Raises:
        ValueError: The text is no JSON or nested deeply, has a key twice or too long a number, holds too many values,
            or is not of this type.
    """
    text = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if sum(map(text.count, (b",", b"[", b"{"))) > MAX_MARKS:
        raise ValueError(f"it has more than {MAX_MARKS:,} commas and brackets")
    try:
        value = _adapter(kind).validate_json(text)
        # pydantic takes the last of several equal keys, and where a field may hold anything, NaN.
        json.loads(text, object_pairs_hook=partial(_check_pairs, finite))
        return value
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValidationError as error:
        raise ValueError(_problem(error, text)) from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _check_pairs(finite: bool, pairs: list[tuple[str, Any]]) -> None:
    """Raise ValueError when a key stands twice in an object, or has a value that is not finite but must be."""
    keys = set[str]()
    for key, value in pairs:
        if key in keys:
            raise ValueError(f"key {key!r:.80} stands twice")
        if finite and not _is_finite(value):
            raise ValueError(f"key {key!r:.80}: must be finite, got {value!r:.60}")
        keys.add(key)


def _is_finite(value: Any) -> bool:
    return all(map(_is_finite, value)) if isinstance(value, list) else type(value) is not float or math.isfinite(value)


def _problem(error: ValidationError, text: bytes) -> str:
    """Return the problem of the innermost field that pydantic has found, in the words of our own errors."""
    first = max(error.errors(include_url=False), key=lambda found: len(found["loc"]))
    kind, context, got = first["type"], first.get("ctx", {}), f", got {first['input']!r:.60}"
    key = _key(first["loc"], text)
    problem = {
        "json_invalid": f"it is no JSON: {context.get('error')}",
        "missing": "is missing",
        "extra_forbidden": "is no key of this file",
        "union_tag_not_found": "has no name",
        "union_tag_invalid": f"name must be one of {context.get('expected_tags')}, got {context.get('tag')!r:.60}",
    }.get(kind, f"{first['msg'].replace('Input should', 'must'):.120}{got}")
    return f"key '{key:.80}': {problem}" if key else problem


def _key(place: tuple[int | str, ...], text: bytes) -> str:
    """Return the dotted key of a place that pydantic names, without the names of types that stand between the keys."""
    value: Any = json.loads(text) if place else None
    parts: list[str] = []
    for part in place:
        at = range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ()
        inside = part in at
        if inside or (part == place[-1] and isinstance(value, dict | list)):  # the last may be one that is missing
            parts.append(str(part))
            value = value[part] if inside else None
    return ".".join(parts)
