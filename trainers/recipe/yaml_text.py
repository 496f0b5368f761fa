"""The text of a YAML file as plain types, within limits that a recipe never reaches.

A YAML text of a few hundred bytes can describe more values than a computer holds, since an alias (*name) repeats a
value and may stand inside another value that is repeated. The limits are checked on the stream of events, in time that
grows with the length of the text, before any value is built.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from distill.errors import UserError
from distill.saved_files import read_bounded

MAX_BYTES = 2**20  # of a file. A resolved recipe has about 3,000
MAX_DEPTH = 32  # of values inside values. A resolved recipe has about 6
MAX_VALUES = 100_000  # with those that aliases repeat
MAX_DIGITS = 1_000  # of a number, since YAML's base 60 takes time that grows with the square of them
_LONG = 2**14  # characters from which libyaml reads, which is faster but says less about a mistake
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class Loader(yaml.SafeLoader):
    """The loader of short texts, whose errors say most."""


class LongLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The loader of long texts, in C where PyYAML has it."""


class Dumper(yaml.SafeDumper):
    """A dumper that quotes the string '1e5', which the loaders would read as a number."""


for _side in (Loader, LongLoader, Dumper):  # in YAML 1.1 a float has a dot, and 1e-4 is a string
    _side.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), None)


def read_text(path: Path) -> str:
    """Return the text of a YAML file.

    Raises:
        UserError: The file cannot be read, is no regular file, or is longer than MAX_BYTES.
    """
    try:
        return read_bounded(path, MAX_BYTES).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read: it is not UTF-8 text") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def parse(text: str, where: str) -> Any:
    """Return the value that a YAML text describes.

    Args:
        text: One document.
        where: The beginning of an error message.

    Raises:
        UserError: The text is no YAML, has a key twice, or exceeds a limit.
    """
    loader: Any = Loader if len(text) < _LONG else LongLoader
    try:
        _check(loader(text))
        return yaml.load(text, loader)
    except Exception as error:  # an impossible date, escape or tag fails anywhere in PyYAML
        known = isinstance(error, yaml.YAMLError | ValueError)
        stated = error if known else f"a value cannot be read ({type(error).__name__}: {error})"
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or stated
        line = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{where}: {line}{' '.join(str(problem).split())[:300]}") from error


@dataclass
class _Group:
    """A mapping or a list whose end has not come yet.

    Attributes:
        anchor: The name by which an alias repeats the group, or None.
        mapping: Whether the group is a mapping.
        values: The values in the group, with the group itself and with those that aliases repeat.
        depth: The levels of the group, with those that aliases repeat.
        keys: The keys of a mapping so far.
        key: Whether the next value of a mapping is a key.
    """

    anchor: str | None = None
    mapping: bool = False
    values: int = 1
    depth: int = 1
    keys: set[tuple[str, str]] = field(default_factory=set)
    key: bool = True


def _check(loader: Any) -> None:
    """Raise MarkedYAMLError at a key that stands twice, at an alias inside its own value, or beyond a limit."""
    made: dict[str, tuple[int, int]] = {}  # anchor -> values and depth
    groups = [_Group()]  # from the document to the innermost group
    while loader.check_event():
        event = loader.get_event()
        values, depth, anchor = 1, 0, getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            groups.append(_Group(anchor, isinstance(event, yaml.MappingStartEvent)))
            _require(len(groups) <= MAX_DEPTH + 1, f"more than {MAX_DEPTH} levels of values inside values", event)
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            group = groups.pop()
            values, depth, anchor = group.values, group.depth, group.anchor
        elif isinstance(event, yaml.AliasEvent):
            _require(anchor not in {group.anchor for group in groups}, f"*{anchor} stands inside its own value", event)
            values, depth = made.get(str(anchor), (1, 0))  # the loader refuses an alias of nothing
            anchor = None
        elif isinstance(event, yaml.ScalarEvent):
            _check_scalar(loader, event, groups[-1])
        else:
            continue
        if anchor is not None:
            made[anchor] = values, depth
        outer = groups[-1]
        outer.key, outer.values, outer.depth = not outer.key, outer.values + values, max(outer.depth, depth + 1)
        _require(outer.values <= MAX_VALUES, f"more than {MAX_VALUES:,} values, with those that aliases repeat", event)
        _require(len(groups) + outer.depth <= MAX_DEPTH + 2, f"more than {MAX_DEPTH} levels, through aliases", event)


def _check_scalar(loader: Any, event: yaml.ScalarEvent, outer: _Group) -> None:
    """Raise MarkedYAMLError if a scalar is a number that is too long, or a key that `outer` has already."""
    is_key = outer.mapping and outer.key
    if not is_key and len(event.value) <= MAX_DIGITS:
        return
    tag = loader.resolve(yaml.ScalarNode, event.value, event.implicit) if event.tag in (None, "!") else event.tag
    _require(len(event.value) <= MAX_DIGITS or tag not in _NUMBERS, f"a number of more than {MAX_DIGITS} digits", event)
    if is_key:
        _require((tag, event.value) not in outer.keys, f"duplicate key {event.value!r:.80}", event)
        outer.keys.add((tag, event.value))


def _require(condition: bool, problem: str, event: Any) -> None:
    """Raise MarkedYAMLError at the place of `event` when `condition` is false."""
    if not condition:
        raise yaml.MarkedYAMLError(None, None, problem, event.start_mark)
