"""Tables that libraries store beside learned tensors and compute from sizes: coordinates, pair indices, region masks.

In: the tables in a file. Out: the windows that they show. Also, in: a stage. Out: its tables, computed from its sizes,
and whether a table in a file is one of them. This module knows no name of a tensor.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from swinv2.config import StageSpec
from swinv2.convert.dialects.rules import Buffer
from swinv2.convert.hints import SizeHints
from swinv2.lengths import Lengths, Pair, plain_pair

OUTSIDE = -100.0
"""The authors' mask value: it is added to the logit of two tokens of different regions."""
_TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Absolute tolerance of stored coordinates, by type; 1e-5 for wider types."""


def make_table(kind: str, spec: StageSpec, block: int) -> Tensor | None:
    """Computes a table of a block, bit for bit as the authors, torchvision and mmpretrain store it.

    Args:
        kind: "coordinates": log-spaced relative coordinates, (1, 2 Wh - 1, 2 Ww - 1, 2). "pairs": for every pair of
            tokens of a window, the index of its coordinates in that table, (T, T). "regions": see `_region_mask`.
        spec: The block's stage.
        block: Number of the block in the stage.

    Returns:
        The table; None for the region mask of a block that is not shifted, since it has none.

    Source:
        microsoft/Swin-Transformer, models/swin_transformer_v2.py, `WindowAttention`.
    """
    if kind == "regions":
        return _region_mask(spec.grid, spec.window, spec.shift) if block % 2 and any(spec.shift) else None
    height, width = spec.window
    if kind == "pairs":
        axes = torch.arange(height), torch.arange(width)
        tokens = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
        down, across = tokens[:, :, None] - tokens[:, None, :]
        return (down + height - 1) * (2 * width - 1) + across + width - 1
    axes = [torch.arange(1 - length, length, dtype=torch.float32) for length in spec.window]
    table = torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1)[None]
    for axis in range(2):
        table[..., axis] /= max(spec.learned_window[axis] - 1, 1)
    table *= 8
    return torch.sign(table) * torch.log2(torch.abs(table) + 1.0) / 3.0


def _region_mask(grid: Lengths, window: Lengths, shift: Lengths) -> Float[Tensor, "windows tokens tokens"]:
    """The authors' mask, added to the logits of a shifted block: 0 inside a region, -100 across regions.

    The map is padded to a multiple of the window.
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


def is_table_of(spec: StageSpec, buffer: Buffer) -> bool:
    """Whether every number of a table in a file is that of the table of a stage."""
    found, tokens = buffer.tensor, math.prod(spec.window)
    windows = math.prod(-(-length // side) for length, side in zip(spec.grid, spec.window, strict=True))
    numbers = {
        "coordinates": 2 * math.prod(2 * side - 1 for side in spec.window),
        "pairs": tokens**2,
        "regions": windows * tokens**2,
    }
    # Checked before the table is computed: with nonsensical sizes it would not fit into memory.
    expected = make_table(buffer.kind, spec, buffer.block) if found.numel() == numbers[buffer.kind] else None
    if expected is None:
        return False
    values = found.double().flatten()
    if 1 in spec.window:
        # In a window of one token the authors' code divides zero by zero.
        values = values.nan_to_num(0.0)
    return torch.allclose(values, expected.double().flatten(), rtol=0, atol=_TOLERANCE.get(found.dtype, 1e-5))


def read_tables(buffers: Sequence[Buffer], stages: int, patch: Pair) -> SizeHints:
    """Reads sizes from the first table of each kind of each stage; all tables are compared with the sizes later.

    Returns:
        The window of each stage and its learned window, if every stage has a table of coordinates; and the image size,
        if the mask of a shifted block shows it.
    """
    image_size: int | list[int] | None = None
    windows: list[Pair] = []
    learned: list[int | Pair] = []
    for stage in range(stages):
        here = {buffer.kind: buffer.tensor for buffer in reversed(buffers) if buffer.stage == stage}
        table = here.get("coordinates")
        # Its shape is [1, 2 * height - 1, 2 * width - 1, 2].
        if table is None or table.ndim != 4 or table.shape[::3] != (1, 2) or not all(n % 2 for n in table.shape[1:3]):
            return SizeHints()
        window = (table.shape[1] + 1) // 2, (table.shape[2] + 1) // 2
        pretrained = _learned_window(table, window)
        windows.append(window)
        learned.append(0 if pretrained == window else pretrained)
        grid = _grid_of_mask(here["regions"], window) if image_size is None and "regions" in here else None
        if grid is not None:
            image_size = plain_pair(((grid[0] << stage) * patch[0], (grid[1] << stage) * patch[1]))
    return SizeHints(image_size, windows, learned)


def _grid_of_mask(mask: Tensor, window: Pair) -> Pair | None:
    """The only grid that fits the mask in a file; None if there is none, or several."""
    count, shift = len(mask), (window[0] // 2, window[1] // 2)
    counts = [(count // across, across) for across in range(1, count + 1) if count % across == 0]
    grids = [(down * window[0], across * window[1]) for down, across in counts]
    if mask.shape[1:] != (math.prod(window),) * 2:
        return None
    fitting = [grid for grid in grids if torch.equal(mask.float(), _region_mask(grid, window, shift))]
    return fitting[0] if len(fitting) == 1 else None


def _learned_window(table: Tensor, window: Pair) -> Pair:
    """Reads the learned window from a table in a file: from the last coordinate of each axis, which is the largest."""
    found: list[int] = []
    for axis, length in enumerate(window):
        largest = float(table[0, -1, -1, axis])
        # In a window of one token the authors' code divides zero by zero; the result shows no size.
        rate = (2 ** (3 * largest) - 1) / 8 if 0 < largest < 10 else 0.0
        found.append(1 + round((length - 1) / rate) if rate else length)
    return found[0], found[1]
