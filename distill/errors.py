"""The exception for mistakes of the user, and the names in its messages."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

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


@contextmanager
def naming_final(final: Path, *staging: Path) -> Iterator[None]:
    """Let the errors of the block name the place where something will be, and not where it is written before.

    Args:
        final: The final place.
        staging: The places before, which the user does not know. An inner one comes before an outer one.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            cause.args = tuple(_with_final(one, final, staging) for one in cause.args)
            for name in ("filename", "filename2"):  # an OSError shows these in place of its arguments
                if (file := getattr(cause, name, None)) is not None:
                    setattr(cause, name, _with_final(file, final, staging))
            cause = cause.__cause__
        raise


def _with_final(value: object, final: Path, staging: tuple[Path, ...]) -> object:
    """Return a text or a path with the final place in place of the places before, and any other value as it is."""
    if not isinstance(value, str | Path):
        return value
    text = str(value)
    for place in staging:
        text = text.replace(str(place), str(final)).replace(place.name, final.name)
    return text


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
