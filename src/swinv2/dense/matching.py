"""Compares the objects and the detections of an image: which detection finds which object.

In: boxes or masks, classes and scores of an image. Out: for each detection, whether it finds an object, for each
threshold of the overlap and each range of areas; and errors for values that cannot be compared. `average_precision.py`
counts them. This module knows no image file, and no other image.

Source: pycocotools, cocoeval.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from swinv2.dense.masks import as_rle
from swinv2.errors import UsageError
from swinv2.lengths import Pair

RANGES = {"all": (0, 1e5**2), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e5**2)}
"""Smallest and largest area of an object that counts, in pixels."""

IOUS = np.linspace(0.5, 0.95, 10)
"""Intersection over union with which an object is found."""


class Truth(Protocol):
    """The objects of an image; arrays, or tensors on the CPU.

    Attributes:
        boxes: Left, top, right and bottom (objects, 4), in pixels.
        labels: The class of each object (objects,), from 0.
        crowd: Whether a box or mask holds several objects (objects,). A crowd need not be found, and detections in it
            do not count.
        areas: The annotated area of each object (objects,), in pixels.
        segments: The mask of each object, see `masks.decode_mask`; None if there are no masks. Only read if masks are
            compared.
    """

    @property
    def boxes(self) -> Any: ...
    @property
    def labels(self) -> Any: ...
    @property
    def crowd(self) -> Any: ...
    @property
    def areas(self) -> Any: ...
    @property
    def segments(self) -> Sequence[Any] | None: ...


@dataclass
class Regions:
    """The boxes or masks of an image as pycocotools compares them.

    Attributes:
        boxes: Left, top, right and bottom (n, 4) when it is made; then left, top, width and height.
        segments: The mask of each box; None if there are no masks.
        masks: Whether masks are compared instead of boxes.
        size: Height and width of the image, in pixels.
        source: What they are, for errors.

    Raises:
        UsageError: Masks are compared, and a box has none.
    """

    boxes: np.ndarray
    segments: Sequence[Any] | None
    masks: bool
    size: Pair
    source: str

    def __post_init__(self) -> None:
        self.boxes = with_sizes(self.boxes)
        given = sum(segment is not None for segment in self.segments or ())
        if self.masks and given != len(self.boxes):
            raise UsageError(
                f"{self.source} have {len(self.boxes)} boxes and {given or 'no'} masks; expected a mask for each box."
            )

    def take(self, rows: np.ndarray) -> Any:
        """Boxes (rows, 4) or a list of masks of some rows (rows,).

        Raises:
            UsageError: A mask is in none of COCO's notations, or has another size.
        """
        if not self.masks or self.segments is None:
            # pycocotools reads the memory row by row, whatever its order is.
            return np.ascontiguousarray(self.boxes[rows])
        return [as_rle(self.segments[row], self.size, f"{self.source}, mask {row},") for row in rows.tolist()]


def with_sizes(boxes: np.ndarray) -> np.ndarray:
    """Left, top, width and height of boxes (n, 4) of left, top, right and bottom."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def checked(objects: Any, others: Sequence[str], classes: int, source: str) -> tuple[np.ndarray, ...]:
    """Checks what is compared.

    Args:
        objects: Objects (`Truth`) or detections.
        others: Names of the fields to read besides boxes and labels.
        classes: Number of classes.
        source: What they are, for errors.

    Returns:
        The boxes (n, 4), the labels (n,) and the other fields (n,).

    Raises:
        UsageError: A shape is wrong, or a value is no class, NaN or infinite.
    """
    boxes, labels = np.asarray(objects.boxes, float), np.asarray(objects.labels)
    if not boxes.size and not labels.size:
        boxes, labels = np.zeros((0, 4)), np.zeros(0, np.int64)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise UsageError(f"{source} have boxes {boxes.shape}; expected (objects, 4): left, top, right, bottom.")
    if labels.dtype.kind not in "iu":
        raise UsageError(f"{source} have labels of {labels.dtype}; expected integers.")
    values = {"labels": labels, **{name: np.asarray(getattr(objects, name), float) for name in others}}
    for name, each in values.items():
        if each.shape != (len(boxes),):
            raise UsageError(f"{source} have {len(boxes)} boxes and {name} {each.shape}; expected one for each box.")
    for name, each in {"boxes": boxes, **values}.items():
        if not np.isfinite(each).all():
            raise UsageError(f"{source} have {name} that are NaN or infinite; expected finite values.")
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise UsageError(f"{source} have the label {wrong[0]}; expected 0 to {classes - 1}.")
    wrong = boxes[(boxes[:, 2:] < boxes[:, :2]).any(1)]
    if len(wrong):
        raise UsageError(f"{source} have the box {wrong[0].tolist()}; expected left, top, right, bottom.")
    return boxes, *values.values()


def outside_ranges(areas: np.ndarray) -> np.ndarray:
    """Whether areas in pixels (n,) are outside of each range (range, n)."""
    return np.stack([(areas < low) | (areas > high) for low, high in RANGES.values()])


def match(
    ious: np.ndarray, crowd: np.ndarray, ignored: np.ndarray, outside: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Matches detections and objects of a class, the highest score first. A detection gets the free object with the
    highest IoU, the last one of equals; an ignored object only if no other is free. A crowd is always free.

    Args:
        ious: Intersection over union (detection, object), sorted by score.
        crowd: Whether an object is a crowd (object,).
        ignored: Whether an object does not count (range, object).
        outside: Whether the area of a detection is outside of a range (range, detection).

    Returns:
        For each detection, range and threshold of `IOUS`: whether it finds an object that counts, and whether it does
        not count. A detection that is neither is wrong.
    """
    found = np.zeros((len(ious), len(RANGES), len(IOUS)), bool)
    unimportant = np.zeros_like(found)
    thresholds = np.minimum(IOUS, 1 - 1e-10)[:, None]
    free = np.ones((len(RANGES), len(IOUS), len(crowd)), bool)
    areas, limits = np.arange(len(RANGES))[:, None], np.arange(len(IOUS))
    for row in np.flatnonzero((ious >= IOUS[0]).any(1)):
        able = free & (ious[row] >= thresholds)
        counting = able & ~ignored[:, None]
        able = np.where(counting.any(2, keepdims=True), counting, able)
        best = len(crowd) - 1 - np.where(able, ious[row], -1)[..., ::-1].argmax(2)
        found[row] = able.any(2)
        unimportant[row] = found[row] & ignored[areas, best]
        free[areas, limits, best] &= ~found[row] | crowd[best]
    unimportant |= ~found & outside.T[:, :, None]
    return found & ~unimportant, unimportant
