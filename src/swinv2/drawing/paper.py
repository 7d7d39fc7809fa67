"""The layouts of all figures, and how figures are written.

In: images and words with their positions in pixels, or functions that draw tiles. Out: a figure, and a PNG file.
"""

import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from PIL import Image

from swinv2.disk import whole_file

# A power of two makes inches exact, so rounding does not remove the last row of pixels.
DPI = 128

TILE = 192
"""Longer side of an image on a sheet, in pixels."""


class Sheet:
    """White paper with images, which are not resampled, and text."""

    def __init__(self, height: int, width: int) -> None:
        self.paper = np.full((height, width, 3), 255, np.uint8)
        self.words: list[tuple[int, int, str, dict[str, Any]]] = []

    def lay(self, left: int, top: int, image: np.ndarray) -> None:
        """Puts an image (H, W, 3) on the paper, with a thin frame, since many images are white at their edges."""
        bottom, right = top + image.shape[0], left + image.shape[1]
        self.paper[top - 1 : bottom + 1, left - 1 : right + 1] = 200
        self.paper[top:bottom, left:right] = image

    def write(self, left: int, top: int, text: str, **options: Any) -> None:
        """Writes a line of text; `options` are those of matplotlib's text."""
        self.words.append((left, top, text, options))

    def figure(self) -> Figure:
        """The sheet as a matplotlib figure."""
        height, width = self.paper.shape[:2]
        figure = Figure((width / DPI, height / DPI), dpi=DPI, facecolor="white")
        figure.figimage(self.paper, origin="upper")
        for left, top, text, options in self.words:
            figure.text(left / width, 1 - top / height, text, va="top", fontsize=8.5, parse_math=False, **options)
        return figure


def open_figure(width: float, height: float) -> Figure:
    """A white figure, in inches, whose axes are arranged so that nothing overlaps."""
    return Figure((width, height), dpi=DPI, facecolor="white", layout="constrained")


@dataclass(frozen=True)
class Tiles:
    """The tiles of one block of a network.

    Attributes:
        title: Name of the block, in words.
        tiles: For each tile, its heading and a function that draws it on matplotlib axes.
        colours: The colours and their limits, for the colour bar.
    """

    title: str
    tiles: Sequence[tuple[str, Callable[[Any], None]]]
    colours: ScalarMappable


def tile_blocks(blocks: Sequence[Tiles], title: str, note: str, unit: str, across: int = 8) -> Figure:
    """Draws the tiles of the blocks, one block below the other, `across` tiles in a row, with a colour bar in `unit`.
    Of neighbours with the same label, the first tile of a row and the last of a column have it.

    `title` and `note` are above the figure's edge: save it with `cut`.
    """
    lines = [-(-len(block.tiles) // across) for block in blocks]
    columns = min(max(len(block.tiles) for block in blocks), across)
    heights = [1.36 * line_count + 0.56 for line_count in lines]
    figure = open_figure(1.26 * (columns + 1), sum(heights))
    figure.text(0, 1, printable(title, 130) + "\n" * (note.count("\n") + 2), va="bottom", fontsize=11, parse_math=False)
    figure.text(0, 1, f"{note}\n", va="bottom", fontsize=8.5, color="#555555")
    parts: Any = figure.subfigures(len(blocks), 1, squeeze=False, height_ratios=heights)
    for part, block, line_count in zip(parts.flat, blocks, lines, strict=True):
        part.suptitle(block.title, x=0, ha="left", fontsize=9.5, weight="bold")
        # The last column is for the colour bars.
        grid = part.subplots(line_count, columns + 1, squeeze=False)
        drawn = list(grid[:, :-1].flat)[: len(block.tiles)]
        for axes, (name, draw) in zip(drawn, block.tiles, strict=True):
            draw(axes)
            axes.set_title(name, fontsize=8, pad=2.5)
        labels = [(axes.get_xlabel(), axes.get_ylabel()) for axes in drawn]
        for index, axes in enumerate(drawn):
            if index % across and labels[index][1] == labels[index - 1][1]:
                axes.set(ylabel="", yticklabels=[])
            if index + across < len(drawn) and labels[index][0] == labels[index + across][0]:
                axes.set(xlabel="", xticklabels=[])
        for axes in grid.flat:
            if not axes.has_data():
                axes.axis("off")
        beside = grid[0, min(len(block.tiles), across)]
        beside.set_box_aspect(1)
        bar: Any = part.colorbar(block.colours, cax=beside.inset_axes((0, 0, 0.1, 1)))
        bar.set_label(unit, fontsize=8)
        bar.ax.tick_params(labelsize=7.5, length=2)
        bar.outline.set_visible(False)
    return figure


def style_tile(axes: Any) -> None:
    """Makes a tile with axes of numbers square, with small numbers and a pale frame."""
    axes.tick_params(labelsize=7, length=2, pad=1.5)
    axes.set_box_aspect(1)
    axes.spines[:].set_color("#bbbbbb")


def printable(name: str, most: int) -> str:
    """A name on one line of a figure, cut to `most` letters. Bytes that are not text (in names of files) become "?"."""
    name = " ".join(name.encode("utf-8", "replace").decode("utf-8").split())
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"


def save(figure: Figure, path: Path, cut: bool = False) -> None:
    """Writes a PNG file atomically. With `cut`, its size follows from the drawing, even beyond the figure's edges."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial, partial.open("wb") as file, warnings.catch_warnings():
        # If the font lacks the script of a name, boxes are drawn; no warning is needed.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        canvas = FigureCanvasAgg(figure)
        if cut:
            canvas.print_figure(file, DPI, "white", format="png", bbox_inches="tight", pad_inches=0.12)
        else:
            # Not print_figure: the user's matplotlibrc may change its margins, and pixels must keep their positions.
            canvas.print_png(file)


def fit_tile(image: np.ndarray) -> np.ndarray:
    """Resizes an image for a sheet: its longer side has at most `TILE` pixels, and more than half of that.

    Small images are enlarged by repeating pixels.

    Args:
        image: The image (H, W, 3), eight bits.

    Raises:
        ValueError: It is not an array (H, W, 3) of eight bits.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"an image is {image.shape} of {image.dtype}; expected (H, W, 3) of uint8.")
    longest = max(image.shape[:2])
    if longest <= TILE:
        return image.repeat(TILE // longest, 0).repeat(TILE // longest, 1)
    height, width = (max(round(length * TILE / longest), 1) for length in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def tile_sheet(tiles: Sequence[np.ndarray], captions: Sequence[str], columns: int, heads: Sequence[str] = ()) -> Figure:
    """Draws images in rows, not resampled, with captions below them.

    Args:
        tiles: Images (H, W, 3), eight bits.
        captions: Text below each image, one line or several, wrapped to its column; "" for none.
        columns: Number of images in a row.
        heads: Text above each column; none if empty.
    """
    margin, gap, line = 16, 16, 20
    width = max(160, *(tile.shape[1] for tile in tiles))
    texts = [
        [line for part in caption.splitlines() for line in textwrap.wrap(part, width // 9)] for caption in captions
    ]
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
            # Centred in its column, with its bottom edge on the caption.
            sheet.lay(middle - tile.shape[1] // 2, top + image_height - tile.shape[0], tile)
            for number, text in enumerate(texts[index]):
                sheet.write(middle, top + image_height + 4 + number * line, text, ha="center")
        top += image_height + 4 + line * count + gap
    return sheet.figure()
