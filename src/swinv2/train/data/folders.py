"""Folders of images, or of videos, as people have them.

In: a folder of class folders or of files, possibly below folders of splits. Out: the rows of a split: files, and the
classes of the files. As with torchvision's ImageFolder, the class of a file is the folder directly below the split,
whatever lies between, and links are followed. What is left out is named in a warning. No file is opened.
"""

import glob
import logging
import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from swinv2.console import shown
from swinv2.errors import UsageError, few
from swinv2.images import files_inside, is_hidden, is_image_name
from swinv2.video.files import is_video_name

logger = logging.getLogger(__name__)

EVAL_SPLITS = ("validation", "val", "valid", "test")
"""Splits that "evaluation" stands for; the first one that exists is used."""

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""Names of the folders of each split, in a folder of images."""

SPLIT_OF = {called: split for split, names in SPLIT_FOLDERS.items() for called in names}
"""The split of each of these names."""

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Tables in the folder of a split that name its images and their labels, as `datasets` reads them."""


class FileKind(NamedTuple):
    """The files of a data set.

    Attributes:
        one: What one is called, in messages and as the name of the column.
        is_name: Whether a file with this name is one.
        feature: The type of the column.
    """

    one: str
    is_name: Callable[[str], bool]
    feature: Any

    @property
    def several(self) -> str:
        """What several are called."""
        return f"{self.one}s"

    def inside(self, folder: Path, already: Iterable[Path] = ()) -> list[Path]:
        """The files in a folder and its subfolders; see `images.files_inside`."""
        return files_inside(folder, self.is_name, already)


IMAGES = FileKind("image", is_image_name, datasets.Image(decode=False))
VIDEOS = FileKind("video", is_video_name, datasets.Value("string"))

PACKED = (".zip", ".tar", ".tar.gz", ".tgz", ".rar", ".7z", ".parquet")
"""Suffixes of files that hold images, for the message if a folder has none."""


def open_folder(
    folder: Path, split: str, needs_labels: bool, kind: FileKind = IMAGES
) -> tuple[datasets.Dataset, str | None, tuple[str, ...]]:
    """Lists the images, or the videos, of a split.

    Args:
        folder: The folder. One without folders of splits counts as the split "train", as the one for evaluation, and as
            the one that it is called.
        split: Name of the split; "evaluation" for the first of `EVAL_SPLITS` that exists.
        needs_labels: Whether images without a label are left out, with a warning: those beside the class folders, and
            those that a table of `METADATA` does not name. Otherwise no image has a label if there are such images.
        kind: Images or videos. No table counts for videos; see `videos.opening`.

    Returns:
        Rows with a column "image" or "video" and, if there are class folders, "label"; the name of the split, and of
        all splits; None and () if there are no folders of splits.

    Raises:
        UsageError: There is no such split, or it has no images.
    """
    splits = folders_of_splits(folder, kind)
    found = name_of_split(folder, split, splits)
    roots = splits[found] if found else [folder]
    if found == "train":
        _report_outside(folder, splits, kind)
    loose = [path for root in roots for path in sorted(root.iterdir()) if kind.is_name(path.name)]
    classes = _class_folders(roots)
    files = {name: [file for path in paths for file in kind.inside(path, roots)] for name, paths in classes.items()}
    names = sorted(name for name in files if files[name])
    images = [*loose, *(file for name in names for file in files[name])]
    tables = [root / name for root in roots for name in METADATA if kind is IMAGES and (root / name).is_file()]
    if not images:
        raise UsageError(_without_images(folder, found, kind))
    if tables and needs_labels:
        rows = _rows_of_tables(tables, images, bool(names))
    elif names and not (loose and not needs_labels):
        _report_classes(roots[0], classes, files, kind)
        if loose:
            logger.warning(
                f"{kind.several} beside the class folders of {shown(roots[0])} are left out: {_names(loose)}. Move "
                "each into the folder of its class."
            )
        labels = [label for label, name in enumerate(names) for _ in files[name]]
        columns = {kind.one: as_texts(images[len(loose) :]), "label": labels}
        features = {kind.one: kind.feature, "label": datasets.ClassLabel(names=names)}
        rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    else:
        features = datasets.Features({kind.one: kind.feature})
        rows = datasets.Dataset.from_dict({kind.one: as_texts(sorted(images))}, features=features)
    return rows, found, tuple(splits)


