"""Pictures to learn from, wherever they lie.

In: a place: a folder of class folders or of pictures, parquet or webdataset files, a data set of the hub, CIFAR-10.
Out: its rows (`pictures.py`). What reads, lists, streams and shards is Hugging Face `datasets`; this module finds the
files, the splits and the columns, and knows no model, no size and no augmentation.
"""

import glob
import os
import tarfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from swinv2.errors import UsageError
from swinv2.images import SUFFIXES
from swinv2.train.cifar10 import LABELS, load_cifar10
from swinv2.train.pictures import Arrays, Pictures

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


def _open_cifar10(place: str, split: str) -> Arrays:
    if split not in ("train", "test", "evaluation"):
        raise UsageError(f"--data {place!r} is CIFAR-10, with the splits ['test', 'train']; there is no {split!r}.")
    with _refusing(place):
        images, labels = load_cifar10(place, train=split == "train")
    return Arrays(image=images, label=labels)


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
