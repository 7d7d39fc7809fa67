"""What a file tells of windows: coordinates, pair indices and masks of regions that some libraries store.

In: buffers of a file. Out: for each stage the window, the window in which its position bias was learned, and the size
of its map, as far as they can be read; and the same buffers made from sizes, for files that must have them. A buffer is
believed only if it is, number by number, what the sizes that it shows make. This module knows no name of a tensor.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from swinv2.convert.dialects.rules import Buffer
from swinv2.errors import UsageError
from swinv2.lengths import Pair

_TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Of stored coordinates, absolute; 1e-5 for wider types."""

OUTSIDE = -100.0
"""What the authors add to the logit of two tokens of different regions."""


Shown = TypeVar("Shown", int, Pair)


@dataclass(frozen=True)
class Seen:
    """What the buffers of a stage show.

    Attributes:
        window: Size (height, width) in tokens; None if nothing shows it.
        pretrained: Window in which the position bias was learned; None if nothing shows it.
        windows: How many windows its map has; None if nothing shows it.
    """

    window: Pair | None = None
    pretrained: Pair | None = None
    windows: int | None = None


def coordinates(window: Pair, pretrained: Pair) -> Float[Tensor, "1 table_height table_width 2"]:
    """Log-spaced relative coordinates as the authors, torchvision and mmpretrain store them, to the last bit.

    Args:
        window: Size in tokens.
        pretrained: The window by which they are normalised.

    Source:
        microsoft/Swin-Transformer, models/swin_transformer_v2.py, `WindowAttention`.
    """
    axes = [torch.arange(1 - length, length, dtype=torch.float32) for length in window]
    table = torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1)[None]
    for axis in range(2):
        table[..., axis] /= max(pretrained[axis] - 1, 1)
    table *= 8
    return torch.sign(table) * torch.log2(torch.abs(table) + 1.0) / 3.0


def pairs(window: Pair) -> Int[Tensor, "tokens tokens"]:
    """Row of the coordinate table, counted through, for every pair of tokens of a window."""
    axes = [torch.arange(length) for length in window]
    tokens = torch.stack(torch.meshgrid(axes, indexing="ij")).flatten(1)
    down, across = tokens[:, :, None] - tokens[:, None, :]
    return (down + window[0] - 1) * (2 * window[1] - 1) + across + window[1] - 1


