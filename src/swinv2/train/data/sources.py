"""Opens data sets of images from folders, files or the hub.

In: a source: a folder of class folders or of images, parquet or webdataset files, a data set on the hub. Out: an
`ImageDataset`. Hugging Face `datasets` reads, lists, streams and shards; this module finds the files, the splits and
the columns. It knows no model, no size and no augmentation.
"""

import glob
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from datasets.config import HF_DATASETS_DISABLE_PROGRESS_BARS
from datasets.data_files import DataFilesDict, get_data_patterns
from datasets.exceptions import DatasetGenerationError, DatasetsError

from swinv2.errors import UsageError, few, first_sentence
from swinv2.images import images_inside, is_hidden
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.folders import EVAL_SPLITS, METADATA, folders_in, open_folder

IMAGE_COLUMNS = ("image", "img", "picture", "pixel_values", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "cls", "class", "target", "fine_label")
"""Usual names of the columns, used if the columns' types do not decide."""

WEBDATASET_SUFFIXES = (".tar", ".tar.gz", ".tgz")

MOST_SHARDS = 64
"""Number of shards into which a saved data set is divided for streaming."""

_DAMAGED = (OSError, ValueError, RuntimeError, EOFError, LookupError, tarfile.TarError, DatasetsError)
"""Errors of `datasets` and its readers for damaged or empty files."""


def open_dataset(
    source: str,
    split: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
    names: Sequence[str] = (),
    needs_labels: bool = True,
) -> ImageDataset:
    """Opens a split of a data set.

    Args:
        source: One of these:

            - a folder of class folders, possibly below `train`, `validation` or `test`; see `folders.open_folder`;
            - a folder of images, which may have a table `metadata.csv` as `datasets` reads it;
            - a folder of `.parquet` or webdataset `.tar` files, whose names may begin with the split;
            - a folder that `datasets.save_to_disk` wrote;
            - a `.parquet` or `.tar` file, or a glob of such files; they count as any split;
            - the name of a data set on the hub, `name:configuration` if it has several configurations.
        split: Name of the split; "evaluation" for the first of `EVAL_SPLITS` that exists.
        image_column, label_column: Names of the columns; None to find them.
        streaming: Whether to read samples one after another, for example without downloading a whole data set.
        names: Names of the classes, if the data has none.
        needs_labels: Whether to read labels, and to leave out images of a folder that have none, with a warning.

    A column of words as labels, or of lists of words, becomes classes in the order of the alphabet.

    Raises:
        UsageError: The source cannot be opened, or has no such split or no images.
    """
    rows, features, found_split, splits = open_rows(source, split, streaming, needs_labels)
    if not streaming and not len(rows):
        raise UsageError(f"{source!r} has no images in the split {split!r}.")
    images = _find_column(features, image_column, datasets.Image, IMAGE_COLUMNS, "--image-column", source)
    if images is None:
        raise UsageError(
            f"{source} has the columns {sorted(features)}; choose the one of the images with --image-column."
        )
    labels = None
    if needs_labels:
        labels = _find_column(features, label_column, datasets.ClassLabel, LABEL_COLUMNS, "--label-column", source)
    label = _inside_list(features[labels]) if labels else None
    several = labels is not None and label is not features[labels]
    if labels and not streaming and label in (datasets.Value("string"), datasets.Value("large_string")):
        rows = _encode_words(rows, labels, several, source)
        features = rows.features
        label = _inside_list(features[labels])
    known = label.names if isinstance(label, datasets.ClassLabel) else ()
    if known and names and set(names) != set(known):
        raise UsageError(f"{source} has class names ({few(known)}); leave out --label-names-file ({few(names)}).")
    if isinstance(features[images], datasets.Image):
        rows = rows.cast_column(images, datasets.Image(decode=False))
    return ImageDataset(rows, images, labels, tuple(known or names), source, found_split, splits, several=several)


