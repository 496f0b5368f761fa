"""The recipe of a probe: its values by the rules, each under its reason, as a YAML file."""

from collections.abc import Iterator, Mapping
from typing import Any

from trainers.probe.rules import Choice
from trainers.recipe.strict_yaml import to_yaml

Choices = Mapping[str, "Choice | Choices"]
"""Values of a recipe by key. A group is a mapping of such values."""


def to_text(choices: Choices, head: str) -> str:
    """Return a recipe as YAML, with the reason of each value in a comment above it.

    Args:
        choices: The values by key.
        head: The comment at the top.
    """
    return "\n".join([*(f"# {line}" for line in head.splitlines()), *_lines(choices, "")]) + "\n"


def values(choices: Choices) -> dict[str, Any]:
    """Return the values of a recipe without their reasons."""
    return {key: one.value if isinstance(one, Choice) else values(one) for key, one in choices.items()}


def _lines(choices: Choices, indent: str) -> Iterator[str]:
    """Yield the lines of a group."""
    for key, one in choices.items():
        if not isinstance(one, Choice):
            yield f"{indent}{key}:"
            yield from _lines(one, indent + "  ")
            continue
        if one.reason:
            yield f"{indent}# {one.reason}"
        yield f"{indent}{key}: {_flow(one.value)}"


def _flow(value: Any) -> str:
    """Return a value in one line of YAML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return to_yaml({"_": value}).removeprefix("_: ").strip()
