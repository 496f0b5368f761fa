"""Consent to the code that files name: --trust-code, DISTILL_TRUST_CODE, and the files that a person has remembered."""

import json
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from distill.checked_import import RAN
from distill.errors import UserError

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
    rest, values = [], [os.environ.get(VARIABLE, "").lower()]
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name == FLAG:
            values.append(value if equals else "1")
        else:
            rest.append(argument)
    words = {word for value in values for word in value.replace(",", " ").split()}
    hashes = words - {"1", "true", "yes", "0", "false", "no", "remember"}
    if wrong := [word for word in hashes if not re.fullmatch("[0-9a-f]{64}", word)]:
        raise UserError(f"{FLAG}: takes nothing, 'remember', or SHA-256 of files, got {min(wrong)!r}")
    remember = "remember" in words
    return (True if remember or words & {"1", "true", "yes"} else {*remembered(), *hashes}), remember, rest


def remembered() -> dict[str, str]:
    """Return the files that a person has remembered, by SHA-256. A damaged list counts as empty."""
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def remember_code() -> None:
    """Remember the files that have run by consent."""
    if RAN:
        file = _file()
        file.parent.mkdir(parents=True, exist_ok=True)
        known = remembered() | {sha256: str(file) for sha256, file in RAN.items()}
        file.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def _file() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "distill" / "trusted_code.json"
