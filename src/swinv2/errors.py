"""The error for what the user can fix, and what others' errors say in its sentence."""

import re


class UsageError(ValueError):
    """What was asked for cannot be done; the message says what was given, what was expected and what to do."""


def first_sentence(error: BaseException) -> str:
    """The first sentence of an error's message, without its full stop; the name of its type if there is none."""
    text = str(error).strip() or type(error).__name__
    return re.split(r"(?<=[a-z)'\"])\.\s", text.splitlines()[0])[0].rstrip(".:")
