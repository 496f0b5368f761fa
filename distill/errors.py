"""The exception for mistakes of the user."""


class UserError(Exception):
    """A mistake of the user. Its message says in one line what is wrong, where, and what is allowed."""


def require(condition: bool, message: str) -> None:
    """Raise UserError with `message` when `condition` is false."""
    if not condition:
        raise UserError(message)


def one_line(error: Exception) -> str:
    """Return the message of another library's error as one line, for the message of a UserError."""
    return " ".join(str(error).split())[:300]
