"""The error that keeps a part from starting."""


class StartError(RuntimeError):
    """A problem at start that the user can fix; the message is one line."""