def _rows_of_tables(tables: list[Path], images: list[Path], has_folders: bool) -> datasets.Dataset:
    """The rows of tables that name images and possibly labels. Warns of images that they do not name."""
    patterns = {"train": [glob.escape(str(table)) for table in tables]}
    rows: Any = datasets.load_dataset("imagefolder", data_files=patterns, split="train")
    if has_folders:
        logger.warning(f"the labels are those of {shown(tables[0])}; the folders beside it do not count as classes")
    columns = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    for column in columns:
        rows = rows.cast_column(column, datasets.Image(decode=False))
    named = {os.path.realpath(image["path"]) for column in columns for image in rows[column] if image}
    others = [image for image in images if os.path.realpath(image) not in named]
    if others:
        logger.warning(f"images that are not in {shown(tables[0])} are left out: {_names(others)}")
    return rows


def folders_of_splits(folder: Path, kind: FileKind = IMAGES) -> dict[str, list[Path]]:
    """The folders of each split, directly in a folder of images or videos.

    `datasets` alone searches all file and folder names for "train", "test" and similar words. If it finds one, it
    ignores all other images: with the classes "bus" and "train" it ignores "bus"; with "contest-1.png" and
    "my-test-2.png", the first file.

    Raises:
        UsageError: A single folder is called like a split, and others have images: they may all be classes.
    """
    below = folders_in(folder)
    splits: dict[str, list[Path]] = {}
    for path in below:
        if path.name.lower() in SPLIT_OF:
            splits.setdefault(SPLIT_OF[path.name.lower()], []).append(path)
    if len(splits) == 1:
        (chosen,) = splits.values()
        others = [path for path in below if path not in chosen and kind.inside(path, [folder])]
        if others:
            raise UsageError(
                f"{folder} has the folder {chosen[0].name!r}, which is the name of a split, and other folders of "
                f"{kind.several}, {_names(others)}; move all classes into a folder 'train', or move the other folders "
                "away."
            )
    return splits


def name_of_split(folder: Path, split: str, splits: dict[str, list[Path]]) -> str | None:
    """The wanted one of the splits of a folder.

    Args:
        folder: The folder. One without splits counts as the split "train", as the one for evaluation, and as the one
            that it is called.
        split: Name of the split; "evaluation" for the first of `EVAL_SPLITS` that exists.
        splits: The folders of each split; see `folders_of_splits`.

    Returns:
        One of the keys of `splits`; None if it has none.

    Raises:
        UsageError: There is no such split.
    """
    wanted = EVAL_SPLITS if split == "evaluation" else (split,)
    own = folder.resolve().name.lower()
    if not splits and (split in ("train", "evaluation") or SPLIT_OF.get(split, split) == SPLIT_OF.get(own, own)):
        return None
    if not splits:
        raise UsageError(
            f"{str(folder)!r} has no folders of splits; expected {split!r}. Without --split, all its images are taken; "
            "in a training without --eval-split, a share of them is set aside."
        )
    for name in wanted:
        if SPLIT_OF.get(name) in splits:
            return SPLIT_OF[name]
    raise UsageError(
        f"{str(folder)!r} has the splits {sorted(splits)}; expected {' or '.join(map(repr, wanted))}. Choose one of "
        "its splits with --split, or for a training with --train-split and --eval-split."
    )


def folders_in(folder: Path) -> list[Path]:
    """The folders directly in a folder, and links to folders, also to missing ones, without hidden ones."""
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not is_hidden(entry.name)]
    names = [
        entry.name
        for entry in visible
        if entry.is_dir() or (not os.path.exists(entry.path) and not is_image_name(entry.name))
    ]
    return [folder / name for name in sorted(names)]


