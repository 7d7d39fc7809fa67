"""Runs a segmenter over image files, one after the other, and writes what it finds.

In: paths. Out, for each path, in order: the classes with their shares of the pixels, or a `BrokenImage`; and two PNG
files, if a folder is given: the class map (`NAME_classes.png`) and the image with the classes (`NAME_overlay.png`).
This module prints nothing.

Besides the segmenter, only the image and its class map need memory that grows with the image: their other users take
some rows at once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from swinv2.dense.masks import encode_masks
from swinv2.disk import unique_name, whole_file
from swinv2.drawing.overlays import Entry, draw_classes, palette
from swinv2.errors import UsageError
from swinv2.images import BrokenImage, read_or_skip

_BAND_PIXELS = 1_000_000
"""Pixels that are converted or counted at once."""

_MOST_CLASSES = 2**16
"""Classes that a PNG file can have."""


@dataclass(frozen=True)
class ClassShare:
    """A class in an image.

    Attributes:
        index: Its number, which is the value of its pixels in the class map.
        label: Its name.
        pixels: Number of its pixels.
        share: Their share of the image, from 0 to 1.
        mask: Its mask as COCO's compressed RLE; None if it was not asked for.
    """

    index: int
    label: str
    pixels: int
    share: float
    mask: dict[str, Any] | None = None


@dataclass(frozen=True)
class Segmented:
    """What was found in an image.

    Attributes:
        size: Width and height of the image.
        classes: The classes that occur, the largest share first.
        files: The files that were written.
    """

    size: tuple[int, int]
    classes: list[ClassShare]
    files: list[Path]


def segment_files(
    segmenter: Callable[[np.ndarray], np.ndarray],
    names: Sequence[str],
    paths: Iterable[Path],
    output: Path | None = None,
    *,
    overlay: bool = True,
    with_masks: bool = False,
) -> Iterator[tuple[Path, Segmented | BrokenImage]]:
    """Segments images.

    Args:
        segmenter: Finds the class of each pixel (height, width) of an image (height, width, 3), such as
            `dense.answers.Segmenter`.
        names: Names of its classes.
        paths: The files.
        output: The folder to write to; None to write nothing. Of images with the same name, from the second one on the
            name gets a number: `dog_classes.png`, `dog-2_classes.png`.
        overlay: Whether to draw the image with its classes, too.
        with_masks: Whether to encode the masks of the classes. It needs two more bytes for each pixel.

    Returns:
        For each file, in order, what was found, or the reason why the file was skipped.

    Raises:
        UsageError: The device has too little memory, or the classes are too many for a file.
    """
    taken: set[str] = set()
    for path in paths:
        # The pixels of one image are freed before the next one is read.
        yield path, _segment_file(segmenter, names, path, output, taken, overlay, with_masks)


def _segment_file(
    segmenter: Callable[[np.ndarray], np.ndarray],
    names: Sequence[str],
    path: Path,
    output: Path | None,
    taken: set[str],
    overlay: bool,
    with_masks: bool,
) -> Segmented | BrokenImage:
    """Segments an image; see `segment_files`. The name of its files is added to `taken`."""
    pixels = read_pixels(path)
    if isinstance(pixels, BrokenImage):
        return pixels
    height, width = pixels.shape[:2]
    try:
        classes = segmenter(pixels)
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"the device has too little memory for {str(path)!r}, {width} x {height} pixels; give a smaller window, "
            "such as --window 512, fewer --scales, or --device cpu."
        ) from error
    found = count_classes(classes, names, with_masks)
    files: list[Path] = []
    if output is not None:
        name = unique_name(path, taken)
        files.append(output / f"{name}_classes.png")
        write_classes(classes, files[0])
        if overlay:
            files.append(output / f"{name}_overlay.png")
            legend = [Entry(each.index, each.label, each.share) for each in found]
            with whole_file(files[1]) as partial:
                draw_classes(pixels, classes, legend).save(partial, "PNG")
    return Segmented((width, height), found, files)


def read_pixels(path: Path) -> np.ndarray | BrokenImage:
    """The pixels (height, width, 3) of a file, eight bits; or the reason why it cannot be read."""
    image = read_or_skip(path)
    if isinstance(image, BrokenImage):
        return image
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    # An array of the whole image would be copied from another copy.
    for rows in _bands(pixels):
        pixels[rows] = np.asarray(image.crop((0, rows.start, image.width, rows.stop)))
    return pixels


def _bands(image: np.ndarray) -> Iterator[slice]:
    """The rows of an image (height, width, ...), `_BAND_PIXELS` at once."""
    height, width = image.shape[:2]
    step = max(_BAND_PIXELS // width, 1)
    for top in range(0, height, step):
        yield slice(top, min(top + step, height))


def count_classes(classes: np.ndarray, names: Sequence[str], with_masks: bool = False) -> list[ClassShare]:
    """Counts the pixels of each class.

    Args:
        classes: The class of each pixel (height, width).
        names: Names of the classes.
        with_masks: Whether to encode their masks.

    Returns:
        The classes that occur, the largest share first; of equal ones, the first class.
    """
    counts = np.zeros(len(names), np.int64)
    for rows in _bands(classes):
        counts += np.bincount(classes[rows].ravel(), minlength=len(names))
    return [
        ClassShare(
            index,
            names[index],
            int(counts[index]),
            int(counts[index]) / classes.size,
            encode_masks((classes == index)[None])[0] if with_masks else None,
        )
        for index in map(int, np.argsort(-counts, kind="stable"))
        if counts[index]
    ]


def as_records(classes: Sequence[ClassShare]) -> list[dict[str, Any]]:
    """The classes in an image as plain values, for JSON: "label", "index", "pixels", "share", and "mask" if there are
    masks."""
    return [
        {"label": each.label, "index": each.index, "pixels": each.pixels, "share": each.share}
        | ({} if each.mask is None else {"mask": each.mask})
        for each in classes
    ]


def write_classes(classes: np.ndarray, file: Path) -> None:
    """Writes a class map as a PNG file, atomically. Folders are made.

    Args:
        classes: The class of each pixel (height, width). Of eight bits, the file has a palette whose indices are the
            classes; of more bits it is grey, of 16 bits, and the grey values are the classes.
        file: The file; an existing file is replaced.

    Raises:
        UsageError: A class is above 65,535, which no PNG file can have.
    """
    mode = "P" if classes.dtype == np.uint8 else "I;16"
    if mode != "P":
        if classes.max() >= _MOST_CLASSES:
            raise UsageError(f"the class {classes.max()} does not fit into {file.name!r}, which has 16 bits.")
        classes = classes.astype("<u2")
    height, width = classes.shape
    # It shares the memory of the array.
    image = Image.frombuffer(mode, (width, height), np.ascontiguousarray(classes), "raw", mode, 0, 1)
    if mode == "P":
        image.putpalette(palette().tobytes())
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as partial:
        image.save(partial, "PNG")