def open_rows(
    source: str, split: str, streaming: bool = False, needs_labels: bool = True
) -> tuple[Any, dict[str, Any], str | None, tuple[str, ...]]:
    """Opens the rows of a split, with all columns; see `open_dataset`.

    Args:
        source, split, streaming: As there.
        needs_labels: Whether images of a folder without a label are left out, with a warning.

    Returns:
        A `datasets` object; the type of each column; the name of the split, and of all splits. None and () if the
        source has no splits.

    Raises:
        UsageError: The source cannot be opened, or has no such split.
    """
    try:
        with _bars_only_on_a_terminal():
            rows, found, splits = _load_split(source, split, streaming, needs_labels)
        features = rows.features or (rows._resolve_features().features if streaming else None) or {}
    except UsageError:
        raise
    except _DAMAGED as error:
        reason = error.__cause__ if isinstance(error, DatasetGenerationError) else None
        is_here = Path(source).exists() or source.endswith((".parquet", *WEBDATASET_SUFFIXES))
        what = f"{source!r}" if is_here else f"there is no file or folder {source!r}, and the data set of this name"
        raise UsageError(f"{what} cannot be opened: {first_sentence(reason or error)}") from error
    return rows, features, found, splits


def is_saved(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote a folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _inside_list(feature: Any) -> Any:
    """The feature of the items of a list; any other feature unchanged."""
    if isinstance(feature, list):
        return feature[0]
    return getattr(feature, "feature", feature)


@contextmanager
def _bars_only_on_a_terminal() -> Iterator[None]:
    """Hides the progress bars of `datasets` unless stderr is a terminal or the environment asks for them."""
    hides = datasets.is_progress_bar_enabled() and HF_DATASETS_DISABLE_PROGRESS_BARS is None and not sys.stderr.isatty()
    if hides:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if hides:
            datasets.enable_progress_bars()


def _encode_words(rows: Any, column: str, several: bool, source: str) -> Any:
    """Makes classes of a column of words, or of lists of words."""
    # Not `class_encode_column`: it copies all images.
    stored: list[Any] = rows[column][:]
    lists: list[Any] = stored if several else [[word] for word in stored]
    without = [index for index, words in enumerate(lists) if words is None or None in words]
    if without:
        raise UsageError(
            f"{source} has no label in the column {column!r} for {len(without):,} of {len(lists):,} images, first "
            f"for that of row {without[0]}, counted from 0; give each a label{', or []' * several}, or delete its row."
        )
    classes = datasets.ClassLabel(names=sorted({word for words in lists for word in words}))
    numbers = {name: number for number, name in enumerate(classes.names)}
    labels: list[Any] = [[numbers[word] for word in words] for words in lists]
    if several:
        return rows.remove_columns(column).add_column(column, labels, feature=datasets.Sequence(classes))
    return rows.remove_columns(column).add_column(column, [label for (label,) in labels], feature=classes)


def _load_split(
    source: str, split: str, streaming: bool, needs_labels: bool
) -> tuple[Any, str | None, tuple[str, ...]]:
    """The rows of a source, the name of their split, and the names of all splits; None and () if there are none."""
    path = Path(source)
    if is_saved(path):
        rows, found, splits = take_split(datasets.load_from_disk(source), split, source)
        return _streamed_if(streaming, rows.with_format(None)), found, splits
    if path.is_dir():
        kind, files = _files_of_folder(path)
        if not files:
            rows, found, splits = open_folder(path, split, needs_labels)
            return _streamed_if(streaming, rows), found, splits
        of_split, found, splits = take_split(files, split, source)
        # Alone: among others, a split would get the class names of the first one.
        rows = datasets.load_dataset(kind, data_files={str(found): of_split}, streaming=streaming)
        return rows[str(found)], found, splits
    if source.endswith((".parquet", *WEBDATASET_SUFFIXES)):
        matching = [source] if path.is_file() else sorted(glob.glob(source, recursive=True))
        if not matching:
            raise UsageError(f"{source!r} matches no file.")
        kind = "parquet" if source.endswith(".parquet") else "webdataset"
        files = {"train": [glob.escape(file) for file in matching]}
        return datasets.load_dataset(kind, data_files=files, streaming=streaming)["train"], None, ()
    if path.exists():
        raise UsageError(
            f"{source!r} is a file; expected a folder, or files {', '.join(('.parquet', *WEBDATASET_SUFFIXES))}. "
            "Unpack an archive first."
        )
    if path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        raise UsageError(f"{source!r} does not exist.")
    name, _, configuration = source.partition(":")
    return take_split(datasets.load_dataset(name, configuration or None, streaming=streaming), split, source)


def _streamed_if(streaming: bool, rows: Any) -> Any:
    """Indexed rows, or a stream of them whose shards processes and workers divide among themselves."""
    return rows.to_iterable_dataset(num_shards=min(len(rows), MOST_SHARDS) or 1) if streaming else rows


def _files_of_folder(folder: Path) -> tuple[str, dict[str, list[str]]]:
    """The builder of `datasets` for the files in a folder, and patterns for those of each split; no files if it is a
    folder of images."""
    for kind, suffixes in (("parquet", (".parquet",)), ("webdataset", WEBDATASET_SUFFIXES)):
        names = sorted(file.name for file in folder.iterdir() if not is_hidden(file.name))
        files = [name for name in names if name.endswith(suffixes) and name not in METADATA]
        if not files:
            continue
        with_images = [path.name for path in folders_in(folder) if images_inside(path, [folder])]
        if len(with_images) > 1:
            raise UsageError(
                f"{folder} has {kind} files, {few(files)}, and folders of images, {few(with_images)}; move the files "
                "away to use the images, or name the files with a glob."
            )
        return kind, _splits_of_files(folder, files, suffixes)
    return "imagefolder", {}


def _splits_of_files(folder: Path, files: list[str], suffixes: tuple[str, ...]) -> dict[str, list[str]]:
    """The files of each split; `datasets` finds the split in the names of the files."""
    base = glob.escape(str(folder.resolve()))
    found = DataFilesDict.from_patterns(get_data_patterns(base), base_path=base)
    splits = {str(split): [file for file in of_split if file.endswith(suffixes)] for split, of_split in found.items()}
    left_out = sorted(set(files) - {Path(file).name for of_split in splits.values() for file in of_split})
    if left_out:
        raise UsageError(
            f"{folder} has the splits {sorted(splits)} and files without a split, {few(left_out)}; choose files with "
            "a glob."
        )
    return {split: [glob.escape(file) for file in of_split] for split, of_split in splits.items() if of_split}


def take_split(loaded: Any, split: str, source: str) -> tuple[Any, str | None, tuple[str, ...]]:
    """Takes the wanted split of a data set.

    Args:
        loaded: What belongs to each split, such as rows or files, by its name; anything else has no splits.
        split: Name of the split; "evaluation" for the first of `EVAL_SPLITS` that exists.
        source: The source, for the message.

    Returns:
        What belongs to the split; its name, and the names of all splits. None and () if there are no splits.

    Raises:
        UsageError: There is no such split.
    """
    if not isinstance(loaded, dict):
        return loaded, None, ()
    wanted = EVAL_SPLITS if split == "evaluation" else (split,)
    for name in wanted:
        if name in loaded:
            return loaded[name], name, tuple(map(str, loaded))
    raise UsageError(
        f"{source!r} has the splits {sorted(loaded)}; expected {' or '.join(map(repr, wanted))}. Choose one of its "
        "splits with --split, or for a training with --train-split and --eval-split."
    )


def _find_column(
    features: dict[str, Any], given: str | None, kind: type, usual: Sequence[str], flag: str, source: str
) -> str | None:
    """The given column; otherwise the only column of a type, for labels also of lists of it; otherwise the only one
    with a usual name; otherwise None. A given column that does not exist, and several candidates, are errors."""
    if given is not None:
        if given not in features:
            raise UsageError(f"{source} has no column {given!r}; it has {sorted(features)}.")
        return given
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    if kind is datasets.ClassLabel and not found:
        found = [name for name, feature in features.items() if isinstance(_inside_list(feature), kind)]
    found = found or [name for name in usual if name in features]
    if len(found) > 1:
        raise UsageError(f"{source} has the columns {found}; choose one with {flag}.")
    return found[0] if found else None