def _class_folders(roots: Sequence[Path]) -> dict[str, list[Path]]:
    """The folders of each class. Names in other Unicode forms, as macOS stores them, are the same name."""
    classes: dict[str, list[Path]] = {}
    for root in roots:
        for path in folders_in(root):
            classes.setdefault(unicodedata.normalize("NFC", path.name), []).append(path)
    return classes


def _report_classes(root: Path, classes: dict[str, list[Path]], files: dict[str, list[Path]], kind: FileKind) -> None:
    """Warns of class folders without a file, and of folders of splits inside all class folders."""
    without = [path for name, paths in classes.items() for path in paths if not files[name]]
    empty = [f"{shown(Path(path.name))} ({_content(path)})" for path in without]
    if empty:
        logger.warning(
            f"no {kind.one} is in these folders of {shown(root)}, so they are no classes: "
            f"{few(empty)}. Put {kind.several} there, or delete the folders."
        )
    filled = [paths[0] for name, paths in classes.items() if files[name]]
    inner = [next((path / name for name in SPLIT_OF if (path / name).is_dir()), None) for path in filled]
    if all(inner) and inner[0] is not None:
        inside = inner[0].relative_to(root)
        logger.warning(
            f"all class folders of {shown(root)} have folders with names of splits, such as {inside}, whose "
            f"{kind.several} are taken together. Folders of splits must be outside, such as "
            f"{inside.name}/{inside.parent}."
        )


def _content(folder: Path) -> str:
    """What a folder without images has, in words."""
    if folder.is_symlink() and (not folder.exists() or folder.resolve() in folder.absolute().parents):
        return "a link to a folder above" if folder.exists() else "a link to nothing"
    file = next((Path(name) for _, _, names in os.walk(folder) for name in sorted(names) if not is_hidden(name)), None)
    return "empty" if file is None else f"it has {shown(file)}"


def _report_outside(folder: Path, splits: dict[str, list[Path]], kind: FileKind) -> None:
    """Warns of files that are in no folder of a split."""
    of_splits = {path for paths in splits.values() for path in paths}
    outside = [path for path in sorted(folder.iterdir()) if path.is_file() and kind.is_name(path.name)]
    outside += [path for path in folders_in(folder) if path not in of_splits and kind.inside(path, [folder])]
    if outside:
        logger.warning(
            f"{shown(folder)} has folders of splits, {_names(sorted(of_splits))}; {kind.several} outside of them are "
            f"left out: {_names(outside)}"
        )


def _without_images(folder: Path, split: str | None, kind: FileKind) -> str:
    """The sentence for a folder without images, or without videos."""
    inside = [Path(root, name) for root, _, names in os.walk(folder) for name in sorted(names)]
    packed = next((file for file in inside if file.name.lower().endswith(PACKED)), None)
    of_split = f" in the split {split!r}" if split else ""
    how = "give the folder of parquet or webdataset files" if kind is IMAGES else "videos are not read from tables"
    hint = f" It has {packed}: unpack it; {how}." if packed else ""
    others = next((file for file in inside if kind is IMAGES and is_video_name(file.name)), None)
    hint = (
        f" It has videos, such as {others}: finetune them with --task video, and evaluate a model of videos."
        if others
        else hint
    )
    images = next((file for file in inside if kind is not IMAGES and is_image_name(file.name)), None)
    hint = (
        f" It has images, such as {images}: finetune them without --task video, and evaluate a model of images."
        if images
        else hint
    )
    return f"{str(folder)!r} has no {kind.several}{of_split}.{hint}"


def as_texts(files: Sequence[str | Path]) -> list[str]:
    """The paths of files for `datasets`, which stores valid text only.

    Raises:
        UsageError: A path is no valid text.
    """
    for file in files:
        try:
            str(file).encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"the name of {shown(Path(file))} is no valid text (UTF-8); rename it.") from error
    return list(map(str, files))


def _names(paths: Sequence[Path]) -> str:
    """The first names of some files or folders, for a message."""
    return few([shown(Path(path.name)) for path in paths])
