"""Opens images with masks, as people have them.

In: a source: a folder of images and masks in one of the usual layouts; or parquet files, a saved data set or one on the
hub, with a column of images and one of masks. Out: a `MaskDataset`. This module finds the files, their pairs, the names
of the classes, and which stored values are no class. It reads no image; if nothing names the classes, it reads the
masks for their values.
"""

import csv
import json
import logging
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.exceptions import DatasetGenerationError
from PIL import Image

from swinv2.console import shown
from swinv2.errors import UsageError, few, first_sentence
from swinv2.images import images_inside
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.folders import _SPLIT_OF, METADATA, _as_texts, _name_of_split, folders_in
from swinv2.train.data.masks import NO_VALUE, Advance, MaskDataset, scan_values
from swinv2.train.data.sources import (
    _DAMAGED,
    IMAGE_COLUMNS,
    WEBDATASET_SUFFIXES,
    _bars_only_on_a_terminal,
    _choose_split,
    _load_split,
)

logger = logging.getLogger(__name__)

IMAGE_FOLDERS = ("images", "image", "img", "imgs", "jpegimages", "leftimg8bit")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "segmentationclass", "gtfine")
"""Names of parallel folders of images and of masks, in lower case."""

IMAGE_SUFFIXES = ("_leftImg8bit", "_sat")
MASK_SUFFIXES = ("_gtFine_labelTrainIds", "_gtFine_labelIds", "_mask", "_label", "_L")
"""What the stems of images and of masks may have at their ends besides the common part."""

_OTHER_FILES = ("_gtFine_color", "_gtFine_instanceIds", "_gtFine_instanceTrainIds")
"""Ends of the stems of images beside Cityscapes' masks that are no masks of classes."""

MASK_COLUMNS = ("mask", "label", "annotation", "segmentation_mask", "labels")

CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
"""The classes of CamVid in SegNet's layout; the value after them is ignored."""

_ADE20K_NAMES = "objectInfo150.txt"

_Pair = tuple[Path, Path]


@dataclass(frozen=True)
class _Layout:
    """A folder of images and masks.

    Attributes:
        folder: The folder.
        roots: The folders of the images and of the masks of each split; of None if there are no splits.
        stems: The stems of each split, if all splits are in the same folders.
        names, ignore_index, reduce_labels: What the layout says about the classes.
    """

    folder: Path
    roots: dict[str | None, _Pair]
    stems: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    names: tuple[str, ...] = ()
    ignore_index: int | None = None
    reduce_labels: bool = False


