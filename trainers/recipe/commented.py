"""A recipe as YAML with the meaning of each key above it."""

import textwrap
from collections.abc import Mapping
from typing import Any

import yaml

from trainers.recipe.keys import recipe_keys
from trainers.recipe.yaml_text import Dumper


def commented_yaml(settings: Mapping[str, Any], title: str) -> str:
    """Return a recipe as YAML, each of whose keys has its meaning in a comment above it.

    Args:
        settings: The keys of the recipe, as plain types.
        title: The first comment.
    """
    lines = [f"# {title}"]
    for key, value in settings.items():
        meaning = next(one.meaning for one in recipe_keys(key) if one.name == key)
        lines += ["", *textwrap.wrap(meaning, 110, initial_indent="# ", subsequent_indent="# ")]
        text = yaml.dump(
            value, Dumper=Dumper, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True
        )
        lines.append(f"{key}: {text.splitlines()[0]}")  # of a plain value a line with the end of a document follows
    return "\n".join(lines) + "\n"
