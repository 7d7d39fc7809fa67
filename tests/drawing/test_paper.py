"""Paper: pixels lie where they were put, and files are whole or not there (see also tests/train/test_drawing.py)."""

from pathlib import Path

import numpy as np
from PIL import Image

from swinv2.drawing.paper import Sheet, open_figure, printable, save, tile_sheet


def test_images_lie_pixel_by_pixel(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    sheet = Sheet(64, 101)
    sheet.lay(7, 11, noise)
    save(sheet.figure(), tmp_path / "new" / "sheet.png")
    with Image.open(tmp_path / "new" / "sheet.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (64, 101, 3)
    assert np.array_equal(pixels[11:31, 7:38], noise)
    assert (pixels[0] == 255).all()


def test_cut_figures_hold_what_stands_outside(tmp_path: Path) -> None:
    figure = open_figure(1, 1)
    figure.text(1.5, 0.5, "outside")
    save(figure, tmp_path / "whole.png")
    save(figure, tmp_path / "cut.png", cut=True)
    with Image.open(tmp_path / "whole.png") as whole, Image.open(tmp_path / "cut.png") as cut:
        assert whole.size == (128, 128)
        assert np.asarray(whole.convert("L")).min() == 255
        assert np.asarray(cut.convert("L")).min() < 128


def test_names_are_printable() -> None:
    assert printable("a\nlong  name\udcff", 20) == "a long name?"
    assert printable("abcdef", 4) == "abc…"


def test_tiles_lie_in_rows_on_their_captions(tmp_path: Path) -> None:
    """Pixel by pixel, of all sizes, the smaller ones in the middle of their columns."""
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    sizes = [(30, 200), (10, 50), (7, 9)]
    tiles = [np.full((*size, 3), colour, np.uint8) for size, colour in zip(sizes, colours, strict=True)]
    save(tile_sheet(tiles, ["one two " * 5, "", ""], 2, ("left", "right")), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    boxes = []
    for colour, tile in zip(colours, tiles, strict=True):
        rows, columns = np.nonzero((pixels == colour).all(-1))
        assert len(rows) == tile.shape[0] * tile.shape[1]
        boxes.append((rows.min(), rows.max() + 1, columns.min() + columns.max() + 1))
    (_, red, left), (_, green, right), (blue, _, below) = boxes
    assert red == green < blue - 2 * 20
    assert abs(left - below) <= 1
    assert left < right - 2 * 200
