"""Class numbers and class names from the values of a column."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from distill.errors import UserError, options
from distill.public_text import printable

MAX_CLASSES = 100_000
"""The most classes. ImageNet-21k has 21,841. A larger number is no class, and would make a table of its size."""


def in_order(names: Iterable[str]) -> list[str]:
    """Return the names of classes in the order of their numbers: by value if all are whole numbers, else by letter."""
    found = list(names)
    return sorted(found, key=lambda name: (int(name), name)) if all(map(_is_number, found)) else sorted(found)


def to_labels(
    values: Sequence[Any], names: Sequence[str] | None, path: str, column: str
) -> tuple[Tensor, tuple[str, ...] | None]:
    """Return the labels in a column, int64 [N], and the names of the classes, or None without names.

    Words become numbers in the order of `in_order`. In a name, "\\udce9" stands for what UTF-8 cannot write, as in the
    name of a folder in Latin-1.

    Args:
        values: The values of the column: whole numbers of at least 0, or words.
        names: The names of the classes, by number, where the data set states them.
        path: The path of the data, for messages.
        column: The name of the column, for messages.

    Raises:
        UserError: A value is missing, or is neither a number of a class nor a word.
    """
    words = any(isinstance(value, str) for value in values)
    names = names or (in_order({value for value in values if isinstance(value, str)}) if words else None)
    numbers = {name: number for number, name in enumerate(names)} if words and names else {}
    found = [numbers.get(value) if words and isinstance(value, str) else _whole(value) for value in values]
    for row, value in enumerate(found):
        if value is None or not 0 <= value < MAX_CLASSES:
            raise UserError(
                f"data.label_column: {column!r} in {path} must hold an integer of at least 0 and below {MAX_CLASSES:,}"
                f" for every image, or a word for every image; row {row} holds {repr(values[row])[:80]}"
            )
    labels = torch.tensor(found, dtype=torch.int64)
    if names is not None and len(labels) and int(labels.max()) >= len(names):
        raise UserError(
            f"data.label_column: {column!r} in {path} holds {int(labels.max())}, but names {len(names)} classes"
        )
    return labels, None if names is None else tuple(map(_as_utf8, names))


def class_number(given: int | str, classes: int, names: Sequence[str] | None = None) -> int:
    """Return the number of a class.

    A text that is the number of a class is that number, also where another class has it as its name.

    Args:
        given: The number or the name of the class. The name may be in the form that is printed.
        classes: The number of classes.
        names: The names of the classes, by number. None where they have none.

    Raises:
        UserError: There is no such class, or several have this name.
    """
    number = int(given) if isinstance(given, int) or re.fullmatch(r"-?[0-9]{1,18}", given) else None
    if number is not None and 0 <= number < classes:
        return number
    shown = [printable(name) for name in names or ()]
    found = [at for at, name in enumerate(names or ()) if isinstance(given, str) and given in (name, shown[at])]
    if len(found) == 1:
        return found[0]
    what = given if number is not None else repr(printable(str(given)))
    if found:
        raise UserError(f"label: {what} is the name of the classes {', '.join(map(str, found))}; give the number")
    allowed = f"0 to {classes - 1}" if classes else "none"
    named = f", or a name: {options(shown, printable(str(given)))}" if shown else ""
    raise UserError(f"label: {what} is not a class; allowed: {allowed}{named}")


def captions(labels: Tensor | None, names: Sequence[str] | None) -> list[str]:
    """Return the number and the name of the class of each label, or nothing where classes have no names."""
    if labels is None or not names:
        return []
    return [f"{number} {printable(names[number])}" for number in labels.tolist()]


def classes_in_words(labels: Tensor, names: Sequence[str] | None) -> str:
    """Return the classes with their numbers and names in one line, and those without a picture."""
    counts = labels.bincount(minlength=len(names or ()))
    kinds = f"{len(counts):,} classes"
    if names is not None:
        kinds += f" ({_shortened([f'{number} {printable(name)}' for number, name in enumerate(names)])})"
    if len(lacking := (counts == 0).nonzero().flatten().tolist()):
        kinds += f", without a picture: {_shortened([str(number) for number in lacking])}"
    return kinds


def _shortened(items: Sequence[str]) -> str:
    """Return up to twelve items of a list, and the last of a longer one."""
    return ", ".join(items) if len(items) <= 12 else f"{', '.join(items[:10])}, ... {items[-1]}"


def _whole(value: Any) -> int | None:
    """Return a whole number, which a table with gaps may hold as a float. None for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) else None


def _as_utf8(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) < 19
