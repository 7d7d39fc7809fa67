"""Pictures that a classifier took for something else."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from swinv2.drawing.paper import TILE, Sheet, printable, save

MOST_MISTAKES = 25
"""More mistakes than these are not drawn."""


@dataclass(frozen=True)
class Mistake:
    """A picture that a classifier took for something else.

    Attributes:
        picture: Its pixels (H, W, 3), eight bits.
        truth: Name of its class.
        answer: Name of the class that it was taken for.
        probability: Of the answer, from 0 to 1.
    """

    picture: np.ndarray
    truth: str
    answer: str
    probability: float


def draw_mistakes(mistakes: Sequence[Mistake], path: Path) -> None:
    """Draws pictures that a classifier took for something else, with captions such as "cat -> dog 97%".

    Small pictures are enlarged, every pixel to a square of pixels; large ones are made smaller.

    Args:
        mistakes: The pictures; the first `MOST_MISTAKES` are drawn, row by row in this order.
        path: The PNG file; one that exists is replaced.

    Raises:
        ValueError: There is none, or a picture is no array (H, W, 3) of eight bits.
    """
    if not mistakes:
        raise ValueError("there is no mistake to draw; expected at least one.")
    mistakes = mistakes[:MOST_MISTAKES]
    captions = [
        textwrap.wrap(
            f"{printable(mistake.truth, 24)} -> {printable(mistake.answer, 24)} {mistake.probability:.0%}", 22
        )
        for mistake in mistakes
    ]
    gap, margin, line = 16, 16, 20
    columns = min(5, len(mistakes))
    rows = [range(first, min(first + columns, len(mistakes))) for first in range(0, len(mistakes), columns)]
    heights = [TILE + 4 + line * max(len(captions[index]) for index in row) + gap for row in rows]
    sheet = Sheet(2 * margin + sum(heights) - gap, 2 * margin + columns * (TILE + gap) - gap)
    top = margin
    for row, height in zip(rows, heights, strict=True):
        for column, index in enumerate(row):
            left = margin + column * (TILE + gap)
            tile = _fitted(mistakes[index].picture)
            # In the middle, and on its caption.
            sheet.lay(left + (TILE - tile.shape[1]) // 2, top + TILE - tile.shape[0], tile)
            for number, text in enumerate(captions[index]):
                sheet.write(left + TILE // 2, top + TILE + 4 + number * line, text, ha="center")
        top += height
    save(sheet.figure(), path)


def _fitted(picture: np.ndarray) -> np.ndarray:
    """The picture with a longer side of at most a tile, and of more than half of it."""
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or 0 in picture.shape:
        raise ValueError(f"a picture is {picture.shape} of {picture.dtype}; expected (H, W, 3) of uint8.")
    longest = max(picture.shape[:2])
    if longest <= TILE:
        return picture.repeat(TILE // longest, 0).repeat(TILE // longest, 1)
    height, width = (max(round(length * TILE / longest), 1) for length in picture.shape[:2])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
