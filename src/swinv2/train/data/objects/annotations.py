"""What the readers of all formats share: annotations as they are found, before they are cleaned.

In: values that a reader found in its files. Out: `Annotations`, the same for all formats; `opening.clean` makes a data
set of them. Also what every reader asks: which split a name stands for, the rows of image files, and the size of an
image. It knows no format.
"""

import re
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import ExifTags, Image

from swinv2.errors import UsageError
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.folders import EVAL_SPLITS, SPLIT_OF, as_texts

Segment = list[list[float]] | dict[str, Any]
"""A mask as it is stored: polygons `[[x0, y0, x1, y1, ...], ...]` in pixels, or COCO's run lengths, {"size": [height,
width], "counts": a list, or compressed text}."""

_SIDEWAYS = (5, 6, 7, 8)
"""Values of EXIF's orientation with which height and width change places."""


class SegmentStore:
    """The masks of many objects in few arrays, which processes share and send quickly.

    Args:
        segments: The masks of the objects as a file has them. A polygon of fewer than 6 numbers is left out.
        place: Says where an object is annotated, for messages.

    Attributes:
        short: Objects with a polygon that was left out.
        broken: Objects with a polygon that has NaN or infinite numbers.
        runs: The masks that are run lengths.

    Raises:
        UsageError: A mask is in no known notation.
    """

    def __init__(self, segments: Sequence[Any], place: Callable[[int], str]) -> None:
        numbers, polygon_ends, object_ends = array("d"), array("q", [0]), array("q", [0])
        self.short: list[int] = []
        self.runs: dict[int, dict[str, Any]] = {}
        for index, segment in enumerate(segments):
            if isinstance(segment, dict):
                self.runs[index] = _check_runs(segment, place(index))
            for polygon in segment if isinstance(segment, list) else ():
                if not isinstance(polygon, list) or (len(polygon) % 2 and len(polygon) > 6):
                    raise UsageError(
                        f"{place(index)} has a polygon {str(polygon)[:60]}; expected a list of polygons, each x, y, x, "
                        "y ... in pixels: fix it, or delete the annotation."
                    )
                if len(polygon) < 6:
                    self.short += [index] if index not in self.short[-1:] else []
                    continue
                try:
                    numbers.extend(polygon)
                except TypeError as error:
                    raise UsageError(f"{place(index)} has a polygon with values that are not numbers.") from error
                polygon_ends.append(len(numbers))
            if not isinstance(segment, (dict, list, type(None))):
                raise UsageError(
                    f"{place(index)} has the mask {str(segment)[:60]!r}; expected polygons or run lengths."
                )
            object_ends.append(len(polygon_ends) - 1)
        self._numbers, self._polygon_ends, self._object_ends = map(np.array, (numbers, polygon_ends, object_ends))
        polygons = np.searchsorted(self._polygon_ends, np.flatnonzero(~np.isfinite(self._numbers)), "right") - 1
        self.broken = np.unique(np.searchsorted(self._object_ends, polygons, "right") - 1)
        self.exists = np.diff(self._object_ends) > 0
        self.exists[list(self.runs)] = True

    def __getitem__(self, index: int) -> Segment | None:
        if index in self.runs:
            return self.runs[index]
        first, end = self._object_ends[index : index + 2]
        borders = self._polygon_ends[first : end + 1].tolist()
        return [self._numbers[start:stop].tolist() for start, stop in pairwise(borders)] or None