def regions(grid: Pair, window: Pair, shift: Pair) -> Float[Tensor, "windows tokens tokens"]:
    """What the authors add to the logits of a shifted block: 0 inside a region, -100 across regions.

    Args:
        grid: Size of the map, a multiple of the window.
        window: Size of the windows.
        shift: Cyclic shift.
    """
    rows, columns = (
        (torch.arange(length) >= length - side).long() + (torch.arange(length) >= length - step).long()
        for length, side, step in zip(grid, window, shift, strict=True)
    )
    labels = (3 * rows[:, None] + columns).view(grid[0] // window[0], window[0], grid[1] // window[1], window[1])
    labels = labels.transpose(1, 2).flatten(0, 1).flatten(1)
    differs = labels[:, None, :] != labels[:, :, None]
    return torch.zeros(differs.shape).masked_fill(differs, OUTSIDE)


def examine(buffers: Sequence[Buffer], stages: int) -> list[Seen]:
    """Reads what the buffers show, and holds each to what it must be.

    Args:
        buffers: Everything in the file that is not learned.
        stages: Number of stages.

    Raises:
        UsageError: A buffer is not what it must be or does not show which window it is of, or two of a stage disagree.
    """
    seen: list[Seen] = []
    for stage in range(stages):
        here = [buffer for buffer in buffers if buffer.stage == stage]
        windows = {_window(buffer) for buffer in here if buffer.kind == "coordinates"}
        windows |= {_window_of_pairs(buffer) for buffer in here if buffer.kind == "pairs"} if not windows else set()
        window = _only(windows, "window", here)
        pretrained: set[Pair] = set()
        masks: set[int] = set()
        for buffer in here:
            if buffer.kind == "coordinates" and window is not None:
                pretrained.add(_pretrained(buffer, window))
            elif buffer.kind == "pairs" and window is not None:
                _check_pairs(buffer, window)
            elif buffer.kind == "regions":
                masks.add(_count_windows(buffer, window))
            elif buffer.kind == "key bias" and bool(buffer.tensor.any()):
                raise UsageError(
                    f"{buffer.name} is not zero; keys have no bias in Swin Transformer V2, and this package's have "
                    "none. The file is damaged, or of another network."
                )
        seen.append(Seen(window, _only(pretrained, "pre-training window", here), _only(masks, "map", here)))
    return seen


def _only(found: set[Shown], what: str, buffers: Sequence[Buffer]) -> Shown | None:
    if len(found) > 1:
        raise UsageError(
            f"the blocks of stage {buffers[0].stage + 1} disagree about their {what}: {sorted(found)}. One of "
            f"{', '.join(buffer.name for buffer in buffers)} is damaged."
        )
    return next(iter(found), None)


def odd(buffer: Buffer, reason: str) -> UsageError:
    """The refusal of a buffer that is not what it must be.

    Args:
        buffer: The buffer.
        reason: What it is, to stand after its name.
    """
    return UsageError(
        f"{buffer.name} is {reason}. It follows from the sizes of a model: the file is damaged, or of another network."
    )


def _window(buffer: Buffer) -> Pair:
    shape = tuple(buffer.tensor.shape)
    if len(shape) != 4 or shape[0] != 1 or shape[3] != 2 or not shape[1] % 2 or not shape[2] % 2:
        raise odd(buffer, f"of shape {list(shape)}; expected [1, 2 * height - 1, 2 * width - 1, 2] of a window")
    return (shape[1] + 1) // 2, (shape[2] + 1) // 2


def _window_of_pairs(buffer: Buffer) -> Pair:
    if buffer.tensor.is_floating_point() or buffer.tensor.is_complex():
        raise odd(buffer, f"of type {buffer.tensor.dtype}; expected integers")
    tokens = math.isqrt(buffer.tensor.numel())
    if tokens**2 != buffer.tensor.numel() or not tokens:
        raise odd(buffer, f"of shape {list(buffer.tensor.shape)}; expected a pair of tokens of a window each")
    sizes = [(tokens // width, width) for width in range(1, tokens + 1) if tokens % width == 0]
    table = buffer.tensor.reshape(tokens, tokens)
    fitting = [window for window in sizes if torch.equal(table[:, 0].long(), pairs(window)[:, 0])]
    if len(fitting) > 1:
        raise UsageError(
            f"{buffer.name} is the table of pairs of windows of {' and of '.join(f'{h} x {w}' for h, w in fitting)}: a "
            "row of tokens and a column have the same, and no coordinates beside it tell them apart. Give a file with "
            "the coordinates, relative_coords_table."
        )
    if not fitting:
        raise odd(buffer, "not the table of pairs of any window")
    return fitting[0]


def _pretrained(buffer: Buffer, window: Pair) -> Pair:
    if not buffer.tensor.is_floating_point():
        raise odd(buffer, f"of type {buffer.tensor.dtype}; expected numbers with a point")
    table = buffer.tensor.double()
    found: list[int] = []
    for axis, length in enumerate(window):
        # The authors' code divides zero by zero in a window of one token; it shows nothing.
        largest = float(table[0, -1, -1, axis]) if length > 1 else 0.0
        rate = (2 ** (3 * largest) - 1) / 8 if 0 < largest < 10 else 0.0
        found.append(1 + round((length - 1) / rate) if rate else length)
    pretrained = (found[0], found[1])
    expected = coordinates(window, pretrained).double()
    # A window of one token has no other coordinate than zero, whatever is stored for it.
    read = [axis for axis, length in enumerate(window) if length > 1]
    tolerance = _TOLERANCE.get(buffer.tensor.dtype, 1e-5)
    if not torch.allclose(table[..., read], expected[..., read], rtol=0, atol=tolerance):
        raise odd(buffer, f"not the coordinates of a window of {window[0]} x {window[1]}, learned in any other")
    return pretrained


def _check_pairs(buffer: Buffer, window: Pair) -> None:
    expected = pairs(window)
    tensor = buffer.tensor
    if tensor.is_floating_point() or tensor.is_complex() or tensor.numel() != expected.numel():
        raise odd(buffer, f"{tensor.dtype} of shape {list(tensor.shape)}; expected integers {list(expected.shape)}")
    if not torch.equal(tensor.long().view(expected.shape), expected):
        raise odd(buffer, f"not the table of pairs of a window of {window[0]} x {window[1]}")


def _count_windows(buffer: Buffer, window: Pair | None) -> int:
    shape = list(buffer.tensor.shape)
    if len(shape) != 3 or shape[1] != shape[2] or (window is not None and shape[1] != window[0] * window[1]):
        raise odd(buffer, f"of shape {shape}; expected windows, tokens of a window, tokens of a window")
    if not bool(((buffer.tensor == 0) | (buffer.tensor == OUTSIDE)).all()):
        raise odd(buffer, f"not made of 0 and {OUTSIDE:g}")
    return shape[0]
