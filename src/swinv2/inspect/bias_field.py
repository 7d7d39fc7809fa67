"""The position bias as a field: how much a head prefers keys by where they lie from the query.

In: the bias table of a block. Out: the same by direction, as one looks at an image, and a picture of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from swinv2.drawing.paper import DPI, axes_at, printable, save
from swinv2.ops.windows import Pair

HEADS_ACROSS = 8
"""So many heads stand in a row of a picture."""


@dataclass(frozen=True)
class BiasField:
    """The position bias of a block.

    Attributes:
        title: Which block, in words.
        values: Of each head, what is added to the logit of a key that lies so many tokens below and to the right of its
            query: [head, down + Wh - 1, right + Ww - 1].
        window: The windows (height, width) in tokens.
        learned_window: The window in which the bias was learned.
    """

    title: str
    values: Float[np.ndarray, "heads field_height field_width"]
    window: Pair
    learned_window: Pair


def by_direction(bias_table: Float[Tensor, "heads table_height table_width"]) -> np.ndarray:
    """Turns a bias table, which is ordered by query less key, into a field by where the key lies from the query.

    Args:
        bias_table: (heads, 2 Wh - 1, 2 Ww - 1), as `ContinuousPositionBias` returns it.
    """
    return bias_table.detach().float().cpu().flip(1, 2).numpy()


def draw_bias(fields: Sequence[BiasField], path: Path, title: str = "", is_compared: bool = False) -> None:
    """Draws position biases, a tile for each head.

    Drawn is the bias less its mean over the head's field: what is added to all keys alike changes no attention weight.
    The field of a window that is larger than the one in which it was learned has a frame around what was learned.

    Args:
        fields: The blocks.
        path: The PNG file; one that exists is replaced.
        title: What to write above.
        is_compared: Whether the fields are those of one block for several windows: then they have one scale of colours,
            whose zero is the bias of the query itself, the same for every window.
    """
    save(_figure_of_bias(fields, title, is_compared), path, cut=True)


def _figure_of_bias(fields: Sequence[BiasField], title: str, is_compared: bool = False) -> Figure:
    side, gap, head, heading, foot = 1.15, 0.22, 0.24, 0.36, 0.3
    lines = [-(-len(field.values) // HEADS_ACROSS) for field in fields]
    across = max(min(len(field.values), HEADS_ACROSS) for field in fields)
    # Ticks stand left of the first tile.
    indent = 0.5
    total_width = max(indent + across * (side + gap) + 0.8, 6.2)
    total_height = sum(line * (side + head) + heading + foot for line in lines) + 0.6
    figure = Figure((total_width, total_height), dpi=DPI, facecolor="white")
    if title:
        figure.text(0, 1, printable(title, 110), va="top", fontsize=11, parse_math=False)
    note = "how the bias changes the logit of a key so far below and right of its query, less "
    note += "what it adds to the query's own" if is_compared else "the head's mean"
    if any(map(_goes_beyond, fields)):
        note += "\ndashed: the distances of the window it was learned in"
    figure.text(0, 1 - 0.22 / total_height, note, va="top", fontsize=8.5, color="#555555")
    top = 0.6
    reliefs = [_relief(field, is_compared) for field in fields]
    limits = [max(float(np.abs(relief).max()), 1e-6) for relief in reliefs]
    for field, relative, limit, line_count in zip(fields, reliefs, limits, lines, strict=True):
        figure.text(0, 1 - (top + 0.04) / total_height, field.title, va="top", fontsize=9.5, weight="bold")
        limit = max(limits) if is_compared else limit
        image: Any = None
        for index, values in enumerate(relative):
            line, column = divmod(index, HEADS_ACROSS)
            below = top + heading + line * (side + head)
            axes = axes_at(figure, indent + column * (side + gap), below, side, side)
            image = _show(axes, values, field, limit)
            axes.set_title(f"head {index + 1}", fontsize=8, pad=2.5)
            if column:
                axes.set_yticklabels([])
            else:
                axes.set_ylabel("down, tokens", fontsize=7.5, labelpad=1)
            is_lowest = index + HEADS_ACROSS >= len(relative)
            if is_lowest:
                axes.set_xlabel("right, tokens", fontsize=7.5, labelpad=1)
            else:
                axes.set_xticklabels([])
        bar_left = indent + min(len(relative), across) * (side + gap)
        bar_axes = axes_at(figure, bar_left, top + heading, 0.1, side)
        bar: Any = figure.colorbar(image, cax=bar_axes)
        bar.set_label("logit", fontsize=8)
        bar.ax.tick_params(labelsize=7.5, length=2)
        bar.outline.set_visible(False)
        top += line_count * (side + head) + heading + foot
    return figure


def _goes_beyond(field: BiasField) -> bool:
    """Whether the field has distances that were not in the window it was learned in."""
    return any(window > learned for window, learned in zip(field.window, field.learned_window, strict=True))


def _relief(field: BiasField, is_from_the_query: bool) -> np.ndarray:
    """The bias of each head, less that of the query itself or less its mean."""
    if not is_from_the_query:
        return field.values - field.values.mean((1, 2), keepdims=True)
    down, right = field.window[0] - 1, field.window[1] - 1
    return field.values - field.values[:, down : down + 1, right : right + 1]


def _show(axes: Any, values: np.ndarray, field: BiasField, limit: float) -> Any:
    down, right = field.window[0] - 1, field.window[1] - 1
    extent = (-right - 0.5, right + 0.5, down + 0.5, -down - 0.5)
    image = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, extent=extent, interpolation="nearest")
    learned_down, learned_right = field.learned_window[0] - 1, field.learned_window[1] - 1
    if _goes_beyond(field):
        corner = (-learned_right - 0.5, -learned_down - 0.5)
        size = (2 * learned_right + 1, 2 * learned_down + 1)
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor="black", linewidth=1, linestyle=(0, (4, 2))))
    axes.set_xticks(sorted({-right, 0, right}))
    axes.set_yticks(sorted({-down, 0, down}))
    axes.tick_params(labelsize=7, length=2, pad=1.5)
    axes.set_aspect("auto")
    axes.spines[:].set_color("#bbbbbb")
    return image
