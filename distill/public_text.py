"""Text that may leave this machine: without absolute paths, names of the user and of the machine, and secrets.

Cards, exports, reports and trackers pass all their strings through this file.
"""

import getpass
import hashlib
import re
import socket
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

REMOVED = "(removed)"
_ORDINARY = {"root", "user", "admin", "ubuntu", "runner", "localhost"}  # names that say nothing about a person
_SECRETS = re.compile(r"\b(hf_|sk-|ghp_|github_pat_|glpat-|AKIA)[A-Za-z0-9_-]{12,}")
_SECRET_KEYS = re.compile(
    r"(^|_)(password|passwd|secret|credentials?|(api|access|private)_?key|(api|hf|access|auth)_?token)$"
)
_PLACES = re.compile(
    r"""(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*)://(?P<address>[^\s'"`<>]*)"""
    r"""|(?P<quote>['"`])(?P<quoted>(?:~[\w.-]*)?/[^'"`\n]+)(?P=quote)"""
    r"""|(?<![\w./~<}\])-])(?P<bare>(?:~[\w.-]*/|/[^\s'"`,;:()\[\]{}<>|/]+/)[^\s'"`,;:()\[\]{}<>|]*)"""
)


def public_name(path: str | Path) -> str:
    """Return the name by which a file or folder of this machine is published: the last part of its path.

    A home folder, and a folder that is named after the user or the machine, gets the first eight hexadecimal digits of
    the SHA-256 of its path.

    Args:
        path: The path. A suffix such as `:Class` stays.
    """
    text = str(path).rstrip("/")
    place = PurePosixPath(text)
    home = place.parent.name in ("home", "Users") or text in ("~", str(Path.home()))
    if home or place.name in ("", "..", "~") or place.name.partition(":")[0] in _private_names():
        return hashlib.sha256(str(path).encode()).hexdigest()[:8]
    return public_text(place.name)


def public_text(text: str) -> str:
    """Return a text in which each absolute path is its last part, and credentials are removed.

    Of a URL the user, the password and the query are removed.
    """
    home = str(Path.home())
    if len(PurePosixPath(home).parts) > 1:  # the home folder may hold a space, at which a path in a text would end
        text = re.sub(rf"{re.escape(home)}(?=/)", "~", text)
    return _SECRETS.sub(REMOVED, _PLACES.sub(_public_place, text))


def without_names(text: str) -> str:
    """Return a text without the names of the user and of this machine, where they stand as words."""
    for name in sorted(_private_names(), key=len, reverse=True):  # the user's name may be a part of the machine's
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", REMOVED, text)
    return text


def printable(text: str, longest: int = 40) -> str:
    """Return a text of others on one line: no control characters, no letters that turn the line, and a bounded length.

    Args:
        text: Any text.
        longest: The most letters of the result.
    """
    cut = text if len(text) <= longest else f"{text[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"
    return "".join(letter if letter.isprintable() else "?" for letter in cut)


def public_value(value: Any, names: bool = True) -> Any:
    """Return plain values with all their strings, and the strings in their keys, as they may be published.

    Args:
        value: A string, a number, None, or lists and mappings of them.
        names: Whether the names of the user and of the machine are removed too. Configs of diffusers and transformers
            hold words of their own, such as `silu`, which must stay.
    """
    if isinstance(value, str):
        if _is_path(value):
            return public_name(value)
        return without_names(public_text(value)) if names else public_text(value)
    if isinstance(value, Mapping):
        return {
            public_value(key, names): REMOVED if is_secret(key) and one else public_value(one, names)
            for key, one in value.items()
        }
    return [public_value(one, names) for one in value] if isinstance(value, list | tuple) else value


def is_secret(key: object) -> bool:
    """Return whether the value of `key` is a password, a token or the like."""
    return isinstance(key, str) and _SECRET_KEYS.search(key) is not None


def _is_path(text: str) -> bool:
    """Return whether a whole string is a path of this machine, absolute or relative, and no id of the hub."""
    if text.startswith(("/", "~")) and len(text) > 1:
        return True
    if "/" not in text or "://" in text or any(sign.isspace() for sign in text):
        return False
    relative = text.startswith(".") or text.count("/") > 1 or text.partition(":")[0].endswith(".py")
    return relative or Path(text).exists()


def _public_place(found: re.Match[str]) -> str:
    """Return the public form of a URL or of a path that stands in a text."""
    if scheme := found["scheme"]:
        if scheme == "file":
            return public_name(found["address"])
        address = re.split(r"[?#]", found["address"])[0].rpartition("@")[2]
        return f"{scheme}://{address}"
    if quote := found["quote"]:
        return f"{quote}{public_name(found['quoted'])}{quote}"
    return public_name(found["bare"])


def _private_names() -> set[str]:
    """Return the names of the user and of this machine, but those that many share."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without an entry in the list of users, as in some containers
        user = ""
    host = socket.gethostname()
    names = {user, Path.home().name, host, host.partition(".")[0]}
    return {name for name in names if len(name) > 1 and name not in _ORDINARY}
