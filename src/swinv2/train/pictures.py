"""Rows of pictures to learn from, as they are stored.

In: columns in memory, or a `datasets` object that is indexed or streams. Out: rows, each a picture that nobody has
decoded yet and perhaps a label; the labels alone; a share of the rows. Where the rows come from is `data.py`'s.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from swinv2.errors import UsageError


class Row(NamedTuple):
    """A picture as it is stored.

    Attributes:
        picture: Path or contents of an image file, or pixels (H, W) or (H, W, channels), eight bits.
        label: Index of its class; None if the data has no labels.
        name: What to call it in messages.
    """

    picture: str | bytes | np.ndarray
    label: int | None
    name: str


@dataclass(frozen=True)
class Pictures:
    """All rows of a split.

    Attributes:
        rows: What is indexed or, if the data streams, iterated: a `datasets` object, or arrays.
        image_column, label_column: Where picture and label stand in a row.
        names: Names of the classes; empty if there are no labels, or if nobody knows what they are called.
        place: Where they came from, for messages.
        chosen: Which rows count, in this order; None for all.
    """

    rows: Any
    image_column: str
    label_column: str | None
    names: tuple[str, ...]
    place: str
    chosen: np.ndarray | None = None

    @property
    def streams(self) -> bool:
        """Whether the rows come one after another, with no number and no length."""
        return not hasattr(self.rows, "__len__")

    def __len__(self) -> int:
        return len(self.rows) if self.chosen is None else len(self.chosen)

    def __getitem__(self, index: int) -> Row:
        index = int(index if self.chosen is None else self.chosen[index])
        return self.row(self.rows[index], index)

    def __iter__(self) -> Iterator[Row]:
        if self.streams:
            for index, row in enumerate(self.rows):
                yield self.row(row, index)
        else:
            for index in range(len(self)):
                yield self[index]

    def row(self, row: dict[str, Any], index: int) -> Row:
        """Reads a row as `rows` gives it. A picture that is not there is empty, and so cannot be read.

        Raises:
            UsageError: The label is no integer.
        """
        picture, name = row[self.image_column], f"{self.place}[{index}]"
        if isinstance(picture, dict):
            name = picture.get("path") or name
            picture = picture["bytes"] if picture.get("bytes") is not None else picture.get("path")
        if picture is None:
            picture = b""
        elif not isinstance(picture, (str, bytes)):
            picture = _as_pixels(picture)
        name = str(row.get("__key__", name))
        if self.label_column is None:
            return Row(picture, None, name)
        label = row[self.label_column]
        if not isinstance(label, (int, np.integer)):
            raise self._no_integer(label)
        return Row(picture, int(label), name)

    def _no_integer(self, label: object) -> UsageError:
        return UsageError(
            f"{self.place} has the label {label!r} in the column {self.label_column!r}; expected integers, which the "
            "`class_encode_column` of `datasets` makes of names, or another --label_column."
        )

    def labels(self) -> np.ndarray:
        """The label of every row, without touching a picture.

        Raises:
            UsageError: There are none, they are no integers, or the data streams.
        """
        if self.streams:
            raise UsageError(f"{self.place} streams: its labels are not known beforehand. Leave out --streaming.")
        if self.label_column is None:
            raise UsageError(f"{self.place} has no labels; sort the pictures into a folder for each class.")
        # Row by row, a million labels take a quarter of a minute.
        rows = self.rows if isinstance(self.rows, Arrays) else self.rows.with_format("numpy")
        labels = np.asarray(rows[self.label_column][:])
        if labels.dtype.kind not in "iub":
            raise self._no_integer(next(label for label in self.rows[self.label_column] if not isinstance(label, int)))
        return labels if self.chosen is None else labels[self.chosen]

    def check_labels(self, classes: int) -> None:
        """Refuses labels without a class.

        Args:
            classes: How many there are, from 0.

        Raises:
            UsageError: A label is none of them, such as the -1 of splits whose labels are kept secret.
        """
        labels = self.labels()
        for label in (int(labels.min()), int(labels.max())):
            if not 0 <= label < classes:
                raise UsageError(f"{self.place} has a label {label}, but there are {classes} classes, from 0.")

    def share(self, fraction: float, seed: int) -> "Pictures":
        """Keeps a share of each class, or of all pictures if there are no classes, drawn at random.

        Args:
            fraction: The share, above 0 and at most 1; of each class at least one picture is kept.
            seed: Equal seeds keep equal pictures, and a smaller share is part of a larger one.

        Raises:
            UsageError: There is no such share, or the data streams.
        """
        if not 0.0 < fraction <= 1.0:
            raise UsageError(f"the share of the training pictures is {fraction}; expected above 0 and at most 1.")
        if fraction == 1.0:
            return self
        unlabelled = self.label_column is None and not self.streams
        labels = np.zeros(len(self), np.int64) if unlabelled else self.labels()
        draw = np.random.default_rng(seed)
        kept: list[np.ndarray] = []
        for label in np.unique(labels):
            members = draw.permutation(np.flatnonzero(labels == label))
            kept.append(members[: max(round(fraction * len(members)), 1)])
        chosen = np.sort(np.concatenate(kept))
        return replace(self, chosen=chosen if self.chosen is None else self.chosen[chosen])


class Arrays:
    """Columns of arrays, with the part of `datasets.Dataset`'s interface that `Pictures` uses.

    Args:
        columns: Arrays of equal length, by the names of the columns.
    """

    def __init__(self, **columns: np.ndarray) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key: int | str) -> Any:
        return (
            self.columns[key] if isinstance(key, str) else {name: values[key] for name, values in self.columns.items()}
        )


def _as_pixels(picture: Any) -> np.ndarray:
    """An array; as eight bits if it comes as lists, which do not say of how many bits their numbers are."""
    pixels = np.asarray(picture)
    if isinstance(picture, list) and pixels.dtype.kind in "iu" and pixels.size:
        return pixels.astype(np.uint8) if pixels.min() >= 0 and pixels.max() <= 255 else pixels
    return pixels
