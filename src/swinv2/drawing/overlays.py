"""Draws what segmenters and detectors find over their images.

In: the pixels of an image, and the class of each pixel, or objects. Out: images with a legend or with labelled boxes;
the image itself has at most `LONGEST` pixels along each side. This module knows no model and writes no file.
"""

import importlib.util
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LONGEST = 2000
"""Images of a longer side are reduced by an integer."""

SMALLEST = 1000
"""Images whose longer side fits into this number of pixels several times are enlarged by an integer."""

MASK_OPACITY = 0.45

_BAND_PIXELS = 1_000_000
"""Pixels that are drawn at once."""

_LONGEST_NAME = 40

Colour = tuple[int, int, int]


@cache
def palette() -> np.ndarray:
    """The colours of the classes (256, 3), eight bits. Each is as different from all earlier ones as possible: the
    distance is that of Oklab. The last one, for pixels that do not count, is black."""
    steps = np.linspace(0, 1, 18)
    colours = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    places = _oklab(colours)
    # Near black, white and grey, a colour over a photograph is not seen.
    seen = (places[:, 0] > 0.42) & (places[:, 0] < 0.93) & (np.hypot(places[:, 1], places[:, 2]) > 0.07)
    colours, places = colours[seen], places[seen]
    chosen = [int(np.linalg.norm(colours - (0.1, 0.4, 0.9), axis=1).argmin())]
    nearest = np.full(len(places), np.inf)
    while len(chosen) < 255:
        nearest = np.minimum(nearest, np.linalg.norm(places - places[chosen[-1]], axis=1))
        chosen.append(int(nearest.argmax()))
    table = np.zeros((256, 3), np.uint8)
    table[:255] = np.round(255 * colours[chosen])
    table.setflags(write=False)
    return table


