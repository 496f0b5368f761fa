"""The one exception that is the user's business."""


class UserError(Exception):
    """A mistake of the user, told in one line: what, where, what is allowed."""


def one_line(error: Exception) -> str:
    """What another library said, fit for the message of a UserError."""
    return " ".join(str(error).split())[:300]
