"""Images that a classifier took for something else."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from swinv2.drawing.paper import TILE, printable, save, tile_sheet

MOST_MISTAKES = 25
"""More mistakes than these are not drawn."""

COLUMNS = 5


@dataclass(frozen=True)
class Mistake:
    """An image that a classifier took for something else.

    Attributes:
        image: Its pixels (H, W, 3), eight bits.
        truth: Name of its class.
        answer: Name of the class that it was taken for.
        probability: Of the answer, from 0 to 1.
    """

    image: np.ndarray
    truth: str
    answer: str
    probability: float


def draw_mistakes(mistakes: Sequence[Mistake], path: Path) -> None:
    """Draws images that a classifier took for something else, with captions such as "cat -> dog 97%".

    Small images are enlarged, every pixel to a square of pixels; large ones are made smaller.

    Args:
        mistakes: The images; the first `MOST_MISTAKES` are drawn, row by row in this order.
        path: The PNG file; one that exists is replaced.

    Raises:
        ValueError: There is none, or an image is no array (H, W, 3) of eight bits.
    """
    if not mistakes:
        raise ValueError("there is no mistake to draw; expected at least one.")
    mistakes = mistakes[:MOST_MISTAKES]
    captions = [f"{printable(m.truth, 24)} -> {printable(m.answer, 24)} {m.probability:.0%}" for m in mistakes]
    save(tile_sheet([_fitted(mistake.image) for mistake in mistakes], captions, COLUMNS), path)


def _fitted(image: np.ndarray) -> np.ndarray:
    """The image with a longer side of at most a tile, and of more than half of it."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"an image is {image.shape} of {image.dtype}; expected (H, W, 3) of uint8.")
    longest = max(image.shape[:2])
    if longest <= TILE:
        return image.repeat(TILE // longest, 0).repeat(TILE // longest, 1)
    height, width = (max(round(length * TILE / longest), 1) for length in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
