"""What can go wrong while a version is brought in."""

from freshet.errors import FreshetError


class ReleaseError(FreshetError):
    """The step was not taken; the message is one line that says why, and what serves now."""
