"""Sizes as users type them.

In: the text of an option. Out: lengths, pairs (height first) and windows, as the configuration takes them. This module
knows no network: whether a size is possible is decided in `swinv2.config`.
"""

import re

from swinv2.errors import UsageError
from swinv2.lengths import Pair


def read_size(text: str | None, option: str) -> int | Pair | None:
    """Reads an image size.

    Args:
        text: Such as "256", or "384x256", height first; None if the option was not given.
        option: The option's name, for the message.

    Raises:
        UsageError: It is none of these.
    """
    if text is None:
        return None
    size = _read_one(text)
    if size is None:
        raise UsageError(f"{option} is {text!r}; expected pixels such as 256, or height x width such as 384x256.")
    return size


def as_typed(lengths: Pair) -> str:
    """Height and width as users type them: "8x16"."""
    return f"{lengths[0]}x{lengths[1]}"


def read_windows(text: str | None, option: str) -> int | Pair | list[Pair] | None:
    """Reads windows: one for all stages, or one for each stage.

    Args:
        text: Such as "8"; "8x16", height first; or with commas between the stages, "16,16,16,8" or "8x16,8x16,8,8".
            None if the option was not given.
        option: The option's name, for the message.

    Raises:
        UsageError: It is none of these.

    Example:

        >>> read_windows("8x16", "--window-size"), read_windows("16,8", "--window-size")
        ((8, 16), [(16, 16), (8, 8)])
    """
    if text is None:
        return None
    windows = [_read_one(part) for part in text.split(",")]
    sizes = [(one, one) if isinstance(one, int) else one for one in windows if one is not None]
    if len(sizes) < len(windows):
        raise UsageError(
            f"{option} is {text!r}; expected tokens such as 8, height x width such as 8x16, or one of these for each "
            "stage: 16,16,16,8."
        )
    # Pairs: two integers would be the height and the width of one window.
    return sizes if len(sizes) > 1 else windows[0]


def read_learned_windows(text: str | None, option: str) -> list[int | Pair] | None:
    """Reads the window of each stage in which its position bias was learned; 0 is its own.

    Args:
        text: Such as "12,12,12,6" or "8x16,8x16,8,0"; None if the option was not given.
        option: The option's name, for the message.

    Raises:
        UsageError: It is something else.
    """
    if text is None:
        return None
    windows = [_read_one(part, 0) for part in text.split(",")]
    sizes = [one for one in windows if one is not None]
    if len(sizes) < len(windows):
        raise UsageError(
            f"{option} is {text!r}; expected a window for each stage, such as 12,12,12,6 or 8x16,8x16,8,0 (0: its own)."
        )
    return sizes


def _read_one(text: str, smallest: int = 1) -> int | Pair | None:
    lengths = text.strip().lower().split("x")
    # No size has ten digits, and Python refuses to read numbers of thousands.
    if len(lengths) > 2 or not all(re.fullmatch("[0-9]{1,9}", length) for length in lengths):
        return None
    if min(map(int, lengths)) < smallest:
        return None
    return int(lengths[0]) if len(lengths) == 1 else (int(lengths[0]), int(lengths[1]))
