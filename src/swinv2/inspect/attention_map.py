"""The attention of a token, drawn over the image.

In: attention weights of all windows, from the backend "eager", and a token. Out: the token's weights, each at its
position on the map, and a figure. `ops.windows` gives the position of the token's window: the positions of the map's
tokens are padded, shifted and partitioned in the same way as the tokens.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from torch import Tensor

from swinv2.drawing.paper import Tiles, save, tile_blocks
from swinv2.lengths import Lengths, Pair
from swinv2.ops import windows
from swinv2.ops.windows import WindowPlan

Region = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""

COLOURS = "viridis"
TOKEN_COLOUR, WINDOW_COLOUR = "#ff2d2d", "#ffd400"


@dataclass(frozen=True)
class TokenAttention:
    """The attention of one token.

    Attributes:
        token: Place of the token on the map: row and column; of a video, place in time, row and column.
        weights: Attention weight of each head for each token of the map.
        window: The tokens of its window. A shifted window may consist of several parts at the edges of the map.
        visible: The tokens that it may attend to: those of its region.
        on_padding: For each head, the sum of the weights of padding tokens. The sum of `weights` and `on_padding` is 1.
    """

    token: Lengths
    weights: Float[np.ndarray, "heads *map"]
    window: Bool[np.ndarray, "*map"]
    visible: Bool[np.ndarray, "*map"]
    on_padding: Float[np.ndarray, "heads"]

    def at_time(self, place: int) -> "TokenAttention":
        """Of a video, the attention for the tokens at one place in time."""
        parts = self.weights[:, place], self.window[place], self.visible[place]
        return TokenAttention(self.token[1:], *parts, self.on_padding)


def token_attention(
    weights: Float[Tensor, "windows heads tokens tokens"], plan: WindowPlan, token: Lengths
) -> TokenAttention:
    """Puts the attention of a token back on the map.

    Args:
        weights: Attention weights of all windows of one image or video.
        plan: Windows and shift of the block.
        token: Place on the map; see `TokenAttention`.

    Raises:
        ValueError: The map has no such token, or the weights do not fit the plan.
    """
    if len(token) != len(plan.grid) or any(
        not 0 <= place < length for place, length in zip(token, plan.grid, strict=True)
    ):
        raise ValueError(f"token is {token}; the map has {plan.grid} tokens, which are counted from 0.")
    count = math.prod(plan.counts)
    if weights.shape[0] != count or weights.shape[2] != plan.tokens:
        raise ValueError(
            f"weights are {tuple(weights.shape)}; this plan has {count} windows of {plan.tokens} tokens, for one input."
        )
    # The positions on the padded map, partitioned into windows in the same way as the tokens.
    padded_grid, number = plan.padded_grid, math.prod(plan.padded_grid)
    positions = torch.arange(number).view(1, *padded_grid)
    wanted = positions[(0, *token)]
    positions = windows.partition(windows.shift(positions, plan), plan.window)
    index, query = (positions == wanted).nonzero()[0].tolist()

    def on_the_map(values: Tensor) -> np.ndarray:
        """Values of the window's tokens, each at its position on the map; 0 elsewhere."""
        padded = values.new_zeros((*values.shape[:-1], number))
        padded[..., positions[index]] = values
        return padded.unflatten(-1, padded_grid)[(..., *map(slice, plan.grid))].numpy()

    all_tokens, hidden = torch.ones(plan.tokens, dtype=torch.bool), plan.hidden_pairs(torch.device("cpu"))
    may_see = all_tokens if hidden is None else ~hidden[index, query]
    of_token = weights[index, :, query].double()
    on_map = on_the_map(of_token)
    on_padding = of_token.sum(-1).numpy() - on_map.reshape(len(on_map), -1).sum(1)
    return TokenAttention(token, on_map, on_the_map(all_tokens), on_the_map(may_see), on_padding)


def overlay(
    rgb: UInt8[np.ndarray, "H W 3"],
    weights: Float[np.ndarray, "h w"],
    visible: Bool[np.ndarray, "h w"],
    token_size: Pair,
    most: float,
) -> UInt8[np.ndarray, "H W 3"]:
    """Draws attention weights as colours over an image, which is pale grey where the token may not attend.

    Args:
        rgb: The image that the model saw.
        weights: Attention weight of each token of a map.
        visible: Whether the token may attend to each token of the map.
        token_size: Size (height, width) of a token in pixels.
        most: Weight of the brightest colour.
    """
    height, width = rgb.shape[:2]
    grey = (rgb @ np.array([0.299, 0.587, 0.114]))[..., None]

    def enlarged_to_pixels(values: np.ndarray) -> np.ndarray:
        return values.repeat(token_size[0], 0).repeat(token_size[1], 1)[:height, :width]

    colours = 255 * colormaps[COLOURS](enlarged_to_pixels(np.clip(weights / max(most, 1e-12), 0, 1)))[..., :3]
    mixed, pale = 0.45 * grey + 0.55 * colours, 110 + 0.5 * grey
    return np.where(enlarged_to_pixels(visible)[..., None], mixed, pale).round().clip(0, 255).astype(np.uint8)


