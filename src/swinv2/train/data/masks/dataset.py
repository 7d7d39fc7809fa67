"""Images with masks: the class of each pixel, for semantic segmentation.

In: a stored data set with a column of images and a column of masks; `opening.py` opens it. Out: images and masks that
are not yet decoded; the classes of the pixels of a mask; the number of pixels of each class. What is stored is
translated here: values that do not count, labels from 1, another order of the classes. This module knows no folder, no
size and no augmentation.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from swinv2.errors import UsageError, few
from swinv2.images import BrokenImageError
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.masks.files import stored_values

logger = logging.getLogger(__name__)

IGNORED_PIXEL = 255
"""The class of a pixel that does not count, in the masks that are returned."""

MOST_CLASSES = 255

NO_VALUE = -1
"""The `ignore_index` of data whose pixels all count."""

_WRONG = 256
"""Marks stored values that are neither a class nor ignored."""

Advance = Callable[[int, int], object]
"""Takes the number of masks that are read, and of all."""


class MaskedImage(NamedTuple):
    """An image and its mask as they are stored.

    Attributes:
        image: Path or contents of an image file, or pixels (H, W) or (H, W, channels), eight bits.
        mask: Path or contents of an image file, or values (H, W).
        name: The image's name in messages.
        mask_name: The mask's name in messages.
    """

    image: str | bytes | np.ndarray
    mask: str | bytes | np.ndarray
    name: str
    mask_name: str


@dataclass(frozen=True)
class MaskDataset:
    """All images of a split, with masks.

    Attributes:
        images: The images, without labels. Their rows also have the masks.
        mask_column: The column of the masks.
        names: Names of the classes.
        values: The stored value of each class, in the order of the names.
        ignore_index: The stored value of pixels that do not count; `NO_VALUE` if all count.
        reduce_labels: Whether the stored 0 is no class. Such pixels do not count; `values` then begins at 1.
        colours: The stored value that each colour 0xRRGGBB stands for; None if the masks have values.

    Raises:
        UsageError: There are too many classes, or two have the same name.
    """

    things: ClassVar[str] = "images"

    images: ImageDataset
    mask_column: str
    names: tuple[str, ...] = ()
    values: tuple[int, ...] = ()
    ignore_index: int = 255
    reduce_labels: bool = False
    colours: Mapping[int, int] | None = None

    def __post_init__(self) -> None:
        if len(self.names) > MOST_CLASSES:
            raise UsageError(f"{self.source} has {len(self.names)} classes; expected at most {MOST_CLASSES}.")
        twice = [repr(name) for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise UsageError(f"{self.source} has several classes with the name {few(twice)}; give each its own name.")

    @property
    def source(self) -> str:
        """The source, for messages."""
        return self.images.source

    @property
    def split(self) -> str | None:
        """Name of the split; None if the source has no splits."""
        return self.images.split

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of all splits of the source."""
        return self.images.splits

    @property
    def has_evaluation_split(self) -> bool:
        """Whether the source has a split that "evaluation" stands for."""
        return self.images.has_evaluation_split

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> MaskedImage:
        row_index = int(index if self.images.chosen is None else self.images.chosen[index])
        row: dict[str, Any] = self.images.rows[row_index]
        image = self.images.sample(row, row_index)
        mask = replace(self.images, image_column=self.mask_column).sample(row, row_index)
        mask_name = mask.name if mask.name != image.name else f"{mask.name} ({self.mask_column})"
        return MaskedImage(image.image, mask.image, image.name, mask_name)

    def __iter__(self) -> Iterator[MaskedImage]:
        return (self[index] for index in range(len(self)))

    def read_mask(self, sample: MaskedImage) -> np.ndarray:
        """Reads the class of each pixel.

        Returns:
            (H, W), uint8: the index of a name, or `IGNORED_PIXEL`. The mask is as it is stored: EXIF data of the image
            does not turn it.

        Raises:
            BrokenImageError: The mask's file cannot be read.
            UsageError: A value or a colour is no class, or the file is no mask.
        """
        stored = stored_values(sample.mask, sample.mask_name, self.colours).astype(np.int64)
        table = np.full(max(*self.values, self.ignore_index, 0) + 2, _WRONG, np.int16)
        table[list(self.values)] = np.arange(len(self.values))
        if self.reduce_labels:
            table[0] = IGNORED_PIXEL
        if self.ignore_index >= 0:
            table[self.ignore_index] = IGNORED_PIXEL
        # The last entry of the table is for all that is outside.
        classes = table[np.where(stored < 0, len(table) - 1, np.minimum(stored, len(table) - 1))]
        wrong = stored[classes == _WRONG]
        if wrong.size:
            raise self._value_error(sample, int(wrong.min()), int((wrong == wrong.min()).sum()))
        return classes.astype(np.uint8)

    def _value_error(self, sample: MaskedImage, value: int, pixels: int) -> UsageError:
        """The error for a stored value that is no class."""
        values = sorted(self.values)
        is_range = values == list(range(values[0], values[-1] + 1))
        expected = f"{values[0]} to {values[-1]}" if is_range else few(list(map(str, values)), 5)
        ignored = [str(self.ignore_index)] * (self.ignore_index >= 0) + ["0"] * self.reduce_labels
        others = f", or {' or '.join(ignored)} for pixels that do not count" if ignored else ""
        return UsageError(
            f"{sample.mask_name} has the value {value} in {pixels:,} pixels; expected {expected}{others}. If {value} "
            f"is no class, give --ignore-index {value}; if 0 is none and the classes begin at 1, --reduce-labels; if "
            f"{value} is a class, give more names with --label-names-file."
        )

    def count_pixels(self, advance: Advance | None = None) -> np.ndarray:
        """The number of pixels of each class in all masks, (classes,), int64. Masks that cannot be read are left out,
        with a warning."""
        counts = np.zeros(len(self.names), np.int64)
        for _, classes in _each([self], lambda dataset, sample: dataset.read_mask(sample), advance):
            counts += np.bincount(classes[classes != IGNORED_PIXEL], minlength=len(counts))
        return counts

    def share(self, fraction: float, seed: int) -> "MaskDataset":
        """Draws a share of the images, at least one, at random. Equal seeds draw equal images; a smaller share is part
        of a larger one."""
        return replace(self, images=self.images.share(fraction, seed))

    def set_aside(self, share: float) -> "tuple[MaskDataset, MaskDataset]":
        """Divides the images into the rest and a share, by the names of the images' files; see
        `ImageDataset.set_aside`."""
        rest, aside = self.images.set_aside(share)
        return replace(self, images=rest), replace(self, images=aside)

    def with_names(self, names: Sequence[str], whose: str) -> "MaskDataset":
        """Gives the data the classes of a model or of other data, by name.

        If one side has only the numbers "0", "1" and so on as names, equal numbers of classes match in their order; a
        warning says so.

        Args:
            names: Names of the classes, in the order of the labels.
            whose: What has these classes, for messages.

        Raises:
            UsageError: A class is missing on one side.
        """
        names = tuple(names)
        if names == self.names:
            return self
        if len(names) == len(self.names) and (_are_numbers(names) or _are_numbers(self.names)):
            logger.warning(
                f"{self.source} has the classes {_quoted(self.names)}, {whose} {_quoted(names)}; they are matched in "
                "their order"
            )
            return replace(self, names=names)
        sides = ((self.source, set(names) - set(self.names)), (whose, set(self.names) - set(names)))
        wrong = [f"{side} lacks the classes {_quoted(sorted(lacks))}" for side, lacks in sides if lacks]
        if wrong:
            raise UsageError(
                f"{' and '.join(wrong)}; {self.source} has {len(self.names)} classes, {whose} has {len(names)}. Both "
                "must be the same, so give both the same --label-names-file, and the same --ignore-index."
            )
        return replace(self, names=names, values=tuple(self.values[self.names.index(name)] for name in names))


