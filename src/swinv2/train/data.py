"""Pictures to learn from, wherever they lie.

In: a place: a folder of class folders or of pictures, parquet or webdataset files, a data set of the hub, CIFAR-10.
Out: rows, each a picture as it is stored and perhaps a label; nothing is decoded before it is needed. What reads,
lists, streams and shards is Hugging Face `datasets`; this module knows no model, no size and no augmentation.
"""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from swinv2.errors import UsageError
from swinv2.train.cifar10 import LABELS, load_cifar10

IMAGE_COLUMNS = ("image", "img", "picture", "pixel_values", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "cls", "class", "target", "fine_label")
"""What the columns are taken to be called where their types do not say."""

EVAL_SPLITS = ("validation", "val", "valid", "test")
"""Where evaluation looks for pictures, in this order."""

WEBDATASET_SUFFIXES = (".tar", ".tar.gz", ".tgz")


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
        for index, row in enumerate(self.rows):
            yield self.row(row, index)

    def row(self, row: dict[str, Any], index: int) -> Row:
        """Reads a row as `rows` gives it."""
        picture, name = row[self.image_column], f"{self.place}[{index}]"
        if isinstance(picture, dict):
            name = picture.get("path") or name
            picture = picture["bytes"] if picture.get("bytes") is not None else picture["path"]
        elif not isinstance(picture, (str, bytes)):
            picture = np.asarray(picture)
        label = None if self.label_column is None else row[self.label_column]
        return Row(picture, None if label is None else int(label), str(row.get("__key__", name)))

    def labels(self) -> np.ndarray:
        """The label of every row, without touching a picture.

        Raises:
            UsageError: There are none, or the data streams.
        """
        if self.label_column is None:
            raise UsageError(f"{self.place} has no labels; sort the pictures into a folder for each class.")
        if self.streams:
            raise UsageError(f"{self.place} streams: its labels are not known beforehand. Leave out --streaming.")
        labels = np.asarray(self.rows[self.label_column])
        return labels if self.chosen is None else labels[self.chosen]

    def share(self, fraction: float, seed: int) -> "Pictures":
        """Keeps a share of each class, drawn at random.

        Args:
            fraction: The share, above 0 and at most 1; of each class at least one picture is kept.
            seed: Equal seeds keep equal pictures.
        """
        if not 0.0 < fraction <= 1.0:
            raise UsageError(f"the share of the training pictures is {fraction}; expected above 0 and at most 1.")
        if fraction == 1.0:
            return self
        labels, draw = self.labels(), np.random.default_rng(seed)
        kept: list[np.ndarray] = []
        for label in np.unique(labels):
            members = draw.permutation(np.flatnonzero(labels == label))
            kept.append(members[: max(round(fraction * len(members)), 1)])
        chosen = np.sort(np.concatenate(kept))
        return replace(self, chosen=chosen if self.chosen is None else self.chosen[chosen])


class _Arrays:
    """Columns of arrays, with the part of `datasets.Dataset`'s interface that is used here."""

    def __init__(self, **columns: np.ndarray) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key: int | str) -> Any:
        return (
            self.columns[key] if isinstance(key, str) else {name: values[key] for name, values in self.columns.items()}
        )


def open_pictures(
    place: str,
    split: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
    names: Sequence[str] = (),
) -> Pictures:
    """Opens a split of a data set.

    Args:
        place: A folder of class folders, perhaps below `train`, `validation` or `test`; a folder of pictures; one that
            `datasets.save_to_disk` wrote; a file or glob of `.parquet` or webdataset `.tar` files; a folder of
            CIFAR-10 as `load_cifar10` understands it; or the name of a data set on the hub, `name:configuration` if it
            has several.
        split: Its name; "evaluation" for the first there is of `EVAL_SPLITS`.
        image_column, label_column: Their names; None to find them.
        streaming: Whether to read one after another, as from the hub without downloading everything first.
        names: Names of the classes, where the data does not know them.

    Raises:
        UsageError: It cannot be opened, has no such split, or no pictures.
    """
    if _is_cifar10(place):
        if streaming:
            raise UsageError(f"{place} lies in memory; leave out --streaming.")
        images, labels = load_cifar10(place, train=split == "train")
        return Pictures(_Arrays(image=images, label=labels), "image", "label", LABELS, place)
    rows = _load(place, split, streaming)
    features = rows.features or rows._resolve_features().features or {}
    image_column = _find_image_column(features, image_column, place)
    label_column, known = _find_label_column(features, label_column, place)
    import datasets

    if isinstance(features[image_column], datasets.Image):
        rows = rows.cast_column(image_column, datasets.Image(decode=False))
    if known and names and tuple(names) != tuple(known):
        raise UsageError(f"{place} names its classes {_few(known)}; leave out the other names, {_few(names)}.")
    return Pictures(rows, image_column, label_column, tuple(known or names), place)


