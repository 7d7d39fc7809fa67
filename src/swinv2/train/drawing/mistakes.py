"""A figure of the images that a classifier got wrong."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from swinv2.drawing.paper import fit_tile, printable, save, tile_sheet

MOST_MISTAKES = 25
"""Largest number of mistakes that are drawn."""

COLUMNS = 5


class Mistake(NamedTuple):
    """An image (H, W, 3) of eight bits, the names of its class and of the answer, the answer's probability, the file's
    name."""

    image: np.ndarray
    truth: str
    answer: str
    probability: float
    file: str = ""


def draw_mistakes(mistakes: Sequence[Mistake], path: Path) -> None:
    """Draws images with wrong answers, with captions such as "cat -> dog 97%" and the names of their files.

    Small images are enlarged by repeating pixels; large ones are made smaller.

    Args:
        mistakes: The first `MOST_MISTAKES` are drawn, row by row in this order.
        path: The PNG file; an existing file is replaced.

    Raises:
        ValueError: The list is empty, or an image is not an array (H, W, 3) of eight bits.
    """
    if not mistakes:
        raise ValueError("there is no mistake to draw; expected at least one.")
    mistakes = mistakes[:MOST_MISTAKES]
    captions = [
        f"{printable(m.truth, 24)} -> {printable(m.answer, 24)} {m.probability:.0%}\n{printable(m.file, 34)}"
        for m in mistakes
    ]
    save(tile_sheet([fit_tile(mistake.image) for mistake in mistakes], captions, COLUMNS), path)
