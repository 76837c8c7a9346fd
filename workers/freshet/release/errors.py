"""What can go wrong while a version is brought in."""


class ReleaseError(Exception):
    """The step was not taken; the message is one line that says why, and what serves now."""
