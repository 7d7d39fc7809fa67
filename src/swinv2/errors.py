"""The error that is the user's to mend."""


class UsageError(ValueError):
    """What was asked for cannot be done; the message says what was given, what was expected and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind if it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
