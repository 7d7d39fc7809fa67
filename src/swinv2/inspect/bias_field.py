"""The position bias as a field: how much a head prefers a key by its position relative to the query.

In: the bias table of a block. Out: the same values, ordered by direction in the image and in time, and a figure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from torch import Tensor

from swinv2.config import StageSpec
from swinv2.drawing.paper import Tiles, save, style_tile, tile_blocks
from swinv2.layers.block import SwinTransformerBlock
from swinv2.lengths import Lengths
from swinv2.ops.backends import EAGER

OVER_TIME = "by tokens later"
"""The heading of the tile of a video model's bias for keys at the query's place."""


@dataclass(frozen=True)
class BiasField:
    """The position bias of a block.

    Attributes:
        title: Name of the block, in words.
        values: [head, down + Wh - 1, right + Ww - 1] is added to the logit of the key that is `down` tokens below the
            query and `right` tokens to the right of it; of a video, [head, later + Wt - 1, ...] to that of a key which
            is also `later` tokens after it in time.
        window: The windows (height, width), or (frames, height, width), in tokens.
        learned_window: The window in which the bias was learned.
    """

    title: str
    values: Float[np.ndarray, "heads *field"]
    window: Lengths
    learned_window: Lengths


def by_direction(bias_table: Float[Tensor, "heads *table"]) -> np.ndarray:
    """Reorders a bias table: from query minus key to key minus query.

    Args:
        bias_table: (heads, 2 Wh - 1, 2 Ww - 1), or with 2 Wt - 1 before for videos, from `ContinuousPositionBias`.
    """
    return bias_table.detach().float().cpu().flip(*range(1, bias_table.ndim)).numpy()


@torch.no_grad()
def field_of(block: SwinTransformerBlock, spec: StageSpec, title: str) -> BiasField:
    """The position bias of a block of a stage, with the windows that it has now."""
    attention = block.attention.self
    table = attention.bias_table(torch.empty(0, device=attention.logit_scale.device), EAGER)
    return BiasField(title, by_direction(table), spec.window, spec.learned_window)


def draw_bias(fields: Sequence[BiasField], path: Path, title: str, is_compared: bool = False) -> None:
    """Draws position biases, a tile for each head.

    Of a video, these tiles are for keys at the query's time; a tile before them has, for all heads, the bias of the
    keys at the query's place.

    The figure shows the bias minus its mean over the head's field: a constant that is added to the logits of all keys
    changes no attention weight. If a window is larger than its learned window, a frame marks the learned distances.

    Args:
        fields: The blocks.
        path, title: The PNG file, which may exist, and the figure's title.
        is_compared: Whether the fields are those of one block for several windows. They then have one colour scale, and
            its zero is the bias of the query itself, which is the same for every window.
    """
    note = "position bias of a key, by its distance below and right of the query, minus "
    note += "the bias of the query itself" if is_compared else "the head's mean"
    if any(len(field.window) > 2 for field in fields):
        note += f"\nheads: keys at the query's time; {OVER_TIME!r}: keys at its place, a line for each head"
    if any(_goes_beyond(field.window, field.learned_window) for field in fields):
        note += "\ndashed: the distances in the learned window"
    reliefs = [_bias_relief(field, is_compared) for field in fields]
    limits = [max(float(np.abs(relief).max()), 1e-6) for relief in reliefs]
    if is_compared:
        limits = [max(limits)] * len(limits)
    blocks: list[Tiles] = []
    for field, relief, limit in zip(fields, reliefs, limits, strict=True):
        colours = ScalarMappable(Normalize(-limit, limit), "RdBu_r")
        tiles: list[tuple[str, Callable[[Any], None]]] = []
        if len(field.window) > 2:
            tiles.append((OVER_TIME, partial(_show_bias_over_time, relief=relief, field=field, limit=limit)))
            relief = relief[:, field.window[0] - 1]
        tiles += [
            (f"head {index}", partial(_show_bias, values=values, field=field, colours=colours))
            for index, values in enumerate(relief, 1)
        ]
        blocks.append(Tiles(field.title, tiles, colours))
    save(tile_blocks(blocks, title, note, "logit"), path, cut=True)


def _goes_beyond(window: Lengths, learned_window: Lengths) -> bool:
    """Whether a window has distances along an axis that the learned window does not have."""
    return any(length > learned for length, learned in zip(window, learned_window, strict=True))


def _bias_relief(field: BiasField, is_from_the_query: bool) -> np.ndarray:
    """The bias of each head, minus the bias of the query itself or minus the mean."""
    axes = tuple(range(1, field.values.ndim))
    of_query = field.values[(slice(None), *(slice(length - 1, length) for length in field.window))]
    return field.values - (of_query if is_from_the_query else field.values.mean(axes, keepdims=True))


def _show_bias_over_time(axes: Any, relief: np.ndarray, field: BiasField, limit: float) -> None:
    """Draws the position bias (heads, *field) of the keys at the query's place, a line for each head, with the learned
    window as dashed lines."""
    later, down, right = (length - 1 for length in field.window)
    values = relief[:, :, down, right]
    axes.plot(range(-later, later + 1), values.T, linewidth=0.8, alpha=0.8, marker=".", markersize=2)
    if _goes_beyond(field.window[:1], field.learned_window[:1]):
        for edge in (-1, 1):
            axes.axvline(edge * (field.learned_window[0] - 0.5), color="black", linewidth=1, linestyle=(0, (4, 2)))
    axes.set(xlim=(-later - 0.5, later + 0.5), ylim=(-1.05 * limit, 1.05 * limit), xticks=sorted({-later, 0, later}))
    axes.set_ylabel("logit", fontsize=7.5, labelpad=1)
    style_tile(axes)


def _show_bias(axes: Any, values: np.ndarray, field: BiasField, colours: ScalarMappable) -> None:
    """Draws the position bias of one head, with the learned window as a dashed line."""
    down, right = (length - 1 for length in field.window[-2:])
    extent = (-right - 0.5, right + 0.5, down + 0.5, -down - 0.5)
    axes.imshow(values, cmap=colours.cmap, norm=colours.norm, extent=extent, interpolation="nearest", aspect="auto")
    if _goes_beyond(field.window[-2:], field.learned_window[-2:]):
        learned_down, learned_right = (length - 1 for length in field.learned_window[-2:])
        corner = (-learned_right - 0.5, -learned_down - 0.5)
        size = (2 * learned_right + 1, 2 * learned_down + 1)
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor="black", linewidth=1, linestyle=(0, (4, 2))))
    axes.set(xticks=sorted({-right, 0, right}), yticks=sorted({-down, 0, down}))
    axes.set_xlabel("right, tokens", fontsize=7.5, labelpad=1)
    axes.set_ylabel("down, tokens", fontsize=7.5, labelpad=1)
    style_tile(axes)
