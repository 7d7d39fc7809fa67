"""Opens images with masks, and finds out which classes they have.

In: a source: a folder of images and masks in one of the usual layouts (`folders.py`); or parquet files, a saved data
set or one on the hub, with a column of images and one of masks. Out: a `MaskDataset` whose classes have names and
stored values. This module reads no image; if nothing names the classes, it reads the masks for their values.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from swinv2.errors import UsageError, few, first_sentence
from swinv2.images import images_inside
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.folders import METADATA
from swinv2.train.data.masks.dataset import NO_VALUE, Advance, MaskDataset, scan_values
from swinv2.train.data.masks.folders import open_layout, recognise
from swinv2.train.data.masks.names import names_beside
from swinv2.train.data.sources import IMAGE_COLUMNS, WEBDATASET_SUFFIXES, is_saved, open_rows

logger = logging.getLogger(__name__)

MASK_COLUMNS = ("mask", "label", "annotation", "segmentation_mask", "labels")


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

            - a folder with a folder of `folders.IMAGE_FOLDERS` and one of `folders.MASK_FOLDERS`; folders of splits may
              be inside or outside of them, or VOC's `ImageSets/Segmentation` may list them. An image and its mask have
              the same stem, except for `folders.IMAGE_SUFFIXES` and `folders.MASK_SUFFIXES`;
            - a folder with `train` and `trainannot` and so on: CamVid as SegNet has it;
            - a folder, possibly of splits, in which a mask is beside its image: with a suffix, or a PNG of one channel
              beside an image in another format;
            - parquet files, a folder that `datasets.save_to_disk` wrote, or a data set on the hub; see
              `sources.open_dataset`.
        split: Name of the split; "evaluation" for the first of `EVAL_SPLITS` that exists.
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
    layout = recognise(path) if path.is_dir() else None

    def open_split(wanted: str, reports: bool = True) -> MaskDataset:
        if layout is None:
            return _open_columns(source, wanted, image_column, mask_column, reports)
        return open_layout(layout, source, wanted, reports)

    dataset = open_split(split)
    from_file, colours, names_file = names_beside([path] if layout is None else [layout.folder, path])
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


def _open_columns(
    source: str, split: str, image_column: str | None, mask_column: str | None, reports: bool
) -> MaskDataset:
    """The rows of a split of parquet files, of a saved data set or of one on the hub."""
    path = Path(source)
    if path.is_dir() and not is_saved(path) and not _has_tables(path):
        raise UsageError(
            f"{source!r} {'has no images' if not images_inside(path) else 'has no masks that belong to its images'}; "
            "expected the folders images and masks with equal names in both, or masks beside their images, such as "
            "a.jpg and a_mask.png."
        )
    rows, features, found, splits = open_rows(source, split)
    stored = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
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
