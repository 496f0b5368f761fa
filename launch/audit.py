"""The shipped recipes beside the settings that the authors published (launch/authors.yaml), setting by setting."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from distill.errors import UserError, options
from distill.generator import PRESETS
from trainers.recipe.load import resolve
from trainers.recipe.run import Run
from trainers.recipe.shipped import find_recipe
from trainers.recipe.strict_yaml import dump, load_yaml

SAME, DIFFERS, NOT_PUBLISHED, OURS, NOT_COMPARED = "as published", "differs", "not published", "ours", "not compared"
AUTHORS = Path(__file__).with_name("authors.yaml")


class Setting(NamedTuple):
    """A setting of a recipe beside that of the authors.

    Attributes:
        name: The key of the recipe, or what the authors call the setting where no key has it.
        ours: The value in the recipe.
        theirs: The value that the authors published, under their name. Empty where there is none.
        verdict: SAME, DIFFERS, NOT_PUBLISHED, OURS, or NOT_COMPARED, which no shipped recipe has.
        why: The reason of a verdict other than SAME.
    """

    name: str
    ours: str
    theirs: str
    verdict: str
    why: str = ""


def _labelled(run: Run) -> int:
    data = dump(run)["data"]
    return int(bool(data.get("classes")) or (data["name"] == "images" and data["label_column"] is not None))


def _teacher_file(run: Run) -> str:
    return str(re.findall(r"distill import \w+ (\S+)", find_recipe(run.name).read_text("utf-8"))[0])


def _teacher_dropout(run: Run) -> float:
    published: dict[str, float] = authors()["teachers"]["dropout"]
    rate = run.fake.dropout if run.fake.dropout == run.generator.dropout else "off"
    if isinstance(rate, float):
        return rate
    return published[_teacher_file(run)] if rate == "teacher" else 0.0


# What is computed from several keys: the keys, and the function of a run.
COMPUTED: dict[str, tuple[tuple[str, ...], Callable[[Run], Any]]] = {
    "(t of entry)": (("entry",), lambda run: PRESETS[run.entry.preset].t if run.entry.preset else run.entry.nsr),
    "(micro-batch on 4 GPUs)": (("micro_batches",), lambda run: run.batch_size / run.micro_batches / 4),
    "(file of the teacher)": (("teacher",), _teacher_file),
    "(source of the teacher)": (("teacher",), _teacher_file),
    "(dropout of the teacher)": (("generator.dropout", "fake.dropout"), _teacher_dropout),
    "(normalisation of the weights)": (
        ("generator.force_normalization", "fake.force_normalization"),
        lambda run: int(run.generator.force_normalization and run.fake.force_normalization),
    ),
    "(name of the reference)": (("evaluation.reference",), lambda run: Path(str(run.evaluation.reference)).name),
    "(whether there are labels)": (("data.classes", "data.label_column"), _labelled),
    "(iterations of the fake)": (("images",), lambda run: run.images / run.batch_size * run.most_fake_updates),
    "(iterations of the generator)": (("images",), lambda run: run.images / run.batch_size),
    "(warm-up in iterations)": (
        ("generator.warmup", "fake.warmup"),
        lambda run: run.generator.warmup / run.batch_size * run.most_fake_updates,
    ),
    "(whether all networks are sharded)": (("sharding",), lambda run: run.sharding is not None),
}


@cache
def authors() -> dict[str, Any]:
    """Return the content of authors.yaml."""
    return load_yaml(AUTHORS)


def audited() -> list[str]:
    """Return the names of the recipes that authors.yaml has."""
    return list(authors()["recipes"])


def page_of(recipe: str) -> str:
    """Return the address of the page that has the published settings of a recipe."""
    return str(authors()["sources"][_entry(recipe)["of"]]["page"])


def audit(recipe: str) -> list[Setting]:
    """Return the settings of a shipped recipe, those that are compared first.

    Raises:
        UserError: authors.yaml has no such recipe, a reason of what does not differ, or none of what does.
    """
    entry, source = _entry(recipe), _merged(_entry(recipe)["of"])
    run = resolve(recipe)
    assert isinstance(run, Run)
    reasons, compared = dict(entry.get("differs", {})), set[str]()
    found = []
    for name, theirs in {**source["settings"], **entry["settings"]}.items():
        rule = source["keys"][name]
        for key in rule if isinstance(rule, list) else [rule]:
            setting, keys = _compared(run, name, theirs, key)
            compared.update(keys)
            if setting.verdict == DIFFERS:
                if name not in entry.get("differs", {}):
                    raise UserError(f"{AUTHORS.name}: {recipe}: {name} differs: {setting.ours}; say why in `differs`")
                setting = setting._replace(why=entry["differs"][name])
                reasons.pop(name, None)
            found.append(setting)
    if reasons:
        raise UserError(f"{AUTHORS.name}: {recipe}: {', '.join(reasons)} does not differ; delete its reason")
    return found + list(_others(recipe, compared))


def _entry(recipe: str) -> dict[str, Any]:
    """Return the entry of a recipe in authors.yaml."""
    recipes: dict[str, dict[str, Any]] = authors()["recipes"]
    if recipe not in recipes:
        raise UserError(f"--audit: no published settings of '{recipe}'; there are {options(recipes, recipe)}")
    return recipes[recipe]


def _merged(source: str) -> dict[str, dict[str, Any]]:
    """Return the keys and the settings of a source, with those of the source that it is like."""
    own = authors()["sources"][source]
    base: dict[str, dict[str, Any]] = _merged(own["like"]) if "like" in own else {}
    return {part: {**base.get(part, {}), **own.get(part, {})} for part in ("keys", "settings")}


def _compared(run: Run, name: str, theirs: Any, rule: Any) -> tuple[Setting, tuple[str, ...]]:
    """Return a published setting beside ours, and the keys of the recipe that it covers."""
    rule = rule if isinstance(rule, dict) else {"key": rule}
    expected = rule.get("values", {}).get(theirs, theirs)
    if isinstance(expected, int | float) and not isinstance(expected, bool):
        expected = expected * rule.get("times", 1) - rule.get("less", 0)
    key, keys = rule.get("key", name), tuple[str, ...]()
    if "by" in rule:
        ours = rule["by"]
    elif key in COMPUTED:
        keys, ours = COMPUTED[key][0], COMPUTED[key][1](run)
    else:
        keys, ours = (key,), _value_at(dump(run), key)
    numbers = all(isinstance(one, int | float) for one in (ours, expected))
    same = math.isclose(ours, expected, rel_tol=1e-6) if numbers else ours == expected
    return Setting(key.strip("()"), _text(ours), f"{name} {_text(theirs)}", SAME if same else DIFFERS), keys


def _value_at(settings: Any, dotted: str) -> Any:
    """Return the value at a dotted key of nested mappings and lists. None where a group on the way is None."""
    for part in dotted.split("."):
        if settings is None:
            return None
        settings = settings[int(part)] if isinstance(settings, list | tuple) else settings[part]
    return settings


def _others(recipe: str, compared: set[str]) -> Iterator[Setting]:
    """Yield the settings of a recipe's file that nothing published is compared with."""
    file = find_recipe(recipe)
    settings, unverified, ours = load_yaml(file), _unverified(file.read_text("utf-8")), authors()["ours"]
    settings.pop("tiny")
    for key, value in _leaves(settings):
        if any(_inside(key, one) or _inside(one, key) for one in compared):
            continue
        if any(_inside(key, one) for one in unverified):
            yield Setting(key, _text(value), "", NOT_PUBLISHED, "our choice, as the comment in the recipe says")
        elif reason := next((why for one, why in ours.items() if _inside(key, one)), None):
            yield Setting(key, _text(value), "", OURS, reason)
        else:
            yield Setting(key, _text(value), "", NOT_COMPARED)


