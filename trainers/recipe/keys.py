"""The keys of a recipe with their types, defaults and meanings, read from the dataclasses and their comments.

The meaning of a key is the entry of its field under `Attributes:` in the docstring of its class, with the comment
beside or above the field after it. Where there is no entry, the comment is the meaning, and where a group has
neither, the beginning of the docstring of the group's own class.
"""

import ast
import dataclasses
import inspect
import io
import re
import textwrap
import tokenize
import types
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import yaml

from distill.annotations import LocalPath
from distill.errors import NEAREST, UserError, nearest
from trainers.recipe.run import Run
from trainers.recipe.strict_yaml import CHOICES, group_of_union, plain_value, recipe_fields, without_none
from trainers.recipe.teacher_run import TeacherRun
from trainers.recipe.yaml_text import Dumper

REQUIRED, KIND = "(required)", "a kind of "
_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "null"}


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a recipe.

    Attributes:
        name: The dotted key. After the key of a kind, such as `objective`, stands the name of the kind whose own key it
            is: `objective.sid.alpha` is what a recipe writes as `objective.alpha`.
        type: The values that it takes, in words.
        default: The default as YAML, or REQUIRED. It is empty for the name of a kind.
        meaning: The meaning, in words.
        written: The dotted key as a recipe writes it.
    """

    name: str
    type: str
    default: str
    meaning: str
    written: str


def recipe_keys(prefix: str = "") -> list[Key]:
    """Return the keys at and below a prefix.

    Args:
        prefix: A dotted key, with or without the names of kinds: `objective.sid`, `objective.alpha`. Empty for all.

    Raises:
        UserError: There is no such key.
    """
    every = _all_keys()
    if found := list(every) if not prefix else _below(prefix):
        return found
    names = [*dict.fromkeys(one for key in every for one in (key.name, key.written))]
    same = [one for one in names if one.endswith(f".{prefix}")]
    near = list(dict.fromkeys([*same, *nearest(prefix, names)]))[:NEAREST]
    hint = f"; the nearest are {', '.join(near)}" if near else "; `distill keys` lists all"
    raise UserError(f"keys: no key of a recipe is or begins with {prefix!r}{hint}")


def _below(prefix: str) -> list[Key]:
    """Return the keys at and below a prefix. Below a key whose kinds are listed at another key, they are that one's."""
    every = _all_keys()
    found = [key for key in every if any(f"{one}.".startswith(f"{prefix}.") for one in (key.name, key.written))]
    for key in every if not found else ():
        for place in (key.name, key.written):
            if key.default and key.type.startswith(KIND) and prefix.startswith(f"{place}."):
                found = found or _below(key.type.removeprefix(KIND).split()[0] + prefix.removeprefix(place))
    return found


def markdown_of_keys(keys: list[Key]) -> str:
    """Return a table of keys as Markdown."""
    rows = [[f"`{key.name}`", key.type, f"`{key.default}`" if key.default else "", key.meaning] for key in keys]
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    head = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *(f"| {one} |" for one in lines)])


@cache
def _all_keys() -> tuple[Key, ...]:
    """Return the keys of both kinds of run. A key of both stands once, with both types where they differ."""
    homes: dict[type, str] = {}
    for cls in (Run, TeacherRun):
        for name, hint in _hints(cls).items():
            homes.setdefault(without_none(hint), name)
    found: dict[str, Key] = {}
    for key in (key for cls in (Run, TeacherRun) for key in _keys_of(cls, "", "", homes)):
        first = found.setdefault(key.name, key)
        if first.type != key.type:
            both = {one: f"{getattr(first, one)} or {getattr(key, one)}" for one in ("type", "default")}
            found[key.name] = dataclasses.replace(first, **both)
    return tuple(found.values())


def _keys_of(cls: type, name: str, written: str, homes: dict[type, str], skip: type = object) -> Iterator[Key]:
    """Yield the keys of a dataclass.

    Args:
        cls: The dataclass.
        name: Its dotted key.
        written: Its dotted key as a recipe writes it.
        homes: The key at which the kinds of each base class are listed. Bases that are met first here are added.
        skip: The base class whose fields are left out, unless `cls` declares them anew.
    """
    hints, dot, dot_written = _hints(cls), f"{name}." if name else "", f"{written}." if written else ""
    for field in recipe_fields(cls).values():
        if _declaring(cls, field.name) is _declaring(skip, field.name):
            continue
        hint, key, place = hints[field.name], f"{dot}{field.name}", f"{dot_written}{field.name}"
        inner = without_none(hint)
        at_home = inner in CHOICES and homes.setdefault(inner, key) == key
        group = group_of_union(hint)[0] or inner
        null = "" if hint is inner else " or null"
        words = f"{KIND}{homes[inner]}{null}" if inner in CHOICES and not at_home else _words(hint)
        meaning = meaning_of(cls, field.name)
        if not meaning and inner not in CHOICES and dataclasses.is_dataclass(group):
            meaning = _beginning(cast(type, group))
        yield Key(key, words, _default(field), meaning, place)
        if at_home:
            yield from _kinds(inner, key, place, homes)
        elif inner not in CHOICES and dataclasses.is_dataclass(group):
            yield from _keys_of(cast(type, group), key, place, homes)


