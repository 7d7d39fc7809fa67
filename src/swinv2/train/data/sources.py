"""Data sets of images, wherever they lie.

In: a source: a folder of class folders or of images, parquet or webdataset files, a data set of the hub. Out: its
samples (`dataset.py`). What reads, lists, streams and shards is Hugging Face `datasets`; this module finds the files,
the splits and the columns, and knows no model, no size and no augmentation.
"""

import glob
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from datasets.data_files import DataFilesDict, get_data_patterns
from datasets.exceptions import DatasetGenerationError, DatasetsError

from swinv2.errors import UsageError, first_sentence
from swinv2.images import SUFFIXES
from swinv2.train.data.dataset import ImageDataset

IMAGE_COLUMNS = ("image", "img", "picture", "pixel_values", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "cls", "class", "target", "fine_label")
"""What the columns are taken to be called where their types do not say."""

EVAL_SPLITS = ("validation", "val", "valid", "test")
"""Where evaluation looks for images, in this order."""

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""What the folders of the splits of a folder of images are called."""

WEBDATASET_SUFFIXES = (".tar", ".tar.gz", ".tgz")

MOST_SHARDS = 64
"""Into how many parts rows on a disk are cut when they stream."""

_DAMAGED = (OSError, ValueError, RuntimeError, EOFError, LookupError, tarfile.TarError, DatasetsError)
"""What `datasets` and the readers below it raise on files that are damaged or empty."""


def open_dataset(
    source: str,
    split: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
    names: Sequence[str] = (),
) -> ImageDataset:
    """Opens a split of a data set.

    Args:
        source: A folder of class folders, perhaps below `train`, `validation` or `test`; a folder of images; one of
            `.parquet` or webdataset `.tar` files whose names may begin with the split; one that `datasets.save_to_disk`
            wrote; such a file, or a glob of them, which are whatever split is asked for; or the name of a data set on
            the hub, `name:configuration` if it has several.
        split: Its name; "evaluation" for the first there is of `EVAL_SPLITS`.
        image_column, label_column: Their names; None to find them.
        streaming: Whether to read one after another, as from the hub without downloading everything first.
        names: Names of the classes, where the data does not know them.

    Raises:
        UsageError: It cannot be opened, has no such split, or no images.
    """
    with _refusing(source):
        rows, found_split = _load(source, split, streaming)
        features = rows.features or (rows._resolve_features().features if streaming else None) or {}
    if not streaming and not len(rows):
        raise UsageError(f"--data {source!r} has no images in the split {split!r}.")
    images = _find_column(features, image_column, datasets.Image, IMAGE_COLUMNS, "--image-column", source)
    if images is None:
        raise UsageError(f"{source} has the columns {sorted(features)}; say with --image-column which holds images.")
    labels = _find_column(features, label_column, datasets.ClassLabel, LABEL_COLUMNS, "--label-column", source)
    known = features[labels].names if labels and isinstance(features[labels], datasets.ClassLabel) else ()
    if known and names and tuple(names) != tuple(known):
        raise UsageError(f"{source} names its classes {_few(known)}; leave out the other names, {_few(names)}.")
    if isinstance(features[images], datasets.Image):
        rows = rows.cast_column(images, datasets.Image(decode=False))
    return ImageDataset(rows, images, labels, tuple(known or names), source, found_split)


@contextmanager
def _refusing(source: str) -> Iterator[None]:
    """Says in a sentence what cannot be opened."""
    try:
        yield
    except UsageError:
        raise
    except _DAMAGED as error:
        reason = error.__cause__ if isinstance(error, DatasetGenerationError) else None
        raise UsageError(f"--data {source!r} cannot be opened: {first_sentence(reason or error)}") from error


def _load(source: str, split: str, streaming: bool) -> tuple[Any, str | None]:
    """The rows, and the split that they are; None of a source without splits."""
    path = Path(source)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        rows, found = _choose_split(datasets.load_from_disk(source), split, source)
        rows = rows.with_format(None)
        # Shards are what processes and workers share.
        return rows.to_iterable_dataset(num_shards=min(len(rows), MOST_SHARDS) or 1) if streaming else rows, found
    if path.is_dir():
        kind, files = _files_of_folder(path)
        return _choose_split(datasets.load_dataset(kind, data_files=files, streaming=streaming), split, source)
    if source.endswith((".parquet", *WEBDATASET_SUFFIXES)):
        matching = [source] if path.is_file() else sorted(glob.glob(source, recursive=True))
        if not matching:
            raise UsageError(f"--data {source!r} matches no file.")
        kind = "parquet" if source.endswith(".parquet") else "webdataset"
        files = {"train": [glob.escape(file) for file in matching]}
        return datasets.load_dataset(kind, data_files=files, streaming=streaming)["train"], None
    if path.exists():
        raise UsageError(
            f"--data {source!r} is a file; expected a folder, or files {', '.join(('.parquet', *WEBDATASET_SUFFIXES))}."
        )
    if path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        raise UsageError(f"--data {source!r} does not exist.")
    name, _, configuration = source.partition(":")
    return _choose_split(datasets.load_dataset(name, configuration or None, streaming=streaming), split, source)


def _files_of_folder(folder: Path) -> tuple[str, dict[str, list[str]]]:
    """What `datasets` calls a folder, and patterns for the files of each split."""
    for kind, suffixes in (("parquet", (".parquet",)), ("webdataset", WEBDATASET_SUFFIXES)):
        files = [file.name for file in folder.iterdir() if file.name.endswith(suffixes)]
        if files:
            return kind, _splits_of_files(folder, sorted(files), suffixes)
    return "imagefolder", _splits_of_images(folder)


def _splits_of_files(folder: Path, files: list[str], suffixes: tuple[str, ...]) -> dict[str, list[str]]:
    """Lets `datasets` tell from the names of files which split they are."""
    base = glob.escape(str(folder.resolve()))
    found = DataFilesDict.from_patterns(get_data_patterns(base), base_path=base)
    splits = {str(split): [file for file in of_split if file.endswith(suffixes)] for split, of_split in found.items()}
    left_out = sorted(set(files) - {Path(file).name for of_split in splits.values() for file in of_split})
    if left_out:
        raise UsageError(
            f"{folder} has the splits {sorted(splits)} and files of none, {_few(left_out)}; choose files with a glob."
        )
    return {split: [glob.escape(file) for file in of_split] for split, of_split in splits.items() if of_split}


def _splits_of_images(folder: Path) -> dict[str, list[str]]:
    """Finds the folders of splits, right below a folder of images.

    `datasets` by itself looks for "train", "test" and their like in all names below, and leaves every other image out
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
        others = [path.name for path in below if path not in chosen and any(map(_is_image, path.iterdir()))]
        if others:
            raise UsageError(
                f"{folder} holds {chosen[0].name!r}, which is the name of a split, beside folders of images, "
                f"{_few(others)}; move all classes below a folder 'train', or the others away."
            )
    folders = splits or {"train": [folder]}
    for split, paths in folders.items():
        if not any(_is_image(Path(file)) for path in paths for _, _, files in os.walk(path) for file in files):
            raise UsageError(f"--data {str(folder)!r} has no images in the split {split!r}.")
    return {split: [f"{glob.escape(str(path))}/**" for path in paths] for split, paths in folders.items()}


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES


def _choose_split(loaded: Any, split: str, source: str) -> tuple[Any, str | None]:
    if not isinstance(loaded, dict):
        return loaded, None
    wanted = EVAL_SPLITS if split == "evaluation" else (split,)
    for name in wanted:
        if name in loaded:
            return loaded[name], name
    raise UsageError(f"--data {source!r} has the splits {sorted(loaded)}; expected {' or '.join(map(repr, wanted))}.")


def _find_column(
    features: dict[str, Any], given: str | None, kind: type, usual: Sequence[str], flag: str, source: str
) -> str | None:
    """The column that is given, or the only one of a type, or else the only one of usual names; None if there is none.

    Raises:
        UsageError: There is no column of the given name, or there are several.
    """
    if given is not None:
        if given not in features:
            raise UsageError(f"{source} has no column {given!r}; it has {sorted(features)}.")
        return given
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    found = found or [name for name in usual if name in features]
    if len(found) > 1:
        raise UsageError(f"{source} has the columns {found}; choose one with {flag}.")
    return found[0] if found else None


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" ... ({len(names)})" if len(names) > 3 else "")
