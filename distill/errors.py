"""The exception for mistakes of the user."""


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