def _check_runs(runs: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Run lengths unchanged; an error if they are not in COCO's notation."""
    size: Any = runs.get("size")
    counts = runs.get("counts")
    is_size = isinstance(size, (list, tuple)) and len(size) == 2 and all(isinstance(side, int) for side in size)
    if not is_size or not isinstance(counts, (list, str, bytes)):
        raise UsageError(
            f"{place} has run lengths with the keys {sorted(runs)}; expected 'size', height and width in pixels, and "
            "'counts', a list or text."
        )
    if isinstance(counts, list) and sum(counts) != size[0] * size[1]:
        raise UsageError(f"{place} has run lengths of {sum(counts)} pixels; expected {size[0]} x {size[1]}, its size.")
    return dict(runs)


@dataclass(frozen=True)
class Annotations:
    """What a format's reader found in a split, before it is cleaned. All images are there, also missing ones.

    Attributes:
        images: The images, without labels; the file of one that does not exist is "".
        exists: (images,) bool: whether the image exists.
        image_name: Says the name of an image, for messages.
        image_ids: (images,) their ids.
        sizes: (images, 2) height and width in pixels; 0 for an image that cannot be read.
        owners: (objects,) index of each object's image.
        boxes: (objects, 4) left, top, right, bottom in pixels.
        labels: (objects,) class, from 0.
        place: Says where an object is annotated, for messages: a file, and the line or the id of the annotation.
        names: Names of the classes.
        source: The file or folder, for messages.
        split: Name of the split; None if there are no splits.
        splits: Names of all splits of the source.
        crowd: (objects,) bool; None if there are no crowds.
        areas: (objects,) annotated areas, NaN where there is none; None if there are none.
        segments: (objects,) masks as they are stored; () if there are none.
        category_ids: The id of each class in COCO's files; () for 1 to n.
        extra: Names of image files that no annotation names.
    """

    images: ImageDataset
    exists: np.ndarray
    image_name: Callable[[int], str]
    image_ids: np.ndarray
    sizes: np.ndarray
    owners: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    place: Callable[[int], str]
    names: tuple[str, ...]
    source: str
    split: str | None = None
    splits: tuple[str, ...] = ()
    crowd: np.ndarray | None = None
    areas: np.ndarray | None = None
    segments: Sequence[Any] = ()
    category_ids: tuple[int, ...] = ()
    extra: Sequence[str] = ()


def split_of(name: str) -> str | None:
    """The split that the name of a folder or file stands for; None if it stands for none.

    Example:

        >>> split_of("valid"), split_of("instances_train2017"), split_of("contest")
        ('validation', 'train', None)
    """
    return next((SPLIT_OF[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_OF), None)


def choose_split(splits: Collection[str], split: str, source: Path) -> str | None:
    """The wanted one of the splits of a folder.

    Args:
        splits: Names of the splits that it has. A folder without any counts as the split "train", as the one for
            evaluation, and as the one that it is called.
        split: Name of the split; "evaluation" for the first of `EVAL_SPLITS` that exists.
        source: The folder.

    Raises:
        UsageError: There is no such split.
    """
    if not splits and (split in ("train", "evaluation") or SPLIT_OF.get(split, split) == split_of(source.name)):
        return None
    wanted = EVAL_SPLITS if split == "evaluation" else (split,)
    for name in wanted:
        if SPLIT_OF.get(name, name) in splits:
            return SPLIT_OF.get(name, name)
    has = f"the splits {sorted(splits)}" if splits else "no splits"
    raise UsageError(
        f"{str(source)!r} has {has}; expected {' or '.join(map(repr, wanted))}. Choose one of its splits with --split, "
        "or for a training with --train-split and --eval-split."
    )


def rows_of_files(files: Sequence[str | None], folder: Path) -> ImageDataset:
    """Image files as a data set without labels; a missing file becomes "".

    Raises:
        UsageError: The name of a file is no valid text.
    """
    columns = {"image": as_texts([file or "" for file in files])}
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features({"image": datasets.Image(decode=False)}))
    return ImageDataset(rows, "image", None, (), str(folder))


def upright_size(file: str | bytes) -> tuple[int, int]:
    """Height and width of an image in pixels, upright, from the header of its file or of its contents; (0, 0) if it
    cannot be read. An orientation behind the pixels of a PNG, which is rare, is not seen."""
    try:
        with Image.open(BytesIO(file) if isinstance(file, bytes) else file) as image:
            # The base class's method: the one for PNG reads all pixels.
            is_sideways = Image.Image.getexif(image).get(ExifTags.Base.Orientation) in _SIDEWAYS
            # The tags of a TIFF have the sides of the stored image; `size` is already that of the upright one.
            tags = getattr(image, "tag_v2", {})
            width, height = (int(tags.get(tag, side)) for tag, side in zip((256, 257), image.size, strict=True))
            return (width, height) if is_sideways else (height, width)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0, 0
