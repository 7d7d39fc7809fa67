"""The error that a user can fix, and the first sentence of any error, for its message."""

import re


class UsageError(ValueError):
    """An error that the user can fix. The message says what was given, what was expected and what to do."""


def first_sentence(error: BaseException) -> str:
    """The first sentence of an error's message, without the full stop; the error's type if the message is empty."""
    text = str(error).strip() or type(error).__name__
    return re.split(r"(?<=[a-z)'\"])\.\s", text.splitlines()[0])[0].rstrip(".:")
