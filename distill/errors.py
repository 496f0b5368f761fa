"""The exception for mistakes of the user, and the names in its messages."""

import difflib
from collections.abc import Iterable
from itertools import islice

FEW, NEAREST = 8, 3  # so many names an error lists in full, and so many of a longer list
_LONGEST, _COMPARED = 200, 10_000  # characters of a name, and names of a list, since a file may hold any


class UserError(Exception):
    """A mistake of the user. Its message says in one line what is wrong, where, and what is allowed."""


def require(condition: bool, message: str) -> None:
    """Raise UserError with `message` when `condition` is false."""
    if not condition:
        raise UserError(message)


def one_line(error: BaseException) -> str:
    """Return the message of another library's error, and those of its causes, as one line for a UserError."""
    lines: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(lines) < 4:
        line = " ".join(str(cause).split())[:300]
        if line and not any(line in known for known in lines):
            lines.append(line)
        cause = cause.__cause__
    return ": ".join(lines)[:400] or type(error).__name__


def nearest(given: object, names: Iterable[object], count: int = NEAREST) -> list[str]:
    """Return the names that are spelled most like `given`, the most alike first. There may be none."""
    spelled = {name[:_LONGEST].lower(): name for name in islice(names, _COMPARED) if isinstance(name, str)}
    return [spelled[name] for name in difflib.get_close_matches(str(given)[:_LONGEST].lower(), spelled, count)]


def options(names: Iterable[object], given: object = "", listed: str = "") -> str:
    """Return names for an error: all of them if they are few, and otherwise some of them with their number.

    Args:
        names: The names.
        given: The name in whose place one of them should stand. The names nearest to it are shown.
        listed: The document or the command that lists them, such as "`distill recipes`".
    """
    every = [str(name)[:_LONGEST] for name in dict.fromkeys(names)]
    if len(every) <= FEW:
        return ", ".join(every) or "none"
    shown = nearest(given, every) or every[:NEAREST]
    return f"{', '.join(shown)}, ... ({len(every)} in all{f', which {listed} lists' if listed else ''})"