def open_masks(
    source: str,
    split: str,
    *,
    names: Sequence[str] = (),
    ignore_index: int | None = None,
    reduce_labels: bool | None = None,
    image_column: str | None = None,
    mask_column: str | None = None,
    advance: Advance | None = None,
) -> MaskDataset:
    """Opens a split of images with masks.

    Args:
        source: One of these:

            - a folder with a folder of `IMAGE_FOLDERS` and one of `MASK_FOLDERS`; folders of splits may be inside or
              outside of them, or VOC's `ImageSets/Segmentation` may list them. An image and its mask have the same
              stem, except for `IMAGE_SUFFIXES` and `MASK_SUFFIXES`;
            - a folder with `train` and `trainannot` and so on: CamVid as SegNet has it;
            - a folder, possibly of splits, in which a mask is beside its image: with a suffix, or a PNG of one channel
              beside an image in another format;
            - parquet files, a folder that `datasets.save_to_disk` wrote, or a data set on the hub; see
              `sources.open_dataset`.
        split: Name of the split; "evaluation" for the first of `folders.EVAL_SPLITS` that exists.
        names: Names of the classes; otherwise from a file of the folder, such as `classes.txt` or `class_dict.csv`;
            otherwise the numbers of the classes, for which the masks of all splits are read.
        ignore_index: The stored value of pixels that do not count; None for 255, or as the layout says.
        reduce_labels: Whether the stored 0 is no class and the classes begin at 1; None for no, except in ADE20K.
        image_column, mask_column: Names of the columns; None to find them.
        advance: Called while masks are read, with the number that is read, and of all.

    Raises:
        UsageError: The source cannot be opened, has no such split or no pairs, or its classes are not clear.
    """
    path = Path(source)
    layout = _recognise(path) if path.is_dir() else None

    def open_split(wanted: str, reports: bool = True) -> MaskDataset:
        if layout is None:
            return _open_columns(source, wanted, image_column, mask_column, reports)
        return _open_layout(layout, source, wanted, reports)

    dataset = open_split(split)
    from_file, colours, names_file = _names_beside(path, layout)
    reduces = layout is not None and layout.reduce_labels if reduce_labels is None else reduce_labels
    known = tuple(names) or from_file or (layout.names if layout is not None else ())
    if colours is not None and set(known) == set(from_file):
        # In another order, each name still belongs to its colour.
        known = from_file
    if colours is not None and len(known) != len(colours):
        raise UsageError(f"{names_file} has {len(colours)} colours, but there are {len(known)} names; give as many.")
    dataset = replace(dataset, reduce_labels=reduces, colours=colours)
    if ignore_index is None and layout is not None and len(known) <= len(layout.names) + 1:
        ignore_index = layout.ignore_index
    # Two classes are often stored as 0 and 255; without a look at the masks, 255 would not count.
    if not known or (len(known) == 2 and ignore_index is None and colours is None and not reduces):
        others = [open_split(other, False) for other in dataset.splits if other != dataset.split]
        stored = scan_values([dataset, *(replace(other, colours=colours) for other in others)], advance)
        return _name_by_values(dataset, stored, known, ignore_index)
    return _name(dataset, known, 255 if ignore_index is None else ignore_index)


def _name(dataset: MaskDataset, names: tuple[str, ...], ignore_index: int) -> MaskDataset:
    """Gives the classes the names that are known, without that of the ignored value."""
    first = int(dataset.reduce_labels)
    if 0 <= ignore_index - first < len(names):
        left_out = names[ignore_index - first]
        logger.warning(f"{dataset.source}: {left_out!r}, with the value {ignore_index}, is ignored and is no class")
        names = names[: ignore_index - first] + names[ignore_index - first + 1 :]
    return _number(dataset, names, ignore_index)


def _number(dataset: MaskDataset, names: tuple[str, ...], ignore_index: int) -> MaskDataset:
    """Gives each class its stored value: from 0 or from 1, without the ignored one."""
    first = int(dataset.reduce_labels)
    values = tuple(islice((value for value in count(first) if value != ignore_index), len(names)))
    return replace(dataset, names=names, values=values, ignore_index=ignore_index)


def _name_by_values(
    dataset: MaskDataset, stored: dict[int, str], known: tuple[str, ...], ignore_index: int | None
) -> MaskDataset:
    """Finds the classes by the values that are stored in the masks; each value has the name of a mask with it."""
    binary = ignore_index is None and not dataset.reduce_labels and set(stored) == {0, 255}
    ignored = 255 if ignore_index is None else ignore_index
    if binary:
        logger.warning(
            f"the masks of {dataset.source} have only the values 0 and 255, which are taken as two classes; if pixels "
            "with 255 do not count, give --ignore-index 255"
        )
        dataset = replace(dataset, names=known or ("0", "1"), values=(0, 255), ignore_index=NO_VALUE)
    if binary or known:
        return dataset if binary else _name(dataset, known, ignored)
    counted = [value for value in stored if value != ignored and (value or not dataset.reduce_labels)]
    if not counted or min(counted) < 0:
        raise UsageError(
            f"the masks of {dataset.source} have the values {few(list(map(str, sorted(stored))), 5)}; expected classes "
            f"from 0, besides {ignored} for pixels that do not count."
        )
    highest = max(counted)
    classes = [value for value in range(int(dataset.reduce_labels), highest + 1) if value != ignored]
    try:
        found = _number(dataset, tuple(map(str, range(len(classes)))), ignored)
    except UsageError as error:
        raise UsageError(
            f"{stored[highest]} has the value {highest}: {first_sentence(error)}. If it is no class, give "
            f"--ignore-index {highest}."
        ) from error
    logger.warning(
        f"{dataset.source} does not name its classes; its masks have the values "
        f"{few(list(map(str, sorted(stored))), 12)}, so there are {len(classes)} classes, '0' to "
        f"'{len(classes) - 1}'. To name them, give --label-names-file, a name on each line."
    )
    return found


