"""The attention of a token, and feature maps, over the frames of a clip.

In: the attention of a token of a video, or principal components of maps, and the frames that the model saw. Out: a
figure whose columns are places in time. A place in time is a patch of some frames, one of which is shown.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import PercentFormatter

from swinv2.drawing.paper import Tiles, open_figure, printable, save, style_tile, tile_blocks
from swinv2.inspect.attention_map import COLOURS, TOKEN_COLOUR, TokenAttention, overlay, show_with_window
from swinv2.inspect.components import Components, as_colours
from swinv2.lengths import Pair

SHARES = "by place in time"
"""The heading of the tile with the weights of all heads, summed over each place in time."""

_ACROSS = 9
"""Tiles in a row."""

_MOST_COLUMNS = 8
"""Columns of feature maps: more places in time are left out evenly."""

_LEAST_WIDTH = 8.0
"""Inches: the title needs them."""


def shares_over_time(attention: TokenAttention) -> Float[np.ndarray, "heads times"]:
    """The sum of a token's weights for the tokens of each place in time, for each head."""
    return attention.weights.sum((2, 3))


def draw_attention_over_time(
    attentions: Mapping[str, TokenAttention],
    frames: np.ndarray,
    seconds: Sequence[float],
    token_sizes: Mapping[str, Pair],
    path: Path,
    title: str,
) -> None:
    """Draws the attention of a token of a video: for each block, how much of it each head gives to each place in time,
    and the mean of the heads over a frame of each of these places.

    Args:
        attentions: Attention of the token, by the name of the block in words.
        frames: A frame that the model saw for each place in time, (times, H, W, 3) of eight bits.
        seconds: The time of each of these frames.
        token_sizes: For each block, the size (height, width) of a token in pixels of a frame.
        path, title: The PNG file, which may exist, and the figure's title.
    """
    note = "colours: mean of heads, over the frame in grey · red: the token · yellow: tokens that it may attend to"
    if any((attention.window != attention.visible).any() for attention in attentions.values()):
        note += " (dotted: the rest of its window)"
    note += (
        f" · frames without colours: times outside its window\n{SHARES}: share of the weight, a line for each head, "
    )
    note += "black for their mean; the grey bar is the token's time"
    blocks: list[Tiles] = []
    for name, attention in attentions.items():
        mean = attention.weights.mean(0)
        most = float(mean.max())
        tiles = [(SHARES, _shares_tile(attention, seconds))]
        for place, (frame, time) in enumerate(zip(frames, seconds, strict=True)):
            tiles.append((f"{time:.2f} s", _frame_tile(attention, place, frame, token_sizes[name], most)))
        blocks.append(Tiles(name, tiles, ScalarMappable(Normalize(0, 100 * most), COLOURS)))
    save(tile_blocks(blocks, title, note, "weight, %", across=_ACROSS), path, cut=True)


def _shares_tile(attention: TokenAttention, seconds: Sequence[float]) -> Callable[[Any], None]:
    """Draws the weight of each place in time, a line for each head."""
    shares = shares_over_time(attention)

    def draw(axes: Any) -> None:
        places = range(shares.shape[1])
        axes.axvline(attention.token[0], color="#cccccc", linewidth=3)
        axes.plot(places, shares.T, linewidth=0.7, alpha=0.7, marker=".", markersize=2)
        axes.plot(places, shares.mean(0), color="black", linewidth=1.5, marker="o", markersize=2)
        axes.set(xlim=(-0.5, shares.shape[1] - 0.5), ylim=(0, 1.05 * float(shares.max())))
        ends = sorted({0, shares.shape[1] - 1})
        axes.set_xticks(ends, [f"{seconds[place]:.2f} s" for place in ends])
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylabel("share", fontsize=7.5, labelpad=1)
        style_tile(axes)

    return draw


def _frame_tile(
    attention: TokenAttention, place: int, frame: np.ndarray, token_size: Pair, most: float
) -> Callable[[Any], None]:
    """Draws the mean of the heads over the frame of a place in time."""
    here = attention.at_time(place)
    mixed = overlay(frame, here.weights.mean(0), here.visible, token_size, most)
    has_token = place == attention.token[0]

    def draw(axes: Any) -> None:
        show_with_window(axes, mixed, here, token_size, has_token=has_token)
        if has_token:
            axes.spines[:].set(color=TOKEN_COLOUR, linewidth=1.5)

    return draw


def draw_components_over_time(
    maps: Mapping[str, Components],
    frames: np.ndarray,
    seconds: Sequence[float],
    token_sizes: Mapping[str, Pair],
    path: Path,
    title: str,
) -> None:
    """Draws the first three components of maps of a video as colours, a row for each map, below the frames.

    Args:
        maps: Components by the name of their map, of all places in time together.
        frames, seconds, token_sizes: See `draw_attention_over_time`.
        path, title: The PNG file, which may exist, and the figure's title.
    """
    height, width = frames.shape[1:3]
    places = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _MOST_COLUMNS)).round().astype(int))
    tile = (1.5 * min(1.0, width / height), 1.5 * min(1.0, height / width))
    figure = open_figure(
        max((tile[0] + 0.08) * len(places) + 1.4, _LEAST_WIDTH), (tile[1] + 0.08) * (1 + len(maps)) + 0.9
    )
    grid: Any = figure.subplots(1 + len(maps), len(places), squeeze=False)
    for axes, place in zip(grid[0], places, strict=True):
        axes.imshow(frames[place], extent=(0, width, height, 0), interpolation="nearest")
        axes.set_title(f"{seconds[place]:.2f} s", fontsize=8.5)
    names = [f"input of\nthe model\n{width} x {height}"]
    for row, (name, components) in zip(grid[1:], maps.items(), strict=True):
        (down, across), (token_height, token_width) = components.scores.shape[1:3], token_sizes[name]
        colours = as_colours(components.scores)
        extent = (0, across * token_width, down * token_height, 0)
        for axes, place in zip(row, places, strict=True):
            axes.imshow(colours[place], extent=extent, interpolation="nearest")
        share = f"{components.shares.sum():.0%} of the variance"
        names.append(f"{name.replace('stage', 'stage ')}\n{across} x {down} tokens\n{share}")
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8.5)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    note = "red, green, blue: 1st, 2nd, 3rd component of the tokens of all frames; tokens of one colour are alike"
    figure.suptitle(f"{printable(title, 110)}\n{note}", fontsize=9.5)
    save(figure, path)
