"""The one exception that is the user's business."""


class UserError(Exception):
    """A mistake of the user, told in one line: what, where, what is allowed."""
