"""Paper and pen: what all pictures are drawn on, and how they are written.

In: pictures and words with their places in pixels, or a figure. Out: a PNG file.
"""

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from swinv2.disk import whole_file

# A power of two: inches are then exact, and no sheet loses its last row of pixels to rounding.
DPI = 128

TILE = 192
"""Longer side of a picture on a sheet, in pixels."""


class Sheet:
    """White paper on which pictures lie pixel by pixel, none resampled, and words beside them."""

    def __init__(self, height: int, width: int) -> None:
        self.paper = np.full((height, width, 3), 255, np.uint8)
        self.words: list[tuple[int, int, str, dict[str, Any]]] = []

    def lay(self, left: int, top: int, picture: np.ndarray) -> None:
        """Lays a picture (H, W, 3), with a thin line around it: many pictures are white at their edges."""
        bottom, right = top + picture.shape[0], left + picture.shape[1]
        self.paper[top - 1 : bottom + 1, left - 1 : right + 1] = 200
        self.paper[top:bottom, left:right] = picture

    def write(self, left: int, top: int, text: str, **options: Any) -> None:
        """Writes a line; `options` are those of matplotlib's text."""
        self.words.append((left, top, text, options))

    def figure(self) -> Figure:
        """The sheet as matplotlib has it."""
        height, width = self.paper.shape[:2]
        figure = Figure((width / DPI, height / DPI), dpi=DPI, facecolor="white")
        figure.figimage(self.paper, origin="upper")
        for left, top, text, options in self.words:
            figure.text(left / width, 1 - top / height, text, va="top", fontsize=8.5, parse_math=False, **options)
        return figure


def open_figure(width: float, height: float) -> Figure:
    return Figure((width, height), dpi=DPI, facecolor="white", layout="constrained")


def axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Any:
    """Adds axes at a place in inches from the top left of a figure."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def printable(name: str, most: int) -> str:
    """A name on one line, of so many letters at most; what is no text, as in names of files, becomes "?"."""
    name = " ".join(name.encode("utf-8", "replace").decode("utf-8").split())
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"


def save(figure: Figure, path: Path, cut: bool = False) -> None:
    """Writes a PNG file, the whole or nothing; `cut` to what is drawn, also beyond the figure's edges."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial, partial.open("wb") as file, warnings.catch_warnings():
        # Names may be in a script that the font has not; there are boxes then, which is no reason for a message.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        canvas = FigureCanvasAgg(figure)
        if cut:
            canvas.print_figure(file, DPI, "white", format="png", bbox_inches="tight", pad_inches=0.12)
        else:
            # Not print_figure, whose margins the user's matplotlibrc may change: pixels are to stay where they are.
            canvas.print_png(file)


def tile_sheet(tiles: Sequence[np.ndarray], captions: Sequence[str], columns: int, heads: Sequence[str] = ()) -> Figure:
    """Images in rows, none resampled, with captions below them.

    Args:
        tiles: Images (H, W, 3), eight bits.
        captions: What stands below each, wrapped to its column; "" for nothing.
        columns: How many images a row has.
        heads: What stands above the columns; nothing if empty.
    """
    margin, gap, line = 16, 16, 20
    width = max(160, *(tile.shape[1] for tile in tiles))
    texts = [textwrap.wrap(caption, width // 9) for caption in captions]
    rows = [range(first, min(first + columns, len(tiles))) for first in range(0, len(tiles), columns)]
    tall = [max(tiles[index].shape[0] for index in row) for row in rows]
    lines = [max(len(texts[index]) for index in row) for row in rows]
    top = margin + (line + 6 if heads else 0)
    height = top + sum(tall) + sum(4 + line * count + gap for count in lines) - gap + margin
    sheet = Sheet(height, 2 * margin + min(columns, len(tiles)) * (width + gap) - gap)
    for column, head in enumerate(heads):
        sheet.write(margin + column * (width + gap) + width // 2, margin, head, ha="center", weight="bold")
    for row, image_height, count in zip(rows, tall, lines, strict=True):
        for column, index in enumerate(row):
            tile, middle = tiles[index], margin + column * (width + gap) + width // 2
            # In the middle, and on its caption.
            sheet.lay(middle - tile.shape[1] // 2, top + image_height - tile.shape[0], tile)
            for number, text in enumerate(texts[index]):
                sheet.write(middle, top + image_height + 4 + number * line, text, ha="center")
        top += image_height + 4 + line * count + gap
    return sheet.figure()
