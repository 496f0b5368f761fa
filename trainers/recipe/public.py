"""A recipe as it may be published: in the card of an export, and to trackers."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from distill.annotations import LocalPath
from distill.public_text import REMOVED, is_secret, public_name, public_value
from trainers.recipe.strict_yaml import dump


def public_recipe(run: Any) -> dict[str, Any]:
    """Return a dataclass of a recipe as plain types, without paths of this machine, private names and secrets.

    Files and folders have the last part of their path. A default value stays as it is.

    Args:
        run: The dataclass, such as a Run.
    """
    hints, plain = get_type_hints(type(run), include_extras=True), dump(run)
    for field in (field for field in dataclasses.fields(run) if field.init):
        value = getattr(run, field.name)
        if value is not None and value != field.default:
            plain[field.name] = _public(field.name, value, plain[field.name], hints[field.name])
    return plain


def nested_name(settings: Any) -> str | None:
    """Return the name in a group of keys, with the one that it wraps in parentheses: guided(sid)."""
    if not isinstance(settings, dict) or "name" not in settings:
        return None
    inner = nested_name(settings.get("objective"))
    return f"{settings['name']}({inner})" if inner else str(settings["name"])


def public_changes(changes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the changes that resumes have made as they may be published. A change of a path alone is left out.

    Args:
        changes: The changes, in the form of `trainers.checkpoints.formats.Change`.
    """
    found = []
    for change in changes:
        pairs = {key: _public_pair(key, pair) for key, pair in change["changed"].items()}
        if changed := {
            key: pair for key, pair in pairs.items() if pair["old"] != pair["new"] or REMOVED in pair.values()
        }:
            found.append({"images": change["images"], "changed": changed})
    return found


def _public_pair(key: str, pair: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a dotted key before and after a change, as they may be published."""
    name = key.rpartition(".")[2]  # which says whether the value is a secret
    return {side: public_value({name: value})[name] for side, value in pair.items()}


def _public(name: str, value: Any, plain: Any, hint: Any) -> Any:
    """Return the public form of a field.

    Args:
        name: The name of the field.
        value: Its value.
        plain: Its value as plain types.
        hint: Its annotation.
    """
    if dataclasses.is_dataclass(value):
        own = {field.name for field in dataclasses.fields(value)}
        chosen = {"name": _public_class(plain["name"])} if "name" in plain and "name" not in own else {}
        return chosen | public_recipe(value)
    if is_secret(name):
        return REMOVED
    if _holds(hint, LocalPath):
        return _public_names(plain)
    return plain if get_origin(hint) is Literal else public_value(plain)


def _public_class(name: str) -> str:
    """Return the name of a class, such as `fgm` or `my_package.my_module:Class`. Of a file only its last part stays."""
    source, colon, attribute = name.rpartition(":")
    return f"{public_name(source) if '/' in source else source}{colon}{attribute}"


def _public_names(plain: Any) -> Any:
    """Return plain values in which every string is a path, as they may be published."""
    if isinstance(plain, str):
        return public_value(plain) if "/" in plain else public_name(plain)  # with a slash it may be an id of the hub
    if isinstance(plain, dict):
        return {public_value(key): _public_names(one) for key, one in plain.items()}
    return [_public_names(one) for one in plain] if isinstance(plain, list) else plain


def _holds(hint: Any, wanted: Any) -> bool:
    """Return whether an annotation is `wanted`, or contains it at any depth."""
    return hint == wanted or any(_holds(one, wanted) for one in get_args(hint))
