"""Strict configuration: YAML to frozen dataclasses and back, with one clear line (UserError) for each mistake.

A dataclass is its own schema: its fields are the keys, their annotations the types, its `__post_init__` the ranges.
A key that is left out takes its field's default; a group that is written starts from the defaults of its own class.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.machinery
import math
import re
import reprlib
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml
from pydantic import BeforeValidator, Strict, TypeAdapter, ValidationError

from distill.errors import UserError

_T = TypeVar("_T")
_UNIONS = (Union, types.UnionType)
_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "null"}
_CHOICES: dict[Any, Mapping[str, type]] = {}
_NAMES: dict[type, str] = {}  # the name that dump writes for a class that a recipe names


def register_choices(base: type, registry: Mapping[str, type]) -> None:
    """Let fields annotated with `base` be named in YAML: by a key of `registry`, or as a user's 'module:Class'."""
    _CHOICES[base] = registry
    _NAMES.update({cls: name for name, cls in registry.items()})


def build(cls: type[_T], data: Mapping[str, Any], where: str = "") -> _T:
    """Return the dataclass that `data` states; `where`, such as a file, opens every message."""
    return cast(_T, _value(cls, data, where, ""))


def dump(instance: Any) -> dict[str, Any]:
    """Return a dataclass as plain types, every default spelled out, so that build(type(x), dump(x)) == x."""
    hints = get_type_hints(type(instance))
    return {name: _plain(getattr(instance, name), hints[name]) for name in _fields(type(instance))}


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Beyond YAML 1.1, 1e-4 is a number and a key may stand only once."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', 'it is not UTF-8 text')}") from error
    return cast(dict[str, Any], _value(dict[Any, Any], _parse(text, str(path)), str(path), ""))


def to_yaml(data: Mapping[str, Any]) -> str:
    """Text that load_yaml reads back exactly, which yaml.safe_dump's is not for the string '1e5'."""
    return yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def override(data: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """A copy of `data` with 'dotted.key=value' set in order, values in YAML; 'objective: sid' becomes {name: sid}."""
    result: dict[str, Any] = _plain(data)  # a mapping that a YAML anchor shares becomes one for each place
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        if not equals or not all(key.strip() for key in dotted.split(".")):
            raise UserError(f"override {assignment!r} must look like key=value, such as objective.alpha=1.0")
        assign(result, dotted, _parse(text, f"override {assignment!r}"), f"override {assignment!r}")
    return result


def assign(data: dict[str, Any], dotted: str, value: Any, where: str) -> None:
    """Set the 'dotted.key' of `data`; 'objective: sid' becomes {name: sid} where a key of it is set."""
    keys, group = [key.strip() for key in dotted.split(".")], data
    for depth, key in enumerate(keys[:-1], start=1):
        inner = group.get(key)
        group[key] = group = {} if inner is None else {"name": inner} if isinstance(inner, str) else inner
        if not isinstance(group, dict):
            raise UserError(f"{where}: {'.'.join(keys[:depth])!r} is {group!r}, it has no keys")
    group[keys[-1]] = value


def diff(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What changed, a line for each key: 'objective.alpha: 1.2 -> 1.0'."""
    lines = []
    for key in dict.fromkeys([*old, *new]):
        was, now = [(repr(side[key]) if key in side else "(absent)") for side in (old, new)]
        if isinstance(old.get(key), Mapping) and isinstance(new.get(key), Mapping):
            lines += diff(old[key], new[key], f"{prefix}{key}.")
        elif key not in old or key not in new or old[key] != new[key]:
            lines.append(f"{prefix}{key}: {was} -> {now}")
    return lines


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        for index, (key, _) in enumerate(node.value):
            if any(key.tag == other.tag and key.value == other.value for other, _ in node.value[:index]):
                raise yaml.MarkedYAMLError(None, None, f"duplicate key {key.value!r}", key.start_mark)
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes the string '1e5', which _Loader would take for a number."""


for _side in (_Loader, _Dumper):  # YAML 1.1 takes 1e-4 for a string: it wants 1.0e-4
    _side.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), None)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        line = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{where}: {line}{' '.join(str(problem).split())}") from error


def _error(where: str, key: str, text: str, subject: str = "key") -> UserError:
    text = f"{subject} {key!r}{text}" if key else text.removeprefix(": ")  # the key is empty for the whole mapping
    return UserError(" ".join(f"{where}: {text}".removeprefix(": ").split()))


def _must(hint: Any, value: Any, where: str, key: str) -> UserError:
    nearest = _nearest(value, _CHOICES.get(_without_none(hint), get_args(_without_none(hint))))
    return _error(where, key, f" must be {_expected(hint)}, got {reprlib.repr(value)}{nearest}")


def _value(hint: Any, value: Any, where: str, key: str) -> Any:
    inner = _without_none(hint)
    if dataclasses.is_dataclass(inner) and isinstance(value, cast(type, inner)):  # a Python caller gave the object
        return value
    if value is None and inner is not hint:
        return None
    if inner in _CHOICES:
        return _member(inner, value, where, key)
    if dataclasses.is_dataclass(inner):
        return _group(cast(type, inner), value, where, key)
    try:
        return TypeAdapter(_friendly(hint)).validate_python(value)
    except ValidationError as error:
        raise _must(hint, value, where, key) from error


