"""The error that a user can fix, and the first sentence of any error, for its message."""

import re
from collections.abc import Sequence


class UsageError(ValueError):
    """An error that the user can fix. The message says what was given, what was expected and what to do."""


def first_sentence(error: BaseException) -> str:
    """The first sentence of an error's message, without the full stop; the error's type if the message is empty."""
    text = str(error).strip() or type(error).__name__
    return re.split(r"(?<=[a-z)'\"])\.\s", text.splitlines()[0])[0].rstrip(".:")


def few(names: Sequence[str], most: int = 3) -> str:
    """The first of some names, for a message, with the number of all if there are more.

    Example:

        >>> few(["a", "b", "c", "d"])
        'a, b, c ... (4)'
    """
    return ", ".join(names[:most]) + (f" ... ({len(names)})" if len(names) > most else "")