def _kinds(base: type, name: str, written: str, homes: dict[type, str]) -> Iterator[Key]:
    """Yield the keys that all kinds of a base class have, and each kind with its own keys."""
    common = base if dataclasses.is_dataclass(base) else object
    if dataclasses.is_dataclass(base):
        yield from _keys_of(base, name, written, homes)
    for kind, cls in CHOICES[base].items():
        yield Key(f"{name}.{kind}", f"{KIND}{name}", "", _beginning(cls), written)
        yield from _keys_of(cls, f"{name}.{kind}", written, homes, common)


def meaning_of(cls: type, name: str) -> str:
    """Return the meaning of a field of a dataclass. It is empty where the source says nothing about the field.

    Args:
        cls: The dataclass.
        name: The field.
    """
    bases = [base for base in cls.__mro__ if dataclasses.is_dataclass(base)]
    entry = next((found for base in bases if (found := _entries(base).get(name))), "")
    declared = _declaring(cls, name)
    note = "" if declared is None else _comments(declared).get(name, "")
    if entry and note:
        sentences = note[0].isupper() or ". " in note
        return f"{entry} {note.rstrip('.')}." if sentences else f"{entry.rstrip('.')} ({note.rstrip('.')})."
    note = entry or note or next((found for base in bases if (found := _comments(base).get(name))), "")
    first, space, rest = note.partition(" ")
    if re.fullmatch(r"a|[a-z]{2,}[,;]?", first):  # a word of English, and no name such as l1 or best/
        note = f"{first.capitalize()}{space}{rest}"
    return f"{note.rstrip('.')}." if note else ""


def _beginning(cls: type) -> str:
    """Return the first paragraph of the docstring of a class, in one line."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].split())


def _declaring(cls: type, name: str) -> type | None:
    """Return the class among `cls` and its bases that declares a field last, or None."""
    return next((base for base in cls.__mro__ if name in inspect.get_annotations(base)), None)


@cache
def _hints(cls: type) -> dict[str, Any]:
    """Return the annotations of the fields of a dataclass that are keys."""
    hints = get_type_hints(cls, include_extras=True)
    return {name: hints[name] for name in recipe_fields(cls)}


@cache
def _entries(cls: type) -> dict[str, str]:
    """Return the entries under `Attributes:` in the docstring of a class, by name."""
    section = re.search(r"^Attributes:\n((?:    .*\n|\n)*)", inspect.cleandoc(cls.__doc__ or "") + "\n", re.MULTILINE)
    entries = re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


@cache
def _comments(cls: type) -> dict[str, str]:
    """Return the comments above and beside the fields of a class, by name."""
    source = textwrap.dedent(inspect.getsource(cls))
    tokens = [one for one in tokenize.generate_tokens(io.StringIO(source).readline) if one.type == tokenize.COMMENT]
    beside = {one.start[0]: one.string.lstrip("# ") for one in tokens if one.line[: one.start[1]].strip()}
    alone = {one.start[0]: one.string.lstrip("# ") for one in tokens if one.start[0] not in beside}
    found = {}
    for node in cast(ast.ClassDef, ast.parse(source).body[0]).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first = node.lineno
            while first - 1 in alone:
                first -= 1
            lines = [alone[number] for number in range(first, node.lineno)]
            found[node.target.id] = " ".join([*lines, *([beside[last]] if (last := node.end_lineno) in beside else [])])
    return found


def _default(field: Any) -> str:
    """Return the default of a field as YAML in one line, or REQUIRED. Of a group it shows what its class has not."""
    if field.default is field.default_factory is dataclasses.MISSING:
        return REQUIRED
    value = field.default_factory() if field.default is dataclasses.MISSING else field.default
    text = yaml.dump(short_value(value), Dumper=Dumper, default_flow_style=True, width=10_000, sort_keys=False)
    return text.splitlines()[0]


def short_value(value: Any) -> Any:
    """Return a value as plain types, in which a group has the keys alone that differ from its class's defaults."""
    if not dataclasses.is_dataclass(value):
        return plain_value(value)
    fields = recipe_fields(type(value))
    own = {name: one for name in fields if (one := getattr(value, name)) != fields[name].default}
    names = [kind for choices in CHOICES.values() for kind, cls in choices.items() if cls is type(value)]
    settings = {name: short_value(one) for name, one in own.items()}
    if not names:
        return settings
    return {"name": names[0], **settings} if settings else names[0]


def _words(hint: Any) -> str:
    """Return an annotation in words, with all choices."""
    origin, args = get_origin(hint), get_args(hint)
    if LocalPath in (hint, *args) and origin not in (Union, types.UnionType, tuple):
        return "a path"
    if hint in CHOICES:
        return f"one of {', '.join(CHOICES[hint])}, or your own 'module:Class'"
    if origin is Literal:
        return " or ".join(map(str, args)) if len(args) < 3 else f"one of {', '.join(map(str, args))}"
    if origin in (Union, types.UnionType):
        return " or ".join(map(_words, args))
    if origin in (tuple, list):
        return f"a list [{', '.join('...' if one is ... else _words(one) for one in args)}]"
    if origin in (dict, Mapping) or dataclasses.is_dataclass(hint):
        return "a mapping" if origin else "a group of keys"
    return _WORDS.get(hint, str(hint))