def _group(cls: type, value: Any, where: str, key: str) -> Any:
    if not isinstance(value, Mapping):
        raise _must(cls, value, where, key)
    hints, fields, dot = get_type_hints(cls), _fields(cls), f"{key}." if key else ""
    for name in value:
        if name not in fields:
            text = f"{_nearest(name, fields)}; allowed: {', '.join(fields) or 'none'}"
            raise _error(where, f"{dot}{name}", text, "unknown key")
    for name, field in fields.items():
        if name not in value and field.default is field.default_factory is dataclasses.MISSING:
            raise _error(where, f"{dot}{name}", f": it must be {_expected(hints[name])}", "missing key")
    settings = {name: _value(hints[name], one, where, f"{dot}{name}") for name, one in value.items()}
    try:
        return cls(**settings)
    except (ValueError, UserError) as error:
        raise _error(where, key, f": {error}") from error


def _member(base: type, value: Any, where: str, key: str) -> Any:
    settings, registry = dict(value) if isinstance(value, Mapping) else {"name": value}, _CHOICES[base]
    name = settings.pop("name", value)
    if not isinstance(name, str) or (name not in registry and ":" not in name):
        raise _must(base, name, where, key)
    cls = registry[name] if name in registry else _imported(name, where, key)
    own_fields = isinstance(cls, type) and "__dataclass_fields__" in vars(cls)  # not only inherited ones
    if not own_fields or not issubclass(cls, base) or "name" in _fields(cls):
        raise _error(where, key, f": {name!r} must be a dataclass and a {base.__name__}, without a field 'name'")
    _NAMES[cls] = name
    return _group(cls, settings, where, key)


def _imported(name: str, where: str, key: str) -> Any:
    source, _, attribute = name.rpartition(":")
    try:
        if source.endswith(".py"):
            return getattr(_file_module(str(Path(source).resolve())), attribute)
        return getattr(importlib.import_module(source), attribute)
    except Exception as error:  # the user's code may raise anything
        raise _error(where, key, f": cannot import {name!r}: {type(error).__name__}: {error}") from error


@functools.cache
def _file_module(name: str) -> types.ModuleType:
    """The module of a file, run once; its name is its full path, so that 'module:Class' finds it again."""
    module = sys.modules[name] = types.ModuleType(name)  # before it runs: its dataclasses look it up
    module.__file__ = name
    importlib.machinery.SourceFileLoader(name, name).exec_module(module)
    return module


def _friendly(hint: Any) -> Any:
    """`hint` for pydantic: strict, except that a number may be spelled in any way that keeps its value."""
    if dataclasses.is_dataclass(hint):
        raise TypeError(f"{hint}: a dataclass may be annotated alone or with None, not inside other types")
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:  # pydantic would take True for 1
        return Annotated[hint, BeforeValidator(lambda value: value if type(value) in map(type, args) else None)]
    if args:
        return (Union if origin in _UNIONS else origin)[tuple(map(_friendly, args))]
    if hint in (int, float):
        return Annotated[hint, Strict(), BeforeValidator(_number)]
    return Annotated[hint, Strict()] if hint in (str, bool) else hint


def _number(value: Any) -> Any:
    if isinstance(value, str):
        value = int(value) if re.fullmatch(r"[-+]?[\d_]+", value) else float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("not finite")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _plain(value: Any, hint: Any = Any) -> Any:
    if dataclasses.is_dataclass(value):
        name = _NAMES.get(type(value), f"{type(value).__module__}:{type(value).__qualname__}")
        return ({"name": name} if _without_none(hint) in _CHOICES else {}) | dump(value)
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def _fields(cls: type) -> dict[str, Any]:
    return {field.name: field for field in dataclasses.fields(cls) if field.init}


def _without_none(hint: Any) -> Any:
    """X for `X | None`; any other annotation as it is."""
    rest = [one for one in get_args(hint) if one is not type(None)]
    return rest[0] if get_origin(hint) in _UNIONS and len(rest) == 1 else hint


def _expected(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if hint in _CHOICES:
        return f"one of {', '.join(_CHOICES[hint])} or your own 'module:Class', alone or as the key 'name'"
    if origin is Literal:
        return f"one of {', '.join(map(repr, args))}"
    if origin in _UNIONS:
        return " or ".join(map(_expected, args))
    if origin in (tuple, list):
        return f"a list [{', '.join('...' if one is ... else _expected(one) for one in args)}]"
    return "a mapping" if origin is dict or dataclasses.is_dataclass(hint) else _WORDS.get(hint, str(hint))


def _nearest(value: object, choices: Iterable[object]) -> str:
    spelled = {choice.lower(): choice for choice in choices if isinstance(choice, str)}
    close = difflib.get_close_matches(str(value).lower(), spelled, n=1)
    return f" (did you mean {spelled[close[0]]!r}?)" if close else ""
