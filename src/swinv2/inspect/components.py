"""Feature maps as colours: the three directions in which the tokens of a map differ most.

In: a map. Out: its first principal components, and a figure for several maps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from swinv2.drawing.paper import open_figure, printable, save

COMPONENTS = 3
"""One for each colour channel of an image."""

_ROWS = ("1st component", "2nd component", "3rd component")


@dataclass(frozen=True)
class Components:
    """The principal components of a map.

    Attributes:
        scores: Score of each token for each component; 0 if the map has fewer components than an image has colours.
        shares: Share of each component in the tokens' variance.
        channels: Channels of the map.
    """

    scores: Float[np.ndarray, "H W 3"]
    shares: Float[np.ndarray, "3"]
    channels: int


def principal_components(feature_map: Float[Tensor, "H W C"]) -> Components:
    """Finds the principal components of a map's tokens.

    The sign of a component is arbitrary; here its largest weight is positive, so the colours of a map do not change.

    Args:
        feature_map: The map of one image.
    """
    height, width, channels = feature_map.shape
    tokens = feature_map.double().flatten(0, 1)
    centred = tokens - tokens.mean(0)
    _, spread, directions = torch.linalg.svd(centred, full_matrices=False)
    directions = directions[:COMPONENTS]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * torch.where(largest < 0, -1.0, 1.0)
    scores = torch.zeros(height * width, COMPONENTS, dtype=torch.float64)
    scores[:, : len(directions)] = centred @ directions.T
    variance = spread.square()
    shares = torch.zeros(COMPONENTS, dtype=torch.float64)
    total = float(variance.sum())
    if total > 0:
        shares[: len(directions)] = variance[:COMPONENTS] / total
    return Components(scores.view(height, width, COMPONENTS).numpy(), shares.numpy(), channels)


def as_colours(scores: Float[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W 3"]:
    """Scales each component from its 1st to its 99th percentile to colours from 0 to 1; 0.5 if it is constant."""
    low, high = np.percentile(scores, (1, 99), axis=(0, 1))
    spread = high - low
    scaled = (scores - low) / np.where(spread > 0, spread, 1.0)
    return np.where(spread > 0, np.clip(scaled, 0.0, 1.0), 0.5)


def draw_components(
    maps: Mapping[str, Components],
    rgb: np.ndarray,
    tokens: Mapping[str, tuple[int, int]],
    path: Path,
    title: str = "",
) -> None:
    """Draws the components of maps, a column for each map, beside the image.

    Args:
        maps: Components by the name of their map.
        rgb: The image that the model saw, (H, W, 3) of eight bits.
        tokens: For each map, the size (height, width) of a token in pixels of that image.
        path: The PNG file; an existing file is replaced.
        title: Title of the figure.
    """
    height, width = rgb.shape[:2]
    side = 1.5
    tile = (side * min(1.0, width / height), side * min(1.0, height / width))
    figure = open_figure((tile[0] + 0.15) * (len(maps) + 1) + 0.5, (tile[1] + 0.33) * (1 + len(_ROWS)) + 0.9)
    grid: Any = figure.subplots(1 + len(_ROWS), len(maps) + 1, squeeze=False)
    grid[0, 0].imshow(rgb, extent=(0, width, height, 0), interpolation="nearest")
    grid[0, 0].set_title(f"input of\nthe model\n{width} x {height} pixels", fontsize=8.5)
    for axes in grid[1:, 0]:
        axes.axis("off")
    for row, name in enumerate(_ROWS, 1):
        note = name if row > 1 else f"First row:\nred = 1st,\ngreen = 2nd,\nblue = 3rd\ncomponent\n\n{name}"
        grid[row, 0].text(width, height / 2, note, ha="right", va="center", fontsize=9)
    for column, (name, components) in enumerate(maps.items(), 1):
        down, across = components.scores.shape[:2]
        extent = (0, across * tokens[name][1], down * tokens[name][0], 0)
        options: dict[str, Any] = {"extent": extent, "interpolation": "nearest"}
        grid[0, column].imshow(as_colours(components.scores), **options)
        heading = f"{name.replace('stage', 'stage ')}\n{across} x {down} tokens\n{components.channels} channels"
        grid[0, column].set_title(heading, fontsize=8.5)
        for index in range(COMPONENTS):
            scores = components.scores[:, :, index]
            limit = max(float(np.abs(scores).max()), 1e-12)
            grid[index + 1, column].imshow(scores, cmap="RdBu_r", vmin=-limit, vmax=limit, **options)
            grid[index + 1, column].set_title(f"{components.shares[index]:.0%} of the variance", fontsize=8)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    words = f"{printable(title, 110)}\n" if title else ""
    figure.suptitle(words + "tokens of one colour are alike; red and blue: above and below the mean", fontsize=9.5)
    save(figure, path)