def _recognise(folder: Path, depth: int = 2) -> _Layout | None:
    """The layout of a folder, or of the only folder in it; None if it is none of the known ones."""
    if _is_saved(folder):
        return None
    layout = _with_annot(folder) or _parallel(folder) or _side_by_side(folder)
    below = folders_in(folder)
    if layout is None and depth and len(below) == 1 and below[0].is_dir():
        return _recognise(below[0], depth - 1)
    return layout


def _is_saved(folder: Path) -> bool:
    """Whether `datasets` wrote a folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _with_annot(folder: Path) -> _Layout | None:
    """CamVid as SegNet has it: each split has a folder of images, and one with "annot" at its end."""
    splits = _split_folders(folder).items()
    pairs = {split: (path, path.with_name(f"{path.name}annot")) for split, path in splits}
    if not any(masks.is_dir() for _, masks in pairs.values()):
        return None
    return _Layout(folder, {**pairs}, names=CAMVID, ignore_index=len(CAMVID))


def _parallel(folder: Path) -> _Layout | None:
    """A folder of images beside a folder of masks, with folders of splits inside or outside."""
    roots = _parallel_roots(folder)
    if roots is None:
        outside = {split: _parallel_roots(path) for split, path in _split_folders(folder).items()}
        pairs = {split: found for split, found in outside.items() if found is not None}
        return _Layout(folder, {**pairs}) if pairs else None
    images, masks = roots
    of_images, of_masks = _split_folders(images), _split_folders(masks)
    is_ade20k = folder.name == "ADEChallengeData2016" or (folder / _ADE20K_NAMES).is_file()
    if of_images:
        # Masks without folders of splits may belong to the images of any split.
        pairs = {
            split: (path, of_masks.get(split, masks / path.name if of_masks else masks))
            for split, path in of_images.items()
        }
        return _Layout(folder, {**pairs}, reduce_labels=is_ade20k)
    lists = sorted((folder / "ImageSets" / "Segmentation").glob("*.txt"))
    stems = {_SPLIT_OF.get(path.stem, path.stem): _read_lines(path) for path in lists}
    return _Layout(folder, dict.fromkeys(stems, roots) if stems else {None: roots}, stems, reduce_labels=is_ade20k)


def _parallel_roots(folder: Path) -> _Pair | None:
    """The folder of images and the folder of masks in a folder. Among several, those without images do not count."""
    roots: list[Path] = []
    for what, names in (("images", IMAGE_FOLDERS), ("masks", MASK_FOLDERS)):
        found = [path for path in folders_in(folder) if path.name.lower() in names]
        if len(found) > 1:
            found = [path for path in found if images_inside(path)] or found
        if len(found) > 1:
            raise UsageError(
                f"{folder} has several folders of {what}, {few([path.name for path in found])}; move all but one away."
            )
        roots += found
    return (roots[0], roots[1]) if len(roots) == 2 else None


def _side_by_side(folder: Path) -> _Layout | None:
    """Masks beside their images in the same folder, possibly in folders of splits."""
    splits: dict[str | None, Path] = {**_split_folders(folder)} or {None: folder}
    roots: dict[str | None, _Pair] = {split: (root, root) for split, root in splits.items() if _separate(root)[1]}
    return _Layout(folder, roots) if roots else None


def _separate(root: Path) -> tuple[list[Path], list[Path]]:
    """The images and the masks in one folder; no masks if none is beside its image."""
    files = images_inside(root)
    named = {file for file in files if file.stem.endswith(MASK_SUFFIXES)}
    others = {file.with_suffix("") for file in files if file.suffix.lower() != ".png"}
    beside = {file for file in files if file.suffix.lower() == ".png" and file.with_suffix("") in others}
    if beside and not _is_mask(min(beside)):
        beside = set[Path]()
    for masks in (named, beside):
        images = [file for file in files if file not in masks]
        if masks and _match(images, root, sorted(masks), root)[0]:
            return images, sorted(masks)
    return files, []


def _is_mask(file: Path) -> bool:
    """Whether a PNG beside an image of the same stem is its mask: it has one channel, or cannot be read."""
    try:
        with Image.open(file) as image:
            return len(image.getbands()) == 1
    except (OSError, SyntaxError, ValueError):
        return True


def _split_folders(folder: Path) -> dict[str, Path]:
    """The folder of each split, directly in a folder."""
    found: dict[str, Path] = {}
    for path in folders_in(folder):
        split = _SPLIT_OF.get(path.name.lower())
        if split in found:
            raise UsageError(f"{folder} has two folders of one split, {found[split].name} and {path.name}; join them.")
        if split is not None:
            found[split] = path
    return found


def _open_layout(layout: _Layout, source: str, split: str, reports: bool) -> MaskDataset:
    """The pairs of a split of a folder. `reports` is False for other splits, whose problems do not matter now."""
    found = None
    if None in layout.roots:
        _name_of_split(layout.folder, split, {})
    else:
        _, found, _ = _choose_split(layout.roots, _SPLIT_OF.get(split, split), source)
    image_root, mask_root = layout.roots[found]
    if image_root == mask_root:
        images, masks = _separate(image_root)
    else:
        images, masks = images_inside(image_root), images_inside(mask_root)
    without: list[str] = []
    if found in layout.stems:
        listed = set(layout.stems[found])
        images, masks = [[file for file in files if file.stem in listed] for files in (images, masks)]
        without = sorted(listed - {image.stem for image in images})
    pairs, images_alone, masks_alone = _match(images, image_root, masks, mask_root)
    if reports and not pairs:
        if not images:
            raise UsageError(f"{shown(image_root)} has no images{f' of the split {found!r}' if found else ''}.")
        raise UsageError(
            f"none of the {len(images):,} images in {shown(image_root)} has a mask in {shown(mask_root)}, where "
            f"{len(masks):,} are; {shown(images[0])} needs a mask {images[0].stem}.png, possibly with "
            f"{' or '.join(MASK_SUFFIXES[-3:])} before the point."
        )
    for what, files in (("images without a mask", images_alone), ("masks without an image", masks_alone)):
        if files and reports:
            logger.warning(f"{len(files):,} {what} are left out, first {shown(files[0])}")
    if without and reports:
        logger.warning(f"{len(without):,} images of the list of {found!r} do not exist in {image_root}: {few(without)}")
    columns = {"image": _as_texts([image for image, _ in pairs]), "mask": _as_texts([mask for _, mask in pairs])}
    features = {"image": datasets.Image(decode=False), "mask": datasets.Image(decode=False)}
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    splits = tuple(split for split in layout.roots if split is not None)
    return MaskDataset(ImageDataset(rows, "image", None, (), source, found, splits), "mask")


def _match(
    images: list[Path], image_root: Path, masks: list[Path], mask_root: Path
) -> tuple[list[_Pair], list[Path], list[Path]]:
    """The pairs of images and masks whose paths below their folders are equal, except for suffixes; the images and the
    masks that are left.

    Raises:
        UsageError: Two images or two masks have the same stem.
    """
    of_key: dict[str, Path] = {}
    for image in images:
        other = of_key.setdefault(_key(image, image_root, IMAGE_SUFFIXES), image)
        if other is not image:
            raise UsageError(
                f"{shown(other)} and {shown(image)} have the same stem, so their masks are not clear; rename one."
            )
    of_image: dict[Path, Path] = {}
    alone: list[Path] = []
    for mask in masks:
        keys = (_key(mask, mask_root, suffixes) for suffixes in (IMAGE_SUFFIXES, MASK_SUFFIXES))
        image = next((of_key[key] for key in keys if key in of_key), None)
        if image is None:
            alone += [] if mask.stem.endswith(_OTHER_FILES) else [mask]
            continue
        other = of_image.setdefault(image, mask)
        if MASK_SUFFIXES[0] in mask.stem:
            # Cityscapes' labels for training are made from the others, and stay beside them.
            of_image[image] = mask
        elif other is not mask and MASK_SUFFIXES[0] not in other.stem:
            raise UsageError(f"{shown(other)} and {shown(mask)} are both masks of {shown(image)}; move one away.")
    pairs = [(image, of_image[image]) for image in images if image in of_image]
    return pairs, [image for image in images if image not in of_image], alone


def _key(file: Path, root: Path, suffixes: Sequence[str]) -> str:
    """The path of a file below a folder, without its format and without one of some suffixes of its stem."""
    text = file.relative_to(root).with_suffix("").as_posix()
    suffix = next((suffix for suffix in suffixes if text.endswith(suffix)), "")
    # macOS stores names in another Unicode form.
    return unicodedata.normalize("NFC", text.removesuffix(suffix))


def _open_columns(
    source: str, split: str, image_column: str | None, mask_column: str | None, reports: bool
) -> MaskDataset:
    """The rows of a split of parquet files, of a saved data set or of one on the hub."""
    path = Path(source)
    if path.is_dir() and not _is_saved(path) and not _has_tables(path):
        raise UsageError(
            f"{source!r} {'has no images' if not images_inside(path) else 'has no masks that belong to its images'}; "
            "expected the folders images and masks with equal names in both, or masks beside their images, such as "
            "a.jpg and a_mask.png."
        )
    try:
        with _bars_only_on_a_terminal():
            rows, found, splits = _load_split(source, split, False, True)
    except UsageError:
        raise
    except _DAMAGED as error:
        reason = error.__cause__ if isinstance(error, DatasetGenerationError) else None
        what = f"{source!r}" if path.exists() else f"there is no folder {source!r}, and the data set of this name"
        raise UsageError(f"{what} cannot be opened: {first_sentence(reason or error)}") from error
    stored = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    masks = [name for name in stored if name in MASK_COLUMNS and name != image_column]
    mask = _one_column(rows, mask_column, masks, "masks", "--mask-column", source)
    others = [name for name in stored if name != mask]
    images = [name for name in others if name in IMAGE_COLUMNS] if len(others) > 1 else others
    image = _one_column(rows, image_column, images, "images", "--image-column", source)
    for column in {image, mask} & set(stored):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    is_null = rows.select_columns(mask).with_format("arrow")[:].column(mask).is_null()
    without = np.flatnonzero(is_null.to_numpy())
    chosen = np.flatnonzero(~is_null.to_numpy()) if len(without) else None
    dataset = MaskDataset(ImageDataset(rows, image, None, (), source, found, splits, chosen), mask)
    if reports and not len(dataset):
        raise UsageError(f"{source!r} has no images with masks in the split {split!r}.")
    if reports and len(without):
        logger.warning(f"{len(without):,} images without a mask are left out, first row {without[0]} of {source}")
    return dataset


def _has_tables(folder: Path) -> bool:
    """Whether a folder or one directly in it has files that `datasets` reads."""
    names = [path.name for pattern in ("*", "*/*") for path in folder.glob(pattern)]
    return any(name.endswith((".parquet", *WEBDATASET_SUFFIXES)) or name in METADATA for name in names)


def _one_column(rows: Any, given: str | None, found: list[str], what: str, flag: str, source: str) -> str:
    """The given column, or the only one that was found."""
    if given is not None and given not in rows.features:
        raise UsageError(f"{source} has no column {given!r}; it has {sorted(rows.features)}.")
    if given is None and len(found) != 1:
        columns = found or sorted(rows.features)
        raise UsageError(f"{source} has the columns {columns}; choose the one of the {what} with {flag}.")
    return found[0] if given is None else given


def _names_beside(folder: Path, layout: _Layout | None) -> tuple[tuple[str, ...], dict[int, int] | None, Path | None]:
    """The names of the classes in a file of the folder; the class of each colour, if it has colours; the file. A table
    of colours comes first, because it has names, too."""
    places = [layout.folder, folder] if layout is not None else [folder]
    files = [place / name for place in places for name in _NAME_FILES if (place / name).is_file()]
    if not files:
        return (), None, None
    file = files[0]
    try:
        names, colours = _NAME_FILES[file.name](file)
    except (ValueError, TypeError, KeyError, LookupError) as error:
        raise UsageError(
            f"{file} does not name classes: {first_sentence(error)}; correct it, or move it away."
        ) from error
    if not names:
        raise UsageError(f"{file} names no class; write the name of a class on each line, or delete it.")
    return tuple(names), colours, file


def _read_lines(file: Path) -> list[str]:
    """The lines of a file that are not empty."""
    try:
        return [line.strip() for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {first_sentence(error)}; save it as UTF-8.") from error


_Named = tuple[list[str], dict[int, int] | None]


def _from_lines(file: Path) -> _Named:
    """A name on each line."""
    return _read_lines(file), None


def _from_json(file: Path) -> _Named:
    """The names by number, as transformers has them, or a list of names."""
    stored = json.loads("\n".join(_read_lines(file)))
    by_number = (
        {int(number): str(name) for number, name in stored.items()}
        if isinstance(stored, dict)
        else dict(enumerate(stored))
    )
    if sorted(by_number) != list(range(len(by_number))):
        raise ValueError("the numbers are not 0, 1 and so on")
    return [by_number[number] for number in range(len(by_number))], None


def _from_ade20k(file: Path) -> _Named:
    """The first of several names in the last column, below a line with the names of the columns."""
    return [line.split("\t")[-1].split(",")[0].strip() for line in _read_lines(file)[1:]], None


def _from_table(file: Path) -> _Named:
    """A table with the columns name, r, g and b."""
    header, *lines = csv.reader(_read_lines(file), skipinitialspace=True)
    place = [[cell.strip().lower() for cell in header].index(column) for column in ("r", "g", "b", "name")]
    return _coloured([[line[column] for column in place] for line in lines], file)


def _from_colours(file: Path) -> _Named:
    """Red, green, blue and a name on each line."""
    return _coloured([re.split(r"[\s,]+", line, maxsplit=3) for line in _read_lines(file)], file)


def _coloured(lines: list[list[str]], file: Path) -> _Named:
    """The names and the colours of the classes."""
    colours: dict[int, int] = {}
    for number, line in enumerate(lines):
        if len(line) != 4 or not all(value.strip().isdigit() and int(value) < 256 for value in line[:3]):
            raise ValueError(f"class {number + 1}, {' '.join(line)!r}, needs red, green, blue from 0 to 255 and a name")
        red, green, blue = map(int, line[:3])
        if colours.setdefault(red << 16 | green << 8 | blue, number) != number:
            raise ValueError(f"two classes have the colour ({red}, {green}, {blue})")
    return [line[3].strip() for line in lines], colours


_NAME_FILES: dict[str, Callable[[Path], _Named]] = {
    "class_dict.csv": _from_table,
    "label_colors.txt": _from_colours,
    "classes.txt": _from_lines,
    "labels.txt": _from_lines,
    "names.txt": _from_lines,
    "id2label.json": _from_json,
    _ADE20K_NAMES: _from_ade20k,
}
