"""The error that is the user's to mend."""


class UsageError(ValueError):
    """What was asked for cannot be done; the message says what was given, what was expected and what to do."""
