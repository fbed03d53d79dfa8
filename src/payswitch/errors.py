"""What keeps a part from starting."""


class StartError(RuntimeError):
    """Something that the user can set right; the message is one line for them."""
