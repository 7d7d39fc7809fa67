"""Feature maps as colours: the three directions in which the tokens of a map differ most.

In: a map. Out: its first principal components, and a figure for several maps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from swinv2.drawing.paper import open_figure, printable, save

COMPONENTS = 3
"""One for each colour channel of an image."""

_FIRST_ROW = "First row:\nred = 1st,\ngreen = 2nd,\nblue = 3rd\ncomponent"
_ROWS = (f"{_FIRST_ROW}\n\n1st component", "2nd component", "3rd component")


@dataclass(frozen=True)
class Components:
    """The principal components of a map.

    Attributes:
        scores: Score of each token for each component; 0 if the map has fewer components than an image has colours.
        shares: Share of each component in the tokens' variance.
        channels: Channels of the map.
    """

    scores: Float[np.ndarray, "*map 3"]
    shares: Float[np.ndarray, "3"]
    channels: int


def principal_components(feature_map: Float[Tensor, "*map C"]) -> Components:
    """Finds the principal components of a map's tokens.

    The sign of a component is arbitrary; here its largest weight is positive, so the colours of a map do not change.

    Args:
        feature_map: The map of one image, (H, W, C), or of one video, (frames, H, W, C).
    """
    *grid, channels = feature_map.shape
    tokens = feature_map.double().flatten(0, -2)
    centred = tokens - tokens.mean(0)
    _, spread, directions = torch.linalg.svd(centred, full_matrices=False)
    directions = directions[:COMPONENTS]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * torch.where(largest < 0, -1.0, 1.0)
    missing = (0, COMPONENTS - len(directions))
    scores = F.pad(centred @ directions.T, missing).view(*grid, COMPONENTS)
    variance = spread.square()
    # A constant map has no variance, and shares of 0.
    shares = F.pad(variance[:COMPONENTS] / (variance.sum() or 1.0), missing)
    return Components(scores.numpy(), shares.numpy(), channels)


def as_colours(scores: Float[np.ndarray, "*map 3"]) -> Float[np.ndarray, "*map 3"]:
    """Scales each component from its 1st to its 99th percentile to colours from 0 to 1; 0.5 if it is constant."""
    low, high = np.percentile(scores.reshape(-1, COMPONENTS), (1, 99), axis=0)
    spread = high - low
    scaled = (scores - low) / np.where(spread > 0, spread, 1.0)
    return np.where(spread > 0, np.clip(scaled, 0.0, 1.0), 0.5)


def draw_components(
    maps: Mapping[str, Components],
    rgb: np.ndarray,
    token_sizes: Mapping[str, tuple[int, int]],
    path: Path,
    title: str,
) -> None:
    """Draws the components of maps, a column for each map, beside the image.

    Args:
        maps: Components by the name of their map.
        rgb: The image that the model saw, (H, W, 3) of eight bits.
        token_sizes: For each map, the size (height, width) of a token in pixels of that image.
        path, title: The PNG file, which may exist, and the figure's title.
    """
    height, width = rgb.shape[:2]
    tile = (1.5 * min(1.0, width / height), 1.5 * min(1.0, height / width))
    figure = open_figure((tile[0] + 0.15) * (len(maps) + 1) + 0.5, (tile[1] + 0.33) * (1 + len(_ROWS)) + 0.9)
    grid: Any = figure.subplots(1 + len(_ROWS), len(maps) + 1, squeeze=False)
    grid[0, 0].imshow(rgb, extent=(0, width, height, 0), interpolation="nearest")
    grid[0, 0].set_title(f"input of\nthe model\n{width} x {height} pixels", fontsize=8.5)
    for axes, name in zip(grid[1:, 0], _ROWS, strict=True):
        axes.axis("off")
        axes.text(width, height / 2, name, ha="right", va="center", fontsize=9)
    for column, (name, components) in enumerate(maps.items(), 1):
        (down, across), (token_height, token_width) = components.scores.shape[:2], token_sizes[name]
        extent = (0, across * token_width, down * token_height, 0)
        options: dict[str, Any] = {"extent": extent, "interpolation": "nearest"}
        grid[0, column].imshow(as_colours(components.scores), **options)
        heading = f"{name.replace('stage', 'stage ')}\n{across} x {down} tokens\n{components.channels} channels"
        grid[0, column].set_title(heading, fontsize=8.5)
        one_by_one = components.scores.transpose(2, 0, 1)
        for axes, scores, share in zip(grid[1:, column], one_by_one, components.shares, strict=True):
            limit = max(float(np.abs(scores).max()), 1e-12)
            axes.imshow(scores, cmap="RdBu_r", vmin=-limit, vmax=limit, **options)
            axes.set_title(f"{share:.0%} of the variance", fontsize=8)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    note = "tokens of one colour are alike; red and blue: above and below the mean"
    figure.suptitle(f"{printable(title, 110)}\n{note}", fontsize=9.5)
    save(figure, path)
