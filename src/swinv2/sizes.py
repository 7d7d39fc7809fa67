"""Sizes in the notation that users type.

In: the text of an option. Out: lengths, pairs (height first) and windows, for the configuration. This module knows no
network: `swinv2.config` checks whether a size is possible.
"""

import re

from swinv2.errors import UsageError
from swinv2.lengths import Lengths, Pair


def as_typed(lengths: Lengths) -> str:
    """Lengths in the notation that users type: "8x16"."""
    return "x".join(map(str, lengths))


def read_size(text: str | None, option: str) -> int | Pair | None:
    """Reads an image size.

    Args:
        text: Such as "256", or "384x256", height first; None if the option was not given.
        option: The option's name, for the message.

    Raises:
        UsageError: The text is not a size.
    """
    expected = "pixels such as 256, or height x width such as 384x256"
    sizes = _read(text, option, expected)
    if sizes is not None and len(sizes) > 1:
        raise UsageError(f"{option} is {text!r}; expected {expected}.")
    return sizes[0] if sizes else None


def read_windows(text: str | None, option: str) -> int | Pair | list[Pair] | None:
    """Reads windows: one for all stages, or one for each stage.

    Args:
        text: Such as "8"; "8x16", height first; or with commas between the stages, "16,16,16,8" or "8x16,8x16,8,8".
            None if the option was not given.
        option: The option's name, for the message.

    Raises:
        UsageError: The text is neither.

    Example:

        >>> read_windows("8x16", "--window-size"), read_windows("16,8", "--window-size")
        ((8, 16), [(16, 16), (8, 8)])
    """
    expected = "tokens such as 8, height x width such as 8x16, or one of these for each stage: 16,16,16,8"
    windows = _read(text, option, expected)
    if windows is None or len(windows) == 1:
        return windows[0] if windows else None
    # Pairs: two integers would be the height and the width of one window.
    return [(one, one) if isinstance(one, int) else one for one in windows]


def read_learned_windows(text: str | None, option: str) -> list[int | Pair] | None:
    """Reads, for each stage, the window in which its position bias was learned; 0 means the stage's own window.

    Args:
        text: Such as "12,12,12,6" or "8x16,8x16,8,0"; None if the option was not given.
        option: The option's name, for the message.

    Raises:
        UsageError: The text is not such a list.
    """
    return _read(text, option, "a window for each stage, such as 12,12,12,6 or 8x16,8x16,8,0 (0: its own)", smallest=0)


def _read(text: str | None, option: str, expected: str, smallest: int = 1) -> list[int | Pair] | None:
    """Reads the text of an option: lengths and pairs with commas between them."""
    if text is None:
        return None
    sizes: list[int | Pair] = []
    for part in text.lower().split(","):
        # No size has ten digits, and Python raises an error for a number of thousands of digits.
        found = re.fullmatch(r"\s*([0-9]{1,9})(?:x([0-9]{1,9}))?\s*", part)
        lengths = [int(length) for length in found.groups() if length is not None] if found else []
        if not lengths or min(lengths) < smallest:
            raise UsageError(f"{option} is {text!r}; expected {expected}.")
        sizes.append(lengths[0] if len(lengths) == 1 else (lengths[0], lengths[1]))
    return sizes
