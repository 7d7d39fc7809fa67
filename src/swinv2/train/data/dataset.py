"""A stored data set of images.

In: a `datasets` object that is indexed or streams; `sources.py` opens it. Out: samples, each an image that is not yet
decoded, possibly with a label or several; the labels alone; a share of the samples.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from textwrap import shorten
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import pyarrow as pa

from swinv2.errors import UsageError
from swinv2.train.data.augment import drawable
from swinv2.train.data.folders import EVAL_SPLITS


class Sample(NamedTuple):
    """An image, or a video, as it is stored.

    Attributes:
        image: Path or contents of an image file, or pixels (H, W) or (H, W, channels), eight bits; of a video, a
            `videos.dataset.Segment`.
        label: Index of its class, or indices if an image may have several labels; None if the data has no labels.
        name: Its name in messages.
    """

    image: Any
    label: int | tuple[int, ...] | None
    name: str


@dataclass(frozen=True)
class ImageDataset:
    """All samples of a split.

    Attributes:
        rows: A `datasets` object, which is indexed or, if the data streams, iterated.
        image_column, label_column: The columns of image and label.
        names: Names of the classes; empty if there are no labels or if the names are unknown.
        source: The source, for messages.
        split: Name of the split; None if the source has no splits.
        splits: Names of all splits of the source.
        chosen: Indices of the rows that count, in this order; None for all.
        numbers: The label of each number that is stored, -1 for labels that are left out; None if they are equal.
            `classes.py` makes it.
        several: Whether an image may have several labels or none: the labels are lists of integers, not integers.
    """

    things: ClassVar[str] = "images"
    """What the samples are, in messages."""

    table_of_labels: ClassVar[str] = "metadata.csv with the columns file_name and label"
    """A table that names labels, in messages."""

    rows: Any
    image_column: str
    label_column: str | None
    names: tuple[str, ...]
    source: str
    split: str | None = None
    splits: tuple[str, ...] = ()
    chosen: np.ndarray | None = None
    numbers: Mapping[int, int] | None = None
    several: bool = False

    @property
    def streams(self) -> bool:
        """Whether the samples can only be iterated, and their number is unknown."""
        return not hasattr(self.rows, "__len__")

    @property
    def has_evaluation_split(self) -> bool:
        """Whether the source has a split that "evaluation" stands for."""
        return not set(EVAL_SPLITS).isdisjoint(self.splits)

    def __len__(self) -> int:
        return len(self.rows) if self.chosen is None else len(self.chosen)

    def __getitem__(self, index: int) -> Sample:
        index = int(index if self.chosen is None else self.chosen[index])
        return self.sample(self.rows[index], index)

    def __iter__(self) -> Iterator[Sample]:
        if self.streams:
            return (self.sample(row, index) for index, row in enumerate(self.rows))
        return (self[index] for index in range(len(self)))

    def sample(self, row: dict[str, Any], index: int) -> Sample:
        """Makes a sample from a row of `rows`. A missing image becomes empty bytes, which are unreadable.

        Raises:
            UsageError: The label is no class.
        """
        image, name = row[self.image_column], f"{self.source}[{index}]"
        if isinstance(image, dict):
            name = image.get("path") or name
            image = image["bytes"] if image.get("bytes") is not None else image.get("path")
        if image is None:
            image = b""
        elif not isinstance(image, (str, bytes)):
            image = _as_pixels(image)
        label = None
        if self.label_column is not None:
            stored = row[self.label_column]
            label = self._classes_of(stored) if self.several else self._class_of(stored)
        return Sample(image, label, str(row.get("__key__", name)))

    def _classes_of(self, stored: Any) -> tuple[int, ...]:
        """The classes of a list of labels."""
        if not isinstance(stored, (list, tuple, np.ndarray)):
            raise self._label_error(stored)
        classes = [self._class_of(label) for label in stored]
        if len(set(stored)) < len(stored):
            raise self._label_error(stored)
        return tuple(label for label in classes if self.numbers is None or label >= 0)

    def _class_of(self, stored: Any) -> int:
        """The class of a label."""
        if not isinstance(stored, (int, np.integer)):
            raise self._label_error(stored)
        return int(stored if self.numbers is None else self.numbers[int(stored)])

    def _label_error(self, label: object) -> UsageError:
        """The error for a label of the data set that is no class."""
        expected = "lists of integers, each once, [] for no label" if self.several else "integers"
        return UsageError(
            f"{self.source} has the label {shorten(repr(label), 80)} in the column {self.label_column!r}; expected "
            f"{expected}. Give another --label-column; if the labels are words, leave out --streaming."
        )

    def pixels_of(self, index: int) -> np.ndarray:
        """A sample for people, (H, W, 3) of eight bits; see `augment.drawable`.

        Raises:
            BrokenImageError: It cannot be read.
        """
        return drawable(self[index].image)

    def labels(self) -> np.ndarray:
        """The label of every sample, (samples,); of samples with several labels, all of them, one sample after the
        other. No image is read.

        Raises:
            UsageError: There are no labels, they are no classes, or the data streams.
        """
        return np.fromiter(chain.from_iterable(self._lists_of_labels()), np.int64)

    def strata(self) -> np.ndarray:
        """One class for every sample, (samples,), to divide the data evenly: its label; of several labels, the one that
        is rarest in the data; -1 for a sample without labels."""
        lists = self._lists_of_labels()
        counts = Counter(chain.from_iterable(lists))
        return np.array([min(labels, key=lambda label: (counts[label], label), default=-1) for labels in lists])

    def _lists_of_labels(self) -> list[tuple[int, ...]]:
        """The labels of every sample."""
        if self.streams:
            raise UsageError(f"{self.source} streams, so its labels are not known in advance; leave out --streaming.")
        if self.label_column is None:
            raise self._no_labels_error()
        # The whole column at once: row by row, a million labels take a quarter of a minute.
        column = self.rows.with_format(None)[self.label_column][:]
        stored = column if self.chosen is None else [column[index] for index in self.chosen]
        return [self._classes_of(one) if self.several else (self._class_of(one),) for one in stored]

    def _file_names(self) -> list[str]:
        """The path of each image's file in the source; the index of an image that has none. No image is read."""
        indices = range(len(self)) if self.chosen is None else self.chosen.tolist()
        # Arrow reads this part of the column alone.
        column = self.rows.with_format("arrow")[:].column(self.image_column)
        paths: list[str | None] = [None] * len(column)
        if pa.types.is_struct(column.type) and column.type.get_field_index("path") >= 0:
            paths = [path for chunk in column.chunks for path in chunk.field("path").to_pylist()]
        elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            paths = column.to_pylist()
        folder = os.path.join(self.source, "")
        return [(paths[index] or str(index)).removeprefix(folder) for index in indices]

    def _no_labels_error(self) -> UsageError:
        """The error for a data set without labels."""
        others = sorted({*(self.rows.column_names)} - {self.image_column})
        if others:
            return UsageError(
                f"{self.source} has no labels, but the columns {others}; choose the one of the labels with "
                "--label-column."
            )
        return UsageError(
            f"{self.source} has no labels; sort the {self.things} into a folder for each class, or name their labels "
            f"in a {self.table_of_labels}. Only pretrain needs none."
        )

    def check_labels(self, classes: int) -> None:
        """Raises an error unless every label is one of so many classes.

        Raises:
            UsageError: A label is below 0 or too large, for example the -1 of splits with secret labels; or no sample
                has any label.
        """
        labels = self.labels()
        if not len(labels):
            raise UsageError(f"{self.source} has no label in the column {self.label_column!r}; each list is empty.")
        for label in (int(labels.min()), int(labels.max())):
            if not 0 <= label < classes:
                raise UsageError(f"{self.source} has a label {label}, but there are {classes} classes, from 0.")

    def share(self, fraction: float, seed: int) -> Self:
        """Draws a share of each class, at least one image, at random; of all images if there are no labels. An image of
        several labels counts for the rarest one; see `strata`.

        Equal seeds draw equal images; a smaller share is part of a larger one.

        Raises:
            UsageError: The share is out of its range, or the data streams.
        """
        if not 0.0 < fraction <= 1.0:
            raise UsageError(f"the share of the training images is {fraction}; expected above 0 and at most 1.")
        return self if fraction == 1.0 else self.divide(fraction, seed)[0]

    def divide(self, fraction: float, seed: int) -> tuple[Self, Self]:
        """Divides the images at random into a share of each class and the rest; each has at least one image of a class,
        if there are two.

        Raises:
            UsageError: The data streams.
        """
        return self._divide(fraction, np.random.default_rng(seed).permutation)

    def set_aside(self, share: float) -> tuple[Self, Self]:
        """Divides the images into the rest and a share of each class as `divide` does, but by the names of their files:
        images that are added or removed later, and another order, hardly change which of the others are set aside. The
        data must not stream."""
        keys = np.array([hash_name(name) for name in self._file_names()], np.uint64)
        return self._divide(1 - share, lambda members: members[np.argsort(~keys[members], kind="stable")])

    def _divide(self, fraction: float, shuffle: Callable[[np.ndarray], np.ndarray]) -> tuple[Self, Self]:
        """Divides the images into a share of each class, which is the first part of its shuffled indices, and the
        rest."""
        unlabelled = self.label_column is None and not self.streams
        labels = np.zeros(len(self), np.int64) if unlabelled else self.strata()
        is_drawn = np.zeros(len(labels), bool)
        for label in np.unique(labels):
            members = shuffle(np.flatnonzero(labels == label))
            is_drawn[members[: max(min(round(fraction * len(members)), len(members) - 1), 1)]] = True
        return self._part(is_drawn)

    def _part(self, is_drawn: np.ndarray) -> tuple[Self, Self]:
        """Divides the images into those that are drawn and the rest."""
        parts = np.flatnonzero(is_drawn), np.flatnonzero(~is_drawn)
        drawn, rest = (replace(self, chosen=part if self.chosen is None else self.chosen[part]) for part in parts)
        return drawn, rest


def hash_name(name: str) -> int:
    """A number of 64 bits that depends on a name alone."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest())


def _as_pixels(image: Any) -> np.ndarray:
    """The pixels of a stored image as an array. Lists have no dtype; if their numbers fit, they become eight bits."""
    pixels = np.asarray(image)
    if isinstance(image, list) and pixels.dtype.kind in "iu" and pixels.size:
        return pixels.astype(np.uint8) if pixels.min() >= 0 and pixels.max() <= 255 else pixels
    return pixels
