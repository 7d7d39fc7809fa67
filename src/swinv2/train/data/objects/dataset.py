"""A data set of images with boxes and masks, for detection and instance segmentation.

In: clean annotations; `opening.py` makes them. Out: images that are not yet decoded, each with its objects in pixels;
the number of objects of each class; a share of the images; the classes in another order. It knows no format, no image
size of a model and no augmentation, and draws no masks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import numpy as np

from swinv2.errors import UsageError, few
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.folders import EVAL_SPLITS
from swinv2.train.data.objects.annotations import Segment, SegmentStore


@dataclass(frozen=True)
class Objects:
    """The objects of an image.

    Attributes:
        boxes: (n, 4) float32: left, top, right, bottom in pixels of the upright image.
        labels: (n,) int64: class, from 0.
        crowd: (n,) bool: whether it is a region of many objects, COCO's iscrowd, or VOC's difficult object. It is used
            in an evaluation only, where what is found there is neither right nor wrong.
        areas: (n,) float64: the annotated area in pixels, COCO's `area`; otherwise the area of the box.
        segments: (n,) masks; None for an object without one.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    segments: tuple[Segment | None, ...]

    def __len__(self) -> int:
        return len(self.labels)


class AnnotatedImage(NamedTuple):
    """An image as it is stored, and its objects.

    Attributes:
        image: Path or contents of an image file, or pixels (H, W) or (H, W, channels), eight bits.
        objects: Its objects.
        name: Its name in messages.
        image_id: COCO's id of the image; otherwise its index in the split.
        annotated_size: Height and width in pixels to which the boxes belong, by the annotations; by the header of the
            file if the annotations have none. It differs from the size of the image if they belong to another one.
    """

    image: str | bytes | np.ndarray
    objects: Objects
    name: str
    image_id: int
    annotated_size: tuple[int, int] | None


@dataclass(frozen=True)
class ObjectDataset:
    """All images of a split with their objects; an image may have none.

    Attributes:
        names: Names of the classes.
        source: The source, for messages.
        split: Name of the split; None if the source has no splits.
        splits: Names of all splits of the source.
        category_ids: COCO's category id of each class, for files of results; otherwise 1 to n.
        has_masks: Whether every object that is no crowd has a mask, and there is one.
        images: The images that count, as a data set without labels.
        image_ids, sizes: (rows,), (rows, 2): id, and height and width of each row of `images`.
        starts: (rows + 1,) the first object of each row, and the end.
        boxes, labels, crowd, areas: All objects, one row after the other; see `Objects`.
        origins: (objects,) index of each object in `store`.
        store: The masks; None if there are none.
    """

    things: ClassVar[str] = "images"

    names: tuple[str, ...]
    source: str
    split: str | None
    splits: tuple[str, ...]
    category_ids: tuple[int, ...]
    has_masks: bool
    images: ImageDataset = field(repr=False)
    image_ids: np.ndarray = field(repr=False)
    sizes: np.ndarray = field(repr=False)
    starts: np.ndarray = field(repr=False)
    boxes: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    crowd: np.ndarray = field(repr=False)
    areas: np.ndarray = field(repr=False)
    origins: np.ndarray = field(repr=False)
    store: SegmentStore | None = field(repr=False)

    @property
    def has_evaluation_split(self) -> bool:
        """Whether the source has a split that "evaluation" stands for."""
        return not set(EVAL_SPLITS).isdisjoint(self.splits)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> AnnotatedImage:
        index = range(len(self))[index]
        image, _, name = self.images[index]
        row = index if self.images.chosen is None else int(self.images.chosen[index])
        height, width = map(int, self.sizes[row])
        size = (height, width) if height else None
        return AnnotatedImage(image, self._objects_of(row), name, int(self.image_ids[row]), size)

    def __iter__(self) -> Iterator[AnnotatedImage]:
        return (self[index] for index in range(len(self)))

    def _objects_of(self, row: int) -> Objects:
        """The objects of a row of `images`."""
        part = slice(*self.starts[row : row + 2])
        origins = self.origins[part].tolist()
        segments = tuple(None if self.store is None else self.store[origin] for origin in origins)
        boxes, labels, crowd, areas = (
            values[part].copy() for values in (self.boxes, self.labels, self.crowd, self.areas)
        )
        return Objects(boxes, labels, crowd, areas, segments)

    def counts(self) -> np.ndarray:
        """The number of objects of each class, (classes,), without crowds. No image is read."""
        is_chosen = np.ones(len(self.image_ids), bool)
        if self.images.chosen is not None:
            is_chosen[:] = False
            is_chosen[self.images.chosen] = True
        counted = np.repeat(is_chosen, np.diff(self.starts)) & ~self.crowd
        return np.bincount(self.labels[counted], minlength=len(self.names))

    def share(self, fraction: float, seed: int) -> "ObjectDataset":
        """Draws a share of the images at random. Equal seeds draw equal images; a smaller share is part of a larger
        one.

        Raises:
            UsageError: The share is out of its range.
        """
        return replace(self, images=self.images.share(fraction, seed))

    def set_aside(self, share: float) -> "tuple[ObjectDataset, ObjectDataset]":
        """Divides the images into the rest and a share, by the names of their files; see `ImageDataset.set_aside`."""
        rest, aside = self.images.set_aside(share)
        return replace(self, images=rest), replace(self, images=aside)

    def with_names(self, names: Sequence[str], whose: str) -> "ObjectDataset":
        """The same data with its classes in the order of other names, for example those of a model.

        Args:
            names: All names. Those that this data does not have get unused category ids.
            whose: Whose names they are, for the message: "the model".

        Raises:
            UsageError: A class of this data is not among the names, or a name is there twice.
        """
        check_names(names, whose)
        others = [name for name in self.names if name not in names]
        if others:
            raise UsageError(
                f"{self.source} has classes that {whose} does not have: {few(others)}; it has {few(names)}. Rename or "
                "delete them in the annotations."
            )
        ids = dict(zip(self.names, self.category_ids, strict=True))
        for name in names:
            ids.setdefault(name, max(ids.values()) + 1)
        numbers = np.array([names.index(name) for name in self.names], np.int64)
        category_ids = tuple(ids[name] for name in names)
        return replace(self, names=tuple(names), category_ids=category_ids, labels=numbers[self.labels])


def check_names(names: Sequence[str], whose: str) -> None:
    """Raises an error if a class name is there twice.

    Args:
        names: Names of the classes.
        whose: Whose names they are, for the message: a source, or "the model".

    Raises:
        UsageError: A name is there twice.
    """
    if len(set(names)) < len(names):
        repeated = next(name for index, name in enumerate(names) if name in names[:index])
        raise UsageError(f"{whose} has the class name {repeated!r} twice; give each class another name.")
