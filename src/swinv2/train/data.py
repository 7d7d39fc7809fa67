"""Pictures to learn from, wherever they lie.

In: a place: a folder of class folders or of pictures, parquet or webdataset files, a data set of the hub, CIFAR-10.
Out: rows, each a picture as it is stored and perhaps a label; nothing is decoded before it is needed. What reads,
lists, streams and shards is Hugging Face `datasets`; this module knows no model, no size and no augmentation.
"""

import glob
import os
import tarfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from swinv2.errors import UsageError
from swinv2.images import SUFFIXES
from swinv2.train.cifar10 import LABELS, load_cifar10

IMAGE_COLUMNS = ("image", "img", "picture", "pixel_values", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "cls", "class", "target", "fine_label")
"""What the columns are taken to be called where their types do not say."""

EVAL_SPLITS = ("validation", "val", "valid", "test")
"""Where evaluation looks for pictures, in this order."""

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""What the folders of the splits of a folder of pictures are called."""

WEBDATASET_SUFFIXES = (".tar", ".tar.gz", ".tgz")

MOST_SHARDS = 64
"""Into how many parts rows on a disk are cut when they stream."""


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
        rows = self.rows if isinstance(self.rows, _Arrays) else self.rows.with_format("numpy")
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
        place: A folder of class folders, perhaps below `train`, `validation` or `test`; a folder of pictures; one of
            `.parquet` or webdataset `.tar` files whose names may begin with the split; one that `datasets.save_to_disk`
            wrote; such a file, or a glob of them, which are whatever split is asked for; a folder of CIFAR-10 as
            `load_cifar10` understands it; or the name of a data set on the hub, `name:configuration` if it has several.
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
        rows = _open_cifar10(place, split)
        features, known = rows.columns, LABELS
        image_column, label_column = (
            _given_column(features, given or usual, place)
            for given, usual in ((image_column, "image"), (label_column, "label"))
        )
    else:
        import datasets

        with _refusing(place):
            rows = _load(place, split, streaming)
            features = rows.features or (rows._resolve_features().features if streaming else None) or {}
        if not streaming and not len(rows):
            raise UsageError(f"--data {place!r} has no pictures in the split {split!r}.")
        image_column = _find_image_column(features, image_column, place)
        label_column, known = _find_label_column(features, label_column, place)
        if isinstance(features[image_column], datasets.Image):
            rows = rows.cast_column(image_column, datasets.Image(decode=False))
    if known and names and tuple(names) != tuple(known):
        raise UsageError(f"{place} names its classes {_few(known)}; leave out the other names, {_few(names)}.")
    return Pictures(rows, image_column, label_column, tuple(known or names), place)


def has_one_split(place: str) -> bool:
    """Whether a place answers to every name of a split with the same rows: a file, a glob, or one saved data set."""
    path = Path(place)
    is_file = place.endswith((".parquet", *WEBDATASET_SUFFIXES)) and not path.is_dir()
    return is_file or ((path / "state.json").is_file() and not (path / "dataset_dict.json").is_file())


def _is_cifar10(place: str) -> bool:
    folder = Path(place)
    return (folder / "cifar10_labels.npz").is_file() or (folder / "cifar-10-batches-py").is_dir()


def _open_cifar10(place: str, split: str) -> _Arrays:
    if split not in ("train", "test", "evaluation"):
        raise UsageError(f"--data {place!r} is CIFAR-10, with the splits ['test', 'train']; there is no {split!r}.")
    with _refusing(place):
        images, labels = load_cifar10(place, train=split == "train")
    return _Arrays(image=images, label=labels)


@contextmanager
def _refusing(place: str) -> Iterator[None]:
    """Says in a sentence what cannot be opened."""
    from datasets.exceptions import DatasetGenerationError, DatasetsError

    # What `datasets` and the readers below it raise on files that are damaged or empty.
    damaged = (OSError, ValueError, RuntimeError, EOFError, LookupError, tarfile.TarError, DatasetsError)
    try:
        yield
    except UsageError:
        raise
    except damaged as error:
        reason = error.__cause__ if isinstance(error, DatasetGenerationError) else None
        raise UsageError(f"--data {place!r} cannot be opened: {_first_line(reason or error)}") from error


def _load(place: str, split: str, streaming: bool) -> Any:
    import datasets

    path = Path(place)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        loaded: Any = datasets.load_from_disk(place)
        rows = _choose_split(loaded, split, place).with_format(None)
        # Shards are what processes and workers share.
        return rows.to_iterable_dataset(num_shards=max(min(len(rows), MOST_SHARDS), 1)) if streaming else rows
    if path.is_dir():
        kind, files = _files_of_folder(path)
        return _choose_split(datasets.load_dataset(kind, data_files=files, streaming=streaming), split, place)
    if place.endswith((".parquet", *WEBDATASET_SUFFIXES)):
        found = [place] if path.is_file() else sorted(glob.glob(place, recursive=True))
        if not found:
            raise UsageError(f"--data {place!r} matches no file.")
        kind = "parquet" if place.endswith(".parquet") else "webdataset"
        files = {"train": [glob.escape(file) for file in found]}
        return datasets.load_dataset(kind, data_files=files, streaming=streaming)["train"]
    if path.exists():
        raise UsageError(
            f"--data {place!r} is a file; expected a folder, or files {', '.join(('.parquet', *WEBDATASET_SUFFIXES))}."
        )
    if path.is_absolute() or place.startswith((".", "~")) or place.count("/") > 1:
        raise UsageError(f"--data {place!r} does not exist.")
    name, _, configuration = place.partition(":")
    return _choose_split(datasets.load_dataset(name, configuration or None, streaming=streaming), split, place)


def _files_of_folder(folder: Path) -> tuple[str, dict[str, list[str]]]:
    """What `datasets` calls a folder, and patterns for the files of each split."""
    for kind, suffixes in (("parquet", (".parquet",)), ("webdataset", WEBDATASET_SUFFIXES)):
        files = [file.name for file in folder.iterdir() if file.name.endswith(suffixes)]
        if files:
            return kind, _splits_of_files(folder, sorted(files), suffixes)
    return "imagefolder", _splits_of_pictures(folder)


def _splits_of_files(folder: Path, files: list[str], suffixes: tuple[str, ...]) -> dict[str, list[str]]:
    """Lets `datasets` tell from the names of files which split they are."""
    from datasets.data_files import DataFilesDict, get_data_patterns

    base = glob.escape(str(folder.resolve()))
    found = DataFilesDict.from_patterns(get_data_patterns(base), base_path=base)
    splits = {str(split): [file for file in of_split if file.endswith(suffixes)] for split, of_split in found.items()}
    left_out = sorted(set(files) - {Path(file).name for of_split in splits.values() for file in of_split})
    if left_out:
        raise UsageError(
            f"{folder} has the splits {sorted(splits)} and files of none, {_few(left_out)}; choose files with a glob."
        )
    return {split: [glob.escape(file) for file in of_split] for split, of_split in splits.items() if of_split}


def _splits_of_pictures(folder: Path) -> dict[str, list[str]]:
    """Finds the folders of splits, right below a folder of pictures.

    `datasets` by itself looks for "train", "test" and their like in all names below, and leaves every other picture out
    once it found one: of the classes "bus" and "train" the first, of "contest-1.png" and "my-test-2.png" the first.
    """
    below = sorted(path for path in folder.iterdir() if path.is_dir())
    split_of = {called: split for split, names in SPLIT_FOLDERS.items() for called in names}
    splits: dict[str, list[Path]] = {}
    for path in below:
        if path.name.lower() in split_of:
            splits.setdefault(split_of[path.name.lower()], []).append(path)
    if len(splits) == 1:
        (chosen,) = splits.values()
        others = [
            path.name for path in below if path not in chosen and any(_is_picture(file) for file in path.iterdir())
        ]
        if others:
            raise UsageError(
                f"{folder} holds {chosen[0].name!r}, which is the name of a split, beside folders of pictures, "
                f"{_few(others)}; move all classes below a folder 'train', or the others away."
            )
    places = splits or {"train": [folder]}
    for split, paths in places.items():
        if not any(_is_picture(Path(file)) for path in paths for _, _, files in os.walk(path) for file in files):
            raise UsageError(f"--data {str(folder)!r} has no pictures in the split {split!r}.")
    return {split: [f"{glob.escape(str(path))}/**" for path in paths] for split, paths in places.items()}


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES


def _choose_split(loaded: Any, split: str, place: str) -> Any:
    if not isinstance(loaded, dict):
        return loaded
    wanted = EVAL_SPLITS if split == "evaluation" else (split,)
    for name in wanted:
        if name in loaded:
            return loaded[name]
    raise UsageError(f"--data {place!r} has the splits {sorted(loaded)}; expected {' or '.join(map(repr, wanted))}.")


def _as_pixels(picture: Any) -> np.ndarray:
    """An array; as eight bits if it comes as lists, which do not say of how many bits their numbers are."""
    pixels = np.asarray(picture)
    if isinstance(picture, list) and pixels.dtype.kind in "iu" and pixels.size:
        return pixels.astype(np.uint8) if pixels.min() >= 0 and pixels.max() <= 255 else pixels
    return pixels


def _given_column(features: Collection[str], given: str, place: str) -> str:
    if given not in features:
        raise UsageError(f"{place} has no column {given!r}; it has {sorted(features)}.")
    return given


def _find_image_column(features: dict[str, Any], given: str | None, place: str) -> str:
    import datasets

    if given is not None:
        return _given_column(features, given, place)
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    images = images or [name for name in IMAGE_COLUMNS if name in features]
    if len(images) != 1:
        raise UsageError(f"{place} has the columns {sorted(features)}; say with --image_column which holds pictures.")
    return images[0]


def _find_label_column(features: dict[str, Any], given: str | None, place: str) -> tuple[str | None, Sequence[str]]:
    import datasets

    if given is not None:
        _given_column(features, given, place)
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


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
