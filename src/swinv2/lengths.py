"""Lengths, pairs and windows as values of fields.

In: a field's value, and its name for the message. Out: integers, pairs (height, width) for images, and triples (frames,
height, width) for videos. In the other direction, the shortest notation of the same value. This module knows no field;
`sizes.py` reads sizes that users type.
"""

from collections.abc import Iterable, Sequence
from typing import Any

Pair = tuple[int, int]
"""Two lengths, height first."""

Lengths = tuple[int, ...]
"""A length for each axis: (height, width), or (frames, height, width)."""

NAMES_OF_AXES = {2: "a pair (height, width)", 3: "three lengths (frames, height, width)"}

Windows = int | Sequence[int | Sequence[int]]
"""Windows in tokens in any notation, one for all stages or one for each stage: see `as_windows`."""


def is_integer(value: Any) -> bool:
    """Whether a value is an integer; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def as_length(name: str, value: Any, smallest: int = 1) -> int:
    """Reads an integer of at least `smallest`.

    Raises:
        ValueError: `value` is not one; the message begins with `name`.
    """
    if not is_integer(value) or value < smallest:
        raise ValueError(f"{name} is {value!r}; expected an integer of at least {smallest}.")
    return value


def as_lengths(name: str, value: Any) -> list[int]:
    """Reads a list of lengths of at least 1; see `as_length`."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"{name} is {value!r}; expected a list of integers, one for each stage.")
    return [as_length(f"{name}[{index}]", item) for index, item in enumerate(value)]


def as_pair(name: str, value: Any, smallest: int = 1) -> Pair:
    """Reads a length, or a pair of them, as (height, width).

    Args:
        name: The field's name, for the message.
        value: An integer for both axes, or two integers, height first.
        smallest: The smallest length that is accepted.

    Raises:
        ValueError: `value` is neither.
    """
    height, width = as_axes(name, value, smallest)
    return height, width


def as_axes(name: str, value: Any, smallest: int = 1, axes: int = 2) -> Lengths:
    """Reads a length for each axis.

    Args:
        name: The field's name, for the message.
        value: An integer for all axes, or as many integers as there are axes.
        smallest: The smallest length that is accepted.
        axes: 2 for (height, width), 3 for (frames, height, width).

    Raises:
        ValueError: `value` is neither.
    """
    if is_integer(value):
        return (as_length(name, value, smallest),) * axes
    if isinstance(value, (list, tuple)) and len(value) == axes:
        return tuple(as_length(f"{name}[{axis}]", length, smallest) for axis, length in enumerate(value))
    raise ValueError(f"{name} is {value!r}; expected an integer or {NAMES_OF_AXES[axes]}.")


def as_windows(name: str, value: Any, num_stages: int, any_number: bool = False, axes: int = 2) -> tuple[Lengths, ...]:
    """Reads the windows of all stages.

    Args:
        name: The field's name, for the message.
        value: In tokens: one window for all stages, an integer or a pair (height, width); or a list with such a window
            for each stage. Two integers are always a pair, even in a network of two stages. For videos, a window has
            three lengths.
        num_stages: Number of stages.
        any_number: Whether the list may have another length; the result then has the same length.
        axes: 2 for (height, width), 3 for (frames, height, width).

    Raises:
        ValueError: `value` is neither.

    Source:
        timm's `resolve_stage_window_sizes`, which also reads two integers as a pair.

    Example:

        >>> as_windows("window_size", [4, 8], 2)
        ((4, 8), (4, 8))
        >>> as_windows("window_size", [4, [8, 8]], 2)
        ((4, 4), (8, 8))
    """
    is_list = isinstance(value, (list, tuple))
    if is_integer(value) or (
        is_list and len(value) == axes and not any(isinstance(one, (list, tuple)) for one in value)
    ):
        return (as_axes(name, value, axes=axes),) * num_stages
    if is_list and (len(value) == num_stages or (any_number and value)):
        return tuple(as_axes(f"{name}[{index}]", one, axes=axes) for index, one in enumerate(value))
    raise ValueError(
        f"{name} is {value!r}; expected an integer or {NAMES_OF_AXES[axes]} for all stages, or a list of such "
        f"windows, one for each of the {num_stages} stages."
    )


def plain_pair(lengths: Lengths) -> int | list[int]:
    """The shortest notation that `as_axes` reads: an integer if all lengths are equal."""
    return lengths[0] if len(set(lengths)) == 1 else list(lengths)


def plain_windows(windows: Sequence[Lengths]) -> int | list[Any]:
    """The shortest notation that `as_windows` reads: an integer if all stages have the same square window.

    Args:
        windows: Size in tokens of each stage's window.

    Example:

        >>> plain_windows([(8, 8), (8, 8)]), plain_windows([(4, 8), (4, 8)]), plain_windows([(16, 16), (8, 8)])
        (8, [4, 8], [[16, 16], [8, 8]])
    """
    if len(set(windows)) == 1:
        return plain_pair(windows[0])
    # As many integers as there are axes would be read as one window.
    return [list(window) if len(windows) == len(window) else plain_pair(window) for window in windows]


def in_words(lengths: Lengths) -> str:
    """Lengths in a message: "8 x 16"."""
    return " x ".join(map(str, lengths))