def _inside(key: str, group: str) -> bool:
    """Return whether a dotted key is `group`, or lies in it."""
    return key == group or key.startswith(f"{group}.")


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and values of nested mappings. An empty mapping is a value."""
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _unverified(text: str) -> set[str]:
    """Return the dotted keys of a recipe whose comment says that nothing published confirms them."""
    path: list[tuple[int, str]] = []
    found = set()
    for indent, name, rest in re.findall(r"^( *)([\w-]+):(.*)$", text.partition("\ntiny:")[0], re.MULTILINE):
        path = [*(one for one in path if one[0] < len(indent)), (len(indent), name)]
        if "unverified" in rest.partition("#")[2]:
            found.add(".".join(part for _, part in path))
    return found


def _text(value: Any) -> str:
    """Return a value in a few letters."""
    return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def as_lines(recipe: str) -> list[str]:
    """Return the audit of a recipe as lines of text."""
    rows = audit(recipe)
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:3]]
    lines = [f"{recipe}: {page_of(recipe)}"]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        lines.append("  ".join(["", *cells, f"{row.verdict}: {row.why}" if row.why else row.verdict]))
    return lines


def as_markdown() -> str:
    """Return the audit of all recipes as Markdown, with a table for each."""
    parts = []
    for recipe in audited():
        rows = audit(recipe)
        same = sum(one.verdict == SAME for one in rows)
        parts += [f"## {recipe}", f"{same} settings are [as published]({page_of(recipe)})."]
        lines = [f"| `{one.name}` | {one.ours} | {one.theirs} | {one.verdict} | {one.why} |" for one in rows]
        parts.append("\n".join(["| setting | here | authors | | |", "| --- " * 5 + "|", *lines]))
    return "\n\n".join(parts)