def scan_values(datasets: Sequence[MaskDataset], advance: Advance | None = None) -> dict[int, str]:
    """The values that are stored in all masks, each with the name of the first mask that has it. Masks that cannot be
    read are left out, with a warning.

    Raises:
        UsageError: A file is no mask.
    """
    found: dict[int, str] = {}

    def values_of(dataset: MaskDataset, sample: MaskedImage) -> np.ndarray:
        return np.unique(stored_values(sample.mask, sample.mask_name, dataset.colours))

    for sample, values in _each(datasets, values_of, advance):
        for value in values.tolist():
            found.setdefault(value, sample.mask_name)
    return found


def _each(
    datasets: Sequence[MaskDataset], read: Callable[[MaskDataset, MaskedImage], np.ndarray], advance: Advance | None
) -> Iterator[tuple[MaskedImage, np.ndarray]]:
    """Reads all masks, and warns of those that cannot be read."""
    broken: list[str] = []
    total, done = sum(map(len, datasets)), 0
    for dataset in datasets:
        for sample in dataset:
            try:
                yield sample, read(dataset, sample)
            except BrokenImageError as error:
                broken.append(f"{sample.mask_name}: {error}")
            done += 1
            if advance is not None:
                advance(done, total)
    if broken:
        logger.warning(f"masks that cannot be read are left out: {few(broken, 1)}")


def check_size(image_size: tuple[int, int], mask_size: tuple[int, int], sample: MaskedImage) -> None:
    """Raises an error unless an image and its mask have the same size.

    Args:
        image_size, mask_size: Height and width in pixels, of the upright image.
        sample: Both, for the message.

    Raises:
        UsageError: The sizes differ.
    """
    if tuple(image_size) != tuple(mask_size):
        (height, width), (mask_height, mask_width) = image_size, mask_size
        raise UsageError(
            f"{sample.mask_name} has {mask_width} x {mask_height} pixels, its image {sample.name} has {width} x "
            f"{height}; expected equal sizes. An image is read upright, as its EXIF data says, and a mask as it is "
            "stored: save both upright, in the same size."
        )


def _are_numbers(names: Sequence[str]) -> bool:
    """Whether names of classes are only "0", "1" and so on."""
    return list(names) == [str(number) for number in range(len(names))]


def _quoted(names: Sequence[str]) -> str:
    """The first of some classes, for a message."""
    return few([repr(name) for name in names], 5)