def _oklab(colours: np.ndarray) -> np.ndarray:
    """Lightness, green to red and blue to yellow (n, 3) of sRGB colours (n, 3) from 0 to 1. Source: Ottosson, Oklab."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    to_cones = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
                [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
    to_lab = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
              [0.0259040371, 0.7827717662, -0.8086757660]]  # fmt: skip
    return np.cbrt(linear @ np.transpose(to_cones)) @ np.transpose(to_lab)


def colours_of(classes: Any) -> np.ndarray:
    """The colours (..., 3) of classes (...); from the 256th on, colours are used again."""
    classes = np.asarray(classes)
    return palette()[classes if classes.dtype == np.uint8 else np.where(classes < 256, classes, classes % 255)]


class Entry(NamedTuple):
    """A line of a legend: a class, its name, and its share of the pixels."""

    index: int
    name: str
    share: float


def draw_classes(pixels: np.ndarray, classes: np.ndarray, legend: Sequence[Entry]) -> Image.Image:
    """Draws classes over an image, which stays visible, with a legend to its right.

    The memory does not depend on the number of pixels: some rows are drawn at once.

    Args:
        pixels: The image (height, width, 3), eight bits.
        classes: The class of each pixel (height, width).
        legend: The classes, from top to bottom.
    """
    return _beside(mix_classes(pixels, classes), legend)


def mix_classes(pixels: np.ndarray, classes: np.ndarray) -> Image.Image:
    """Draws classes over an image as `draw_classes` does, without a legend."""
    height, width = classes.shape
    reduction, enlargement = _zoom(height, width)
    rows = max(_BAND_PIXELS // width // reduction, 1) * reduction
    bands: list[np.ndarray] = []
    for top in range(0, height, rows):
        here = slice(top, top + rows)
        mixed = (pixels[here].astype(np.uint16) + colours_of(classes[here])) // 2
        bands.append(np.asarray(Image.fromarray(mixed.astype(np.uint8)).reduce(reduction)))
    drawn = Image.fromarray(np.concatenate(bands))
    return drawn.resize((drawn.width * enlargement, drawn.height * enlargement), Image.Resampling.NEAREST)


def _zoom(height: int, width: int) -> tuple[int, int]:
    """The integers by which an image is reduced and enlarged; at least one of them is 1."""
    longest = max(height, width)
    return -(-longest // LONGEST), max(SMALLEST // longest, 1)


def _beside(drawn: Image.Image, legend: Sequence[Entry]) -> Image.Image:
    """An image on white paper with a legend to its right, in as many columns as its height asks for."""
    font = _font(drawn.size)
    line, gap, side = round(1.6 * font.size), round(font.size), round(1.1 * font.size)
    names, shares = [_printable(entry.name) for entry in legend], [f"{entry.share:.1%}" for entry in legend]
    rows = max((drawn.height - 2 * gap) // line, 16)
    columns = -(-len(legend) // rows)
    wide = line + sum(round(max(map(font.getlength, texts), default=0)) + gap for texts in (names, shares))
    paper_height = max(drawn.height, min(len(legend), rows) * line + 2 * gap)
    paper = Image.new("RGB", (drawn.width + gap + columns * (wide + gap), paper_height), "white")
    paper.paste(drawn, (0, 0))
    draw = ImageDraw.Draw(paper)
    for number, (entry, name, share) in enumerate(zip(legend, names, shares, strict=True)):
        left, top = drawn.width + gap + number // rows * (wide + gap), gap + number % rows * line
        # The colour as it is in the class map.
        draw.rectangle((left, top, left + side, top + side), _colour(entry.index), "black")
        draw.text((left + line, top + side / 2), name, "black", font, anchor="lm")
        draw.text((left + wide, top + side / 2), share, "black", font, anchor="rm")
    return paper


class Drawn(NamedTuple):
    """An object to draw.

    Attributes:
        text: Its label.
        index: Its class, which has a colour.
        box: Left, top, right and bottom, in pixels of the image.
        mask: Its mask (height, width), booleans; None if there is none.
    """

    text: str
    index: int
    box: Sequence[float]
    mask: np.ndarray | None = None


def draw_objects(pixels: np.ndarray, objects: Iterable[Drawn]) -> Image.Image:
    """Draws objects over an image: masks, boxes and labels.

    Args:
        pixels: The image (height, width, 3), eight bits.
        objects: The objects; later ones are drawn over earlier ones. Only one mask is in memory if they are computed
            when they are asked for.
    """
    height, width = pixels.shape[:2]
    reduction, enlargement = _zoom(height, width)
    drawn = Image.fromarray(pixels).reduce(reduction)
    drawn = drawn.resize((drawn.width * enlargement, drawn.height * enlargement), Image.Resampling.BICUBIC)
    boxes: list[Drawn] = []
    for each in objects:
        boxes.append(each._replace(mask=None))
        if each.mask is not None:
            mask = Image.fromarray(each.mask.astype(np.uint8) * 255).reduce(reduction)
            mask = mask.resize(drawn.size, Image.Resampling.NEAREST)
            for opacity in (mask.point(lambda value: value * MASK_OPACITY), _edge(mask)):
                drawn.paste(_colour(each.index), (0, 0), opacity)
    font, draw = _font(drawn.size), ImageDraw.Draw(drawn)
    thick = max(round(font.size / 7), 2)
    scaled = [[edge * enlargement / reduction for edge in each.box] for each in boxes]
    for each, box in zip(boxes, scaled, strict=True):
        draw.rectangle(_inside(box, drawn.size), outline=_colour(each.index), width=thick)
    for each, box in zip(boxes, scaled, strict=True):
        _write_label(draw, drawn.size, font, each, box)
    return drawn


def _edge(mask: Image.Image) -> Image.Image:
    """The two outer pixels of a mask of eight bits."""
    is_mask = np.asarray(mask) > 127
    inner = is_mask.copy()
    inner[2:] &= is_mask[:-2]
    inner[:-2] &= is_mask[2:]
    inner[:, 2:] &= is_mask[:, :-2]
    inner[:, :-2] &= is_mask[:, 2:]
    return Image.fromarray((is_mask & ~inner).astype(np.uint8) * 255)


def _inside(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The first and last columns and rows of a box, inside of an image (width, height)."""
    left, top, right, bottom = box
    first, upper = (min(max(round(edge), 0), side - 1) for edge, side in zip((left, top), size, strict=True))
    last, lower = (min(max(round(edge - 1), 0), side - 1) for edge, side in zip((right, bottom), size, strict=True))
    return first, upper, max(first, last), max(upper, lower)


def _write_label(draw: Any, size: tuple[int, int], font: Any, each: Drawn, box: Sequence[float]) -> None:
    """Writes the label of a box on its colour: above the box, or in it if there is no place."""
    text, colour, space = _printable(each.text), _colour(each.index), round(font.size / 4)
    wide, high = round(font.getlength(text)) + 2 * space, round(font.size) + 2 * space
    left, top, _, _ = _inside(box, size)
    left = max(min(left, size[0] - wide), 0)
    top = top - high if top >= high else top
    draw.rectangle((left, top, left + wide, top + high), colour)
    is_light = np.dot(colour, (0.299, 0.587, 0.114)) > 140
    draw.text((left + space, top + high / 2), text, "black" if is_light else "white", font, anchor="lm")


def _colour(index: int) -> Colour:
    """The colour of a class, as PIL takes it."""
    red, green, blue = colours_of(index).tolist()
    return red, green, blue


def _printable(text: str) -> str:
    """A text on one line, cut if it is very long."""
    text = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1].rstrip()}…"


@cache
def _font_file() -> Path | None:
    """matplotlib's font, which has many scripts, if matplotlib is installed."""
    found = importlib.util.find_spec("matplotlib")
    file = Path(found.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if found and found.origin else None
    return file if file is not None and file.is_file() else None


def _font(size: tuple[int, int]) -> Any:
    """The font for an image (width, height). Without matplotlib it is PIL's, which has ASCII only."""
    pixels = min(max(round(max(size) / 55), 13), 30)
    file = _font_file()
    return ImageFont.load_default(pixels) if file is None else ImageFont.truetype(str(file), pixels)