def draw_attention(
    attentions: Mapping[str, TokenAttention],
    rgb: np.ndarray,
    token_sizes: Mapping[str, Pair],
    path: Path,
    title: str,
) -> None:
    """Draws the attention of a token: for each block, the image with the token and its window, the mean of the heads
    over the whole image, and each head, enlarged to the area around the window.

    Args:
        attentions: Attention of the token, by the name of the block in words.
        rgb: The image that the model saw, (H, W, 3) of eight bits.
        token_sizes: For each block, the size (height, width) of a token in pixels of that image.
        path, title: The PNG file, which may exist, and the figure's title.
    """
    note = "red: the token · yellow: tokens that it may attend to"
    if any((attention.window != attention.visible).any() for attention in attentions.values()):
        note += " (dotted: the rest of its window)"
    note += " · heads are enlarged; the weights of each head sum to 100% · the image below the colours is grey"
    blocks = [_attention_tiles(name, attention, rgb, token_sizes[name]) for name, attention in attentions.items()]
    save(tile_blocks(blocks, title, note, "weight, %", across=10), path, cut=True)


def _attention_tiles(title: str, attention: TokenAttention, rgb: np.ndarray, token_size: Pair) -> Tiles:
    """The tiles of a block in the figure of a token's attention."""
    most = float(attention.weights.max())
    around = _area_around(attention.window if attention.window.all() else attention.visible, token_size, rgb)

    def show(weights: np.ndarray, region: Region | None = None) -> Callable[[Any], None]:
        mixed = overlay(rgb, weights, attention.visible, token_size, most)
        return lambda axes: show_with_window(axes, mixed, attention, token_size, region)

    tiles = [
        ("image", lambda axes: show_with_window(axes, rgb, attention, token_size)),
        ("mean of heads", show(attention.weights.mean(0))),
        *((f"head {index}", show(weights, around)) for index, weights in enumerate(attention.weights, 1)),
    ]
    return Tiles(title, tiles, ScalarMappable(Normalize(0, 100 * most), COLOURS))


def show_with_window(
    axes: Any,
    shown: np.ndarray,
    attention: TokenAttention,
    token_size: Pair,
    region: Region | None = None,
    has_token: bool = True,
) -> None:
    """Shows an image, or only a region of it, with the token and its window.

    Args:
        axes: matplotlib's axes.
        shown: The image (H, W, 3).
        attention: The token and its window.
        token_size: Size (height, width) of a token in pixels of the image.
        region: The part of the image; None for all.
        has_token: Whether to mark the token; not in another frame of a video.
    """
    (height, width), (down, across) = shown.shape[:2], token_size
    axes.imshow(shown, extent=(0, width, height, 0), interpolation="nearest")
    for mask, style in ((attention.window & ~attention.visible, (0, (1, 1.5))), (attention.visible, "-")):
        xs, ys = mask_outline(mask)
        axes.plot(xs * across, ys * down, color=WINDOW_COLOUR, linewidth=1.3, linestyle=style)
    if has_token:
        y, x = attention.token
        corner = (x * across, y * down)
        axes.add_patch(Rectangle(corner, across, down, fill=False, edgecolor=TOKEN_COLOUR, linewidth=1.4))
    left, top, right, bottom = region or (0, 0, width, height)
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    axes.spines[:].set_color("#bbbbbb")


def mask_outline(mask: Bool[np.ndarray, "H W"]) -> tuple[Int[np.ndarray, "2 lines"], Int[np.ndarray, "2 lines"]]:
    """The outline of a window: edges between tokens inside and outside a mask, x and y of both ends, in tokens."""
    padded = np.pad(mask, 1)
    below_y, below_x = np.nonzero(padded[:-1] != padded[1:])
    beside_y, beside_x = np.nonzero(padded[:, :-1] != padded[:, 1:])
    xs = np.concatenate([[below_x - 1, below_x], [beside_x, beside_x]], 1)
    ys = np.concatenate([[below_y, below_y], [beside_y - 1, beside_y]], 1)
    return xs, ys


def _area_around(mask: Bool[np.ndarray, "H W"], token_size: Pair, rgb: np.ndarray) -> Region:
    """The area around a mask, in pixels: 1.5 times as large as the mask, square unless the image is smaller."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom = rows[0] * token_size[0], (rows[-1] + 1) * token_size[0]
    left, right = columns[0] * token_size[1], (columns[-1] + 1) * token_size[1]
    height, width = rgb.shape[:2]
    wanted = 1.5 * max(bottom - top, right - left)

    def span_of_area(start: float, stop: float, length: int) -> tuple[float, float]:
        size = min(wanted, length)
        begin = min(max((start + stop - size) / 2, 0.0), length - size)
        return begin, begin + size

    (top, bottom), (left, right) = span_of_area(top, bottom, height), span_of_area(left, right, width)
    return left, top, right, bottom
