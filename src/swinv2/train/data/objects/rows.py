"""Reads boxes from rows of `datasets`: tables beside images, parquet files, saved data sets and data sets of the hub.

In: a source of `sources.open_dataset` with a column "objects". Out: `Annotations`, not yet cleaned. A row's objects are
lists, {"bbox": [...], "category": [...]}, or a list of such objects; a box is left, top, width and height in pixels, as
in COCO. Other notations of boxes cannot be told from it and are not read.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as parquet

from swinv2.errors import UsageError, few
from swinv2.images import is_hidden
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.folders import METADATA, folders_in
from swinv2.train.data.objects.annotations import Annotations, split_of, upright_size
from swinv2.train.data.sources import open_dataset

COLUMN = "objects"
CATEGORY_KEYS = ("category", "categories", "category_id", "label", "labels")
CROWD_KEYS = ("iscrowd", "is_crowd")


def recognise(folder: Path) -> Path | None:
    """A saved data set, a parquet file or a table with a column "objects" in a folder; None if there is none."""
    places = [folder, *(place for place in folders_in(folder) if split_of(place.name) is not None)]
    tables = [place / name for place in places for name in METADATA if (place / name).is_file()]
    saved = [folder / name for name in ("dataset_dict.json", "state.json") if (folder / name).is_file()]
    files = [
        path for path in sorted(folder.glob("*.parquet")) if not is_hidden(path.name) and path.name not in METADATA
    ]
    return next(iter([*saved, *(file for file in (*files, *tables) if _has_column(file))]), None)


def _has_column(file: Path) -> bool:
    """Whether a table has the column of objects."""
    if file.suffix == ".parquet":
        try:
            return COLUMN in parquet.read_schema(file).names
        except (OSError, ValueError):
            return True  # `open_dataset` says what is wrong with it.
    with file.open("rb") as opened:
        return COLUMN.encode() in opened.readline()


def read(source: str, split: str, names: Sequence[str] = ()) -> Annotations:
    """Reads a split.

    Args:
        source: A folder of images with a table of `METADATA`, of parquet files or of a saved data set; a parquet file;
            or the name of a data set on the hub.
        split: Name of the split; "evaluation" for the first of `EVAL_SPLITS` that exists.
        names: Names of the classes, if the categories are integers: the first is that of 0. Without them, the integers
            that the split has are the names.

    The size of an image is in the columns "height" and "width"; otherwise it is read from the header of the image.
    Words as categories become classes in the order of the alphabet.

    Raises:
        UsageError: The source cannot be opened or has no such split; it has no column "objects"; or a row is broken.
    """
    opened = open_dataset(source, split)
    rows = opened.rows.with_format(None)
    if COLUMN not in rows.column_names:
        raise UsageError(
            f"{source!r} has the columns {sorted(rows.column_names)}; expected {COLUMN!r} with the boxes and "
            "categories of each image."
        )
    feature = rows.features[COLUMN]
    objects = [_as_lists(stored, f"{source}, row {row}") for row, stored in enumerate(rows[COLUMN][:])]
    owners = np.repeat(np.arange(len(objects)), np.array([len(one["bbox"]) for one in objects], np.int64))
    starts = np.searchsorted(owners, owners)
    boxes = np.array([box for one in objects for box in one["bbox"]], np.float64).reshape(-1, 4)
    with np.errstate(invalid="ignore", over="ignore"):
        boxes[:, 2:] += boxes[:, :2]

    def place(index: int) -> str:
        return f"{source}, row {owners[index]}, object {index - starts[index]}, both counted from 0"

    categories = [category for one in objects for category in one["category"]]
    labels, classes, ids = _classes(categories, _names_of(feature), names, place)
    images = replace(
        opened, names=(), several=False, rows=opened.rows.select_columns([opened.image_column]), label_column=None
    )
    sizes = _sizes(rows, images)
    areas = np.array([np.nan if area is None else area for one in objects for area in one["area"]], np.float64)
    return Annotations(
        images=images,
        exists=sizes[:, 0] >= 0,
        image_name=lambda index: images[index].name,
        image_ids=_image_ids(rows, len(objects)),
        sizes=np.maximum(sizes, 0),
        owners=owners,
        boxes=boxes,
        labels=labels,
        place=place,
        names=classes,
        source=source,
        split=opened.split,
        splits=opened.splits,
        crowd=np.array([bool(crowd) for one in objects for crowd in one["crowd"]], bool),
        areas=areas,
        segments=[segment for one in objects for segment in one["segmentation"]],
        category_ids=ids,
    )


def _as_lists(stored: Any, where: str) -> dict[str, list[Any]]:
    """The objects of a row as lists of equal lengths: bbox, category, area, crowd and segmentation."""
    if isinstance(stored, str):
        try:
            stored = json.loads(stored)
        except json.JSONDecodeError as error:
            raise UsageError(
                f"{where}: {COLUMN!r} is {stored[:60]!r}; expected JSON with bbox and category."
            ) from error
    if isinstance(stored, list):
        if not all(isinstance(one, dict) for one in stored):
            raise UsageError(f"{where}: {COLUMN!r} is {str(stored)[:60]}; expected objects with bbox and category.")
        keys = stored[0].keys() if stored else ("bbox", "category")
        stored = {key: [one.get(key) for one in stored] for key in keys}
    elif stored is None:
        stored = {"bbox": [], "category": []}
    if not isinstance(stored, dict):
        raise UsageError(f"{where}: {COLUMN!r} is {str(stored)[:60]!r}; expected objects with bbox and category.")
    category = next((key for key in CATEGORY_KEYS if key in stored), None)
    if "bbox" not in stored or category is None:
        raise UsageError(
            f"{where}: {COLUMN!r} has the keys {sorted(stored)}; expected 'bbox' (left, top, width, height in pixels) "
            "and 'category'."
        )
    boxes = stored["bbox"] or []
    crowd = next((key for key in CROWD_KEYS if key in stored), None)
    found = {"bbox": boxes, "category": stored[category] or []}
    for name, key in (("area", "area"), ("crowd", crowd), ("segmentation", "segmentation")):
        found[name] = [None] * len(boxes) if key is None or stored.get(key) is None else stored[key]
    for key, values in found.items():
        if len(values) != len(boxes):
            raise UsageError(
                f"{where}: has {len(boxes)} boxes, but {len(values)} values of {key!r}; expected equal numbers."
            )
    wrong = [box for box in boxes if not _is_box(box)]
    if wrong:
        raise UsageError(
            f"{where}: has the box {str(wrong[0])[:60]!r}; expected 4 numbers, left, top, width and height in pixels."
        )
    return found


def _is_box(box: Any) -> bool:
    """Whether a value is a list of 4 numbers."""
    return isinstance(box, (list, tuple)) and len(box) == 4 and all(isinstance(side, (int, float)) for side in box)


def _names_of(feature: Any) -> tuple[str, ...]:
    """The names of the classes of a column of objects, if their type has names."""
    while (inside := _inside(feature)) is not None:
        feature = inside
    for key in CATEGORY_KEYS:
        category = feature.get(key) if isinstance(feature, dict) else None
        category = category if isinstance(category, datasets.ClassLabel) else _inside(category)
        if isinstance(category, datasets.ClassLabel):
            return tuple(category.names or ())
    return ()


def _inside(feature: Any) -> Any:
    """The feature of the items of a list; None for another feature."""
    return feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)


def _classes(
    categories: Sequence[Any], known: tuple[str, ...], names: Sequence[str], place: Any
) -> tuple[np.ndarray, tuple[str, ...], tuple[int, ...]]:
    """The class of each object, the names of the classes, and their ids, () for 1 to n."""
    wanted = str if categories and isinstance(categories[0], str) else int
    for index, category in enumerate(categories):
        if not isinstance(category, wanted):
            raise UsageError(
                f"{place(index)}: the category is {category!r}; expected {'a word' if wanted is str else 'an integer'}"
                ", as the others are."
            )
    if wanted is str or not (known or names):
        values = sorted(set(categories))
        classes = tuple(names) if wanted is str and names else tuple(map(str, values))
        number_of = {value: number for number, value in enumerate(names if wanted is str and names else values)}
        ids = () if wanted is str else tuple(values)
    else:
        classes, ids = known or tuple(names), ()
        number_of = {number: number for number in range(len(classes))}
    others = [index for index, category in enumerate(categories) if category not in number_of]
    if others:
        expected = (
            f"one of {few(classes)}" if wanted is str else f"0 to {len(classes) - 1}, as there are {len(classes)} names"
        )
        raise UsageError(
            f"{place(others[0])}: the category is {categories[others[0]]!r}; expected {expected}. Fix it, "
            "or add its name."
        )
    return np.array([number_of[category] for category in categories], np.int64), classes, ids


def _sizes(rows: Any, images: ImageDataset) -> np.ndarray:
    """Height and width of each image, (images, 2); 0 if it cannot be read, -1 if there is none."""
    kinds = [getattr(rows.features.get(key), "dtype", "") for key in ("height", "width")]
    if all("int" in kind for kind in kinds):
        sides = [[side or 0 for side in rows[key][:]] for key in ("height", "width")]
        sizes = np.array(sides, np.int64).T.reshape(-1, 2)
    else:
        sizes = np.zeros((len(rows), 2), np.int64)
    for row in np.flatnonzero((sizes <= 0).any(1)):
        image = images[int(row)].image
        if isinstance(image, np.ndarray):
            sizes[row] = image.shape[:2]
        elif not image or (isinstance(image, str) and not os.path.exists(image)):
            sizes[row] = -1
        else:
            sizes[row] = upright_size(image)
    return sizes


def _image_ids(rows: Any, count: int) -> np.ndarray:
    """The column "image_id" if it has integers, each once; otherwise the index of each image."""
    stored = rows["image_id"][:] if "image_id" in rows.column_names else []
    is_id = len(stored) == len(set(stored)) == count and all(isinstance(value, int) for value in stored)
    return np.array(stored if is_id else range(count), np.int64)
