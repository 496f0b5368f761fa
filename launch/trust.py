"""Consent to the code that files name: --trust-code, DISTILL_TRUST_CODE, and the files that a person has remembered."""

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from filelock import FileLock

from distill.checked_import import RAN
from distill.errors import UserError
from distill.records import read_record
from trainers.io.atomic import atomic_file

FLAG, VARIABLE = "--trust-code", "DISTILL_TRUST_CODE"
HELP = (
    f"Files that name code of their own (a teacher's class, an objective in a run.yaml) need {FLAG}, in any command; "
    f"{FLAG}=remember remembers the files by their hashes. In batch systems set {VARIABLE}=1."
)


def take_consent(arguments: Iterable[str]) -> tuple[bool | Collection[str], bool, list[str]]:
    """Return the consent of a command line, whether to remember it, and the other arguments.

    Raises:
        UserError: The option or the variable has another value than it takes.
    """
    rest, values = [], list[str]()
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name == FLAG:
            values.append(value if equals else "1")
        else:
            rest.append(argument)
    values = values or [os.environ.get(VARIABLE, "").lower()]  # what the command line says holds alone
    words = {word for value in values for word in value.replace(",", " ").split()}
    hashes = words - {"1", "true", "yes", "0", "false", "no", "remember"}
    if wrong := [word for word in hashes if not re.fullmatch("[0-9a-f]{64}", word)]:
        raise UserError(f"{FLAG}: takes nothing, 'remember', or SHA-256 of files, got {min(wrong)!r}")
    remember = "remember" in words
    if remember or words & {"1", "true", "yes"}:
        return True, remember, rest
    known = () if words & {"0", "false", "no"} else remembered()
    return {*known, *hashes}, remember, rest


def remembered() -> dict[str, str]:
    """Return the files that a person has remembered, by SHA-256. A damaged list counts as empty."""
    try:
        return cast(dict[str, str], read_record(_file(), dict[str, str]))
    except (OSError, UserError):
        return {}


@contextmanager
def remembering(wanted: bool) -> Iterator[None]:
    """Remember the files that have run by consent, when the context closes, if that is wanted."""
    try:
        yield
    finally:
        if wanted and RAN:
            file = _file()
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(file.with_suffix(".lock")):  # each of several workers remembers
                known = remembered() | {sha256: str(path) for sha256, path in RAN.items()}
                with atomic_file(file) as staging:
                    staging.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def _file() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "distill" / "trusted_code.json"
