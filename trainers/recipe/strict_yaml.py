"""The strict reader of YAML, which builds frozen dataclasses and raises a UserError of one line for each mistake.

A dataclass is its own schema. Its fields are the keys, their annotations are the types, and its `__post_init__` checks
the ranges. A key that is left out takes the default of its field. A group of keys starts from the defaults of its own
class.
"""

import dataclasses
import math
import re
import reprlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, reduce
from operator import or_
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml
from pydantic import BeforeValidator, Strict, TypeAdapter, ValidationError

from distill.errors import FEW, NEAREST, UserError, nearest, options
from distill.user_code import load_class, loaded_class
from trainers.recipe.yaml_text import MAX_DEPTH, Dumper, parse, read_text

ABSENT = "(absent)"
"""The value of a key that a mapping lacks, among the differences of two mappings."""

CHOICES: dict[Any, Mapping[str, type]] = {}
"""The choices by name of each base class that `register_choices` was given."""

_T = TypeVar("_T")
Where = str | Callable[[str], str]
"""The place of a recipe's keys: a file, or a function (key) -> place where the keys come from several."""
_SHOWN, _LINE = 200, 2_000  # characters of an override in an error message, and of the message
_MOST = 10  # mistakes that one error lists
_UNIONS = (Union, types.UnionType)
_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "null"}
_LISTED: dict[Any, str] = {}  # base class -> the document that lists its choices
_NAMES: dict[type, str] = {}  # class -> the name by which a recipe chooses it


class _UnknownKey(Exception):
    """A key that its group has not.

    Args:
        key: The dotted key.
        fields: The keys of the group.
    """

    def __init__(self, key: str, fields: Sequence[str]) -> None:
        super().__init__(key)
        self.key, self.fields = key, fields


class _Mistakes(Exception):
    """The mistakes in a group of keys and in the groups inside it, in their order."""

    def __init__(self, found: Sequence[UserError | _UnknownKey]) -> None:
        super().__init__(*found)
        self.found = found


def register_choices(base: type, registry: Mapping[str, type], listed: str = "") -> None:
    """Let recipes choose the class of fields that are annotated with `base`.

    Args:
        base: The base class.
        registry: The choices by name. Besides these a recipe may name a class of the user's own, as 'module:Class'.
        listed: The document that lists the choices, where they are many.
    """
    CHOICES[base], _LISTED[base] = registry, listed
    _NAMES.update({cls: name for name, cls in registry.items()})


def build(cls: type[_T], data: Mapping[str, Any], where: Where = "") -> _T:
    """Build a dataclass.

    Args:
        cls: The dataclass.
        data: Its fields by name, as plain types.
        where: The beginning of every error message, such as a file.

    Raises:
        UserError: A key or a value is wrong. Several mistakes have a line each, below a line with their number.
    """
    try:
        return cast(_T, _value(cls, data, where, ""))
    except _Mistakes as mistakes:
        found, told = mistakes.found, list[UserError]()
        for one in found[:_MOST]:
            if isinstance(one, _UnknownKey):
                told.append(_error(where, one.key, _hint(one, cls, data), "unknown key"))
            else:
                told.append(one)
    if len(found) == 1:
        raise told[0]
    more = [f"  and {len(found) - _MOST:,} more"] if len(found) > _MOST else []
    raise UserError("\n".join([f"{len(found):,} mistakes:", *(f"  {one}" for one in told), *more]))


def known_keys(cls: type, data: Mapping[str, Any] = MappingProxyType({}), group: str = "") -> Iterator[str]:
    """Yield the dotted keys of a dataclass, inside the classes that `data` chooses or that are the defaults.

    Args:
        cls: The dataclass.
        data: Its fields by name, as plain types.
        group: The dotted key of the dataclass.
    """
    hints = get_type_hints(cls)
    for name, field in recipe_fields(cls).items():
        yield (key := f"{group}.{name}" if group else name)
        value = data.get(name, field.default)
        inner = (group_of_union(hints[name])[0] if isinstance(value, Mapping) else None) or without_none(hints[name])
        settings = value if isinstance(value, Mapping) else {"name": value}
        if inner in CHOICES:
            chosen = settings.get("name")
            inner = CHOICES[inner].get(chosen, type(value)) if isinstance(chosen, str) else type(value)
        if dataclasses.is_dataclass(inner):
            yield from known_keys(cast(type, inner), settings, key)


