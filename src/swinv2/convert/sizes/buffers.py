"""Tables that libraries store beside learned tensors and compute from sizes: coordinates, pair indices, region masks.

In: the tables in a file. Out: the windows that they show. Also, in: a stage. Out: its tables, computed from its sizes,
to write them to a file or to compare them with those in a file. This module knows no name of a tensor.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from swinv2.config import StageSpec
from swinv2.convert.dialects.rules import Buffer
from swinv2.convert.sizes.metadata import SizeHints
from swinv2.lengths import Pair, plain_pair

OUTSIDE = -100.0
"""The authors' mask value: it is added to the logit of two tokens of different regions."""


def coordinates(window: Pair, pretrained: Pair) -> Float[Tensor, "1 table_height table_width 2"]:
    """Log-spaced relative coordinates, bit for bit as the authors, torchvision and mmpretrain store them.

    Args:
        window: Size in tokens.
        pretrained: Window by which the coordinates are normalised.

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
    """Index into the flattened coordinate table for every pair of tokens of a window."""
    axes = [torch.arange(length) for length in window]
    tokens = torch.stack(torch.meshgrid(axes, indexing="ij")).flatten(1)
    down, across = tokens[:, :, None] - tokens[:, None, :]
    return (down + window[0] - 1) * (2 * window[1] - 1) + across + window[1] - 1


def regions(grid: Pair, window: Pair, shift: Pair) -> Float[Tensor, "windows tokens tokens"]:
    """The authors' mask, added to the logits of a shifted block: 0 inside a region, -100 across regions.

    Args:
        grid: Size of the map; it is padded to a multiple of the window.
        window: Size of the windows.
        shift: Cyclic shift.
    """
    counts = [-(-length // side) for length, side in zip(grid, window, strict=True)]
    rows, columns = (
        (torch.arange(count * side) >= count * side - side).long()
        + (torch.arange(count * side) >= count * side - step).long()
        for count, side, step in zip(counts, window, shift, strict=True)
    )
    labels = (3 * rows[:, None] + columns).view(counts[0], window[0], counts[1], window[1])
    labels = labels.transpose(1, 2).flatten(0, 1).flatten(1)
    differs = labels[:, None, :] != labels[:, :, None]
    return torch.zeros(differs.shape).masked_fill(differs, OUTSIDE)


def make_table(kind: str, spec: StageSpec, block: int) -> Tensor | None:
    """Computes a table of a block.

    Args:
        kind: "coordinates", "pairs" or "regions", as in `Buffer`.
        spec: The block's stage.
        block: Number of the block in the stage.

    Returns:
        The table; None for the region mask of a block that is not shifted, since it has none.
    """
    if kind == "coordinates":
        return coordinates(spec.window, spec.learned_window)
    if kind == "pairs":
        return pairs(spec.window)
    return regions(spec.grid, spec.window, spec.shift) if block % 2 and any(spec.shift) else None


def read_tables(buffers: Sequence[Buffer], stages: int, patch: Pair) -> SizeHints:
    """Reads sizes from the first table of each kind of each stage; `verify` later compares all tables with the sizes.

    Args:
        buffers: The tensors in the file that are not learned.
        stages: Number of stages.
        patch: Size of a patch in pixels.

    Returns:
        The window of each stage and its learned window, if the tables of every stage show them; and the image size, if
        the mask of a shifted block shows it.
    """
    image_size: int | list[int] | None = None
    windows: list[Pair] = []
    learned: list[int | Pair] = []
    for stage in range(stages):
        here = {buffer.kind: buffer.tensor for buffer in reversed(buffers) if buffer.stage == stage}
        window = None
        if "coordinates" in here:
            window = _window_of_coordinates(here["coordinates"])
        elif "pairs" in here:
            window = _window_of_pairs(here["pairs"])
        if window is None:
            return SizeHints()
        windows.append(window)
        grid = _grid_of_mask(here["regions"], window) if image_size is None and "regions" in here else None
        if grid is not None:
            image_size = plain_pair(((grid[0] << stage) * patch[0], (grid[1] << stage) * patch[1]))
        if "coordinates" in here:
            pretrained = _pretrained(here["coordinates"], window)
            learned.append(0 if pretrained == window else pretrained)
    return SizeHints(image_size, windows, learned if len(learned) == stages else None)


def _window_of_coordinates(table: Tensor) -> Pair | None:
    """The window, from the table's shape [1, 2 * height - 1, 2 * width - 1, 2]."""
    if table.ndim != 4 or table.shape[::3] != (1, 2) or not table.shape[1] % 2 or not table.shape[2] % 2:
        return None
    return (table.shape[1] + 1) // 2, (table.shape[2] + 1) // 2


def _window_of_pairs(table: Tensor) -> Pair | None:
    """The only window with these pairs. None if there are several: a row and a column of tokens have the same pairs."""
    tokens = math.isqrt(table.numel())
    sizes = [(tokens // width, width) for width in range(1, tokens + 1) if tokens % width == 0]
    fitting = [size for size in sizes if torch.equal(table.flatten().long(), pairs(size).flatten())]
    return fitting[0] if len(fitting) == 1 else None


def _grid_of_mask(mask: Tensor, window: Pair) -> Pair | None:
    """The only grid with this mask of a shifted block; None if there is none, or several."""
    count, shift = len(mask), (window[0] // 2, window[1] // 2)
    counts = [(count // across, across) for across in range(1, count + 1) if count % across == 0]
    grids = [(down * window[0], across * window[1]) for down, across in counts]
    if mask.shape[1:] != (math.prod(window),) * 2:
        return None
    fitting = [grid for grid in grids if torch.equal(mask.float(), regions(grid, window, shift))]
    return fitting[0] if len(fitting) == 1 else None


def _pretrained(table: Tensor, window: Pair) -> Pair:
    """The learned window, from the last coordinate of each axis, which is the largest."""
    found: list[int] = []
    for axis, length in enumerate(window):
        largest = float(table[0, -1, -1, axis])
        # In a window of one token the authors' code divides zero by zero; the result shows no size.
        rate = (2 ** (3 * largest) - 1) / 8 if 0 < largest < 10 else 0.0
        found.append(1 + round((length - 1) / rate) if rate else length)
    return found[0], found[1]