def _is_cifar10(place: str) -> bool:
    folder = Path(place)
    return (folder / "cifar10_labels.npz").is_file() or (folder / "cifar-10-batches-py").is_dir()


def _load(place: str, split: str, streaming: bool) -> Any:
    import datasets

    folder = Path(place)
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            loaded = datasets.load_from_disk(place)
            if streaming:
                loaded = (
                    {name: rows.to_iterable_dataset() for name, rows in loaded.items()}
                    if isinstance(loaded, dict)
                    else loaded.to_iterable_dataset()
                )
        elif folder.is_dir():
            kind, files = _kind_of_folder(folder)
            where: dict[str, Any] = {"data_files": files} if files else {"data_dir": place}
            loaded = datasets.load_dataset(kind, streaming=streaming, **where)
        elif place.endswith((".parquet", *WEBDATASET_SUFFIXES)):
            files = sorted(glob.glob(place, recursive=True))
            if not files:
                raise UsageError(f"--data {place!r} matches no file.")
            kind = "parquet" if place.endswith(".parquet") else "webdataset"
            loaded = datasets.load_dataset(kind, data_files={split: files}, streaming=streaming)
        else:
            name, _, configuration = place.partition(":")
            loaded = datasets.load_dataset(name, configuration or None, streaming=streaming)
    except UsageError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"--data {place!r} cannot be opened: {_first_line(error)}") from error
    return _choose_split(loaded, split, place)


def _kind_of_folder(folder: Path) -> tuple[str, list[str]]:
    """What `datasets` calls a folder, and its files if only these count."""
    for kind, suffixes in (("parquet", (".parquet",)), ("webdataset", WEBDATASET_SUFFIXES)):
        files = sorted(str(file) for file in folder.iterdir() if file.name.endswith(suffixes))
        if files:
            return kind, [] if kind == "parquet" else files
    return "imagefolder", []


def _choose_split(loaded: Any, split: str, place: str) -> Any:
    if not isinstance(loaded, dict):
        return loaded
    wanted = EVAL_SPLITS if split == "evaluation" else (split,)
    for name in wanted:
        if name in loaded:
            return loaded[name]
    raise UsageError(f"--data {place!r} has the splits {sorted(loaded)}; expected {' or '.join(map(repr, wanted))}.")


def _find_image_column(features: dict[str, Any], given: str | None, place: str) -> str:
    import datasets

    if given is not None:
        if given not in features:
            raise UsageError(f"{place} has no column {given!r}; it has {sorted(features)}.")
        return given
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    images = images or [name for name in IMAGE_COLUMNS if name in features]
    if len(images) != 1:
        raise UsageError(f"{place} has the columns {sorted(features)}; say with --image_column which holds pictures.")
    return images[0]


def _find_label_column(features: dict[str, Any], given: str | None, place: str) -> tuple[str | None, Sequence[str]]:
    import datasets

    if given is not None and given not in features:
        raise UsageError(f"{place} has no column {given!r}; it has {sorted(features)}.")
    classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    found = [given] if given else classes or [name for name in LABEL_COLUMNS if name in features]
    if len(found) > 1:
        raise UsageError(f"{place} has the label columns {found}; choose one with --label_column.")
    if not found:
        return None, ()
    kind = features[found[0]]
    return found[0], tuple(kind.names) if isinstance(kind, datasets.ClassLabel) else ()


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" ... ({len(names)})" if len(names) > 3 else "")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