def dump(instance: Any) -> dict[str, Any]:
    """Return a dataclass as plain types, with every default, so that build(type(x), dump(x)) == x."""
    hints = get_type_hints(type(instance))
    return {name: plain_value(getattr(instance, name), hints[name]) for name in recipe_fields(type(instance))}


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Unlike in YAML 1.1, 1e-4 is a number, and no key may stand twice.

    Raises:
        UserError: The file cannot be read, is no such mapping, or exceeds a limit of `trainers.recipe.yaml_text`.
    """
    data = parse(read_text(Path(path)), str(path))
    return cast(dict[str, Any], _value(dict[Any, Any], data, str(path), ""))


def to_yaml(data: Mapping[str, Any]) -> str:
    """Return a mapping as YAML, which load_yaml reads back exactly."""
    return yaml.dump(dict(data), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def override(data: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return a copy of a mapping with changes.

    Args:
        data: The mapping.
        assignments: 'dotted.key=value', with values in YAML.

    Raises:
        UserError: An assignment has another form, or no place in the mapping.
    """
    result: dict[str, Any] = plain_value(data)  # a deep copy, in which no YAML anchor shares a mapping
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        where = f"override {assignment if len(assignment) <= _SHOWN else assignment[:_SHOWN] + '...'!r}"
        if not equals or not all(key.strip() for key in dotted.split(".")):
            raise UserError(f"{where} must look like key=value, such as objective.alpha=1.0")
        assign(result, dotted, parse(text, where), where)
    return result


def assign(data: dict[str, Any], dotted: str, value: Any, where: str) -> None:
    """Set a dotted key of a mapping, in place.

    A name where a group could stand becomes the group: to set 'objective.alpha', 'objective: sid' becomes {name: sid}.

    Args:
        data: The mapping.
        dotted: The key.
        value: The value.
        where: The beginning of an error message.

    Raises:
        UserError: The key leads through a value that has no keys, or through more than MAX_DEPTH of them.
    """
    keys, group = [key.strip() for key in dotted.split(".")], data
    if len(keys) > MAX_DEPTH:
        raise UserError(f"{where}: more than {MAX_DEPTH} levels of keys")
    for depth, key in enumerate(keys[:-1], start=1):
        inner = group.get(key)
        group[key] = group = {} if inner is None else {"name": inner} if isinstance(inner, str) else inner
        if not isinstance(group, dict):
            raise UserError(f"{where}: {'.'.join(keys[:depth])!r} is {reprlib.repr(group)}, it has no keys")
    group[keys[-1]] = value


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the values (before, after) of each dotted key that differs between two mappings.

    ABSENT stands for the value of a key that one of them lacks.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys([*old, *new]):
        was, now = (side.get(key, ABSENT) for side in (old, new))
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            found |= differences(was, now, f"{prefix}{key}.")
        elif was != now:
            found[f"{prefix}{key}"] = was, now
    return found


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a line for each key that differs between two mappings, such as 'objective.alpha: 1.2 -> 1.0'."""
    return difference_lines(differences(old, new))


def difference_lines(found: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Return a line for each of the `differences` of two mappings."""
    shown = {key: [value if value is ABSENT else repr(value) for value in pair] for key, pair in found.items()}
    return [f"{key}: {was} -> {now}" for key, (was, now) in shown.items()]


def _error(where: Where, key: str, text: str, subject: str = "key") -> UserError:
    """Return an error of one line about a key."""
    text = f"{subject} {key!r}{text}" if key else text.removeprefix(": ")  # the key is empty for the whole mapping
    place = where if isinstance(where, str) else where(key)
    return UserError(" ".join(f"{place}: {text}".removeprefix(": ").split())[:_LINE])


