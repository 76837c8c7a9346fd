"""The root of the errors that are written for a user."""


class FreshetError(Exception):
    """Something that a user or an operator can mend; the message is fit to be shown as it is, and says the remedy."""