def _type_error(hint: Any, value: Any, where: Where, key: str) -> UserError:
    """Return an error that says what a key must be, with the nearest choice."""
    near = nearest(value, CHOICES.get(without_none(hint), get_args(without_none(hint))), 1)
    return _error(where, key, f" must be {_expected(hint, value)}, got {reprlib.repr(value)}{_did_you_mean(near)}")


def _value(hint: Any, value: Any, where: Where, key: str) -> Any:
    """Return the value of a key, built and checked by its annotation."""
    inner = without_none(hint)
    given = dataclasses.is_dataclass(inner) and isinstance(value, cast(type, inner))  # a Python caller gave the object
    if given or (value is None and inner is not hint):
        return value
    if inner in CHOICES:
        return _choice(inner, value, where, key)
    if dataclasses.is_dataclass(inner):
        return _group(cast(type, inner), value, where, key)
    group, rest = group_of_union(hint)
    if group is not None and isinstance(value, Mapping | group):
        return value if isinstance(value, group) else _group(group, value, where, key)
    try:
        return TypeAdapter(_lenient(rest)).validate_python(value)
    except ValidationError as error:
        raise _type_error(hint, value, where, key) from error


def _group(cls: type, value: Any, where: Where, key: str) -> Any:
    """Return a dataclass, built from a mapping of its fields."""
    if not isinstance(value, Mapping):
        raise _type_error(cls, value, where, key)
    hints, fields, dot = get_type_hints(cls), recipe_fields(cls), f"{key}." if key else ""
    mistakes: list[Any] = [_UnknownKey(f"{dot}{name}", tuple(fields)) for name in value if name not in fields]
    meant = {near for unknown in mistakes[:_MOST] for near in nearest(unknown.key.rpartition(".")[2], fields, 1)}
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in value and name not in meant:
            mistakes.append(_error(where, f"{dot}{name}", f": it must be {_expected(hints[name])}", "missing key"))
    settings: dict[str, Any] = {}
    for name in (name for name in value if name in fields):
        try:
            settings[name] = _value(hints[name], value[name], where, f"{dot}{name}")
        except _Mistakes as inner:
            mistakes += inner.found
        except UserError as error:
            mistakes.append(error)
    if mistakes:
        raise _Mistakes(mistakes)
    try:
        return cls(**settings)
    except (ValueError, UserError) as error:
        raise _error(where, key, f": {error}") from error


def _choice(base: type, value: Any, where: Where, key: str) -> Any:
    """Return a dataclass of a chosen class, built from its name or from a mapping with its name."""
    settings, registry = dict(value) if isinstance(value, Mapping) else {"name": value}, CHOICES[base]
    name = settings.pop("name", value)
    if not isinstance(name, str) or (name not in registry and ":" not in name):
        raise _type_error(base, name, where, key)
    if name in registry:
        return _group(registry[name], settings, where, key)
    cls = loaded_class(name, base)
    if cls is None:
        try:
            cls, name = load_class(name, base)
        except UserError as error:
            raise _error(where, key, f": {error}") from error
    if "__dataclass_fields__" not in vars(cls) or "name" in recipe_fields(cls):  # fields of its own
        raise _error(where, key, f": {name!r} must be a dataclass without a field 'name'")
    _NAMES.setdefault(cls, name)
    return _group(cls, settings, where, key)


def _lenient(hint: Any) -> Any:
    """Return an annotation for pydantic that is strict, but takes a number in any spelling that keeps its value."""
    if dataclasses.is_dataclass(hint):
        raise TypeError(f"{hint}: at most one dataclass may be in a union, and none inside other types")
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return Annotated[hint, BeforeValidator(partial(_literal, args))]
    if args:
        return (Union if origin in _UNIONS else origin)[tuple(map(_lenient, args))]
    if hint in (int, float):
        return Annotated[hint, Strict(), BeforeValidator(_number)]
    return Annotated[hint, Strict()] if hint in (str, bool) else hint


def _literal(choices: tuple[Any, ...], value: Any) -> Any:
    """Return a value if its type is that of a choice, else None: pydantic would accept True as 1."""
    if value is False and "off" in choices:  # in YAML 1.1 a bare `off` is the boolean
        return "off"
    return value if type(value) in map(type, choices) else None


def _number(value: Any) -> Any:
    """Return a number as an integer if it is one. Raise ValueError for text that is no number, and for infinity."""
    if isinstance(value, str):
        value = int(value) if re.fullmatch(r"[-+]?[\d_]+", value) else float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("not finite")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def plain_value(value: Any, hint: Any = Any) -> Any:
    """Return a value as plain types. A chosen class gets its `name`."""
    if dataclasses.is_dataclass(value):
        name = _NAMES.get(type(value), f"{type(value).__module__}:{type(value).__qualname__}")
        return ({"name": name} if without_none(hint) in CHOICES else {}) | dump(value)
    if isinstance(value, Mapping):
        return {key: plain_value(one) for key, one in value.items()}
    return [plain_value(one) for one in value] if isinstance(value, (list, tuple)) else value


def recipe_fields(cls: type) -> dict[str, Any]:
    """Return the fields of a dataclass that are keys of a recipe."""
    return {field.name: field for field in dataclasses.fields(cls) if field.init}


def without_none(hint: Any) -> Any:
    """Return X for `X | None`, and any other annotation as it is."""
    rest = [one for one in get_args(hint) if one is not type(None)]
    return rest[0] if get_origin(hint) in _UNIONS and len(rest) == 1 else hint


def group_of_union(hint: Any) -> tuple[type | None, Any]:
    """Return the dataclass in a union, which a mapping stands for, and the union without it.

    Without a union of one dataclass with other types they are None and `hint`.
    """
    members = get_args(hint) if get_origin(hint) in _UNIONS else ()
    groups = [one for one in members if dataclasses.is_dataclass(one)]
    if len(groups) != 1 or groups[0] in CHOICES:
        return None, hint
    return cast(type, groups[0]), reduce(or_, (one for one in members if one is not groups[0]))


def _expected(hint: Any, value: object = "") -> str:
    """Return an annotation in words. Of many choices it names those that are nearest to `value`."""
    origin, args = get_origin(hint), get_args(hint)
    if hint in CHOICES:
        choices = options(CHOICES[hint], value, _LISTED[hint])
        return f"one of {choices} or your own 'module:Class', alone or as the key 'name'"
    if origin is Literal:
        return repr(args[0]) if len(args) == 1 else f"one of {options(map(repr, args), value)}"
    if origin in _UNIONS:
        return " or ".join(map(_expected, args))
    if origin in (tuple, list):
        return f"a list [{', '.join('...' if one is ... else _expected(one) for one in args)}]"
    return "a mapping" if origin is dict or dataclasses.is_dataclass(hint) else _WORDS.get(hint, str(hint))


def _hint(unknown: _UnknownKey, cls: type, data: Mapping[str, Any]) -> str:
    """Return the end of an error about an unknown key: the keys that it may stand for, or where all are listed.

    Args:
        unknown: The unknown key.
        cls: The dataclass of the whole recipe.
        data: The recipe.
    """
    key, fields = unknown.key, unknown.fields
    group, dot, tail = key.rpartition(".")
    known = list(dict.fromkeys(known_keys(cls, data)))
    same = [one for one in known if one.endswith(f".{tail}") or one == tail]
    same.sort(key=lambda one: not one.startswith(f"{group}{dot}"))  # those in the key's own group come first
    near = [f"{group}{dot}{name}" for name in nearest(tail, fields, 1)]
    found = list(dict.fromkeys([*same, *near]))[:NEAREST]
    if len(fields) <= FEW:
        return f"{_did_you_mean(found)}; allowed: {options(fields)}"
    return _did_you_mean(found) or "; docs/recipes.md lists the keys"


def _did_you_mean(near: Sequence[str]) -> str:
    """Return a hint at names that may have been meant, or nothing without any."""
    *others, last = map(repr, near or [""])
    return f" (did you mean {', '.join(others)}{' or ' if others else ''}{last}?)" if near else ""
