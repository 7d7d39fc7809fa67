"""Reads COCO's annotations: a JSON file with images, categories and annotations.

In: a folder or a JSON file. Out: `Annotations`, not yet cleaned. Images are found by listing folders, none is opened
unless the file has no size for it. Keypoints and captions are not read.
"""

import gc
import json
import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from swinv2.console import shown
from swinv2.errors import UsageError, few
from swinv2.images import is_hidden, is_image_name
from swinv2.train.data.folders import folders_in
from swinv2.train.data.objects.annotations import Annotations, choose_split, rows_of_files, split_of, upright_size
from swinv2.train.data.objects.entries import check_once, look_up, name_entry, read_integers, read_numbers, read_texts

ROBOFLOW = "_annotations.coco.json"


def recognise(folder: Path) -> Path | None:
    """The first file with COCO's annotations in a folder; None if there is none."""
    return next((file for files in _files_of_splits(folder).values() for file in files), None)


def read(source: str, split: str, names: Sequence[str] = ()) -> Annotations:
    """Reads a split.

    Args:
        source: A JSON file, which counts as any split; or a folder, where these are looked for, in this order:

            - a JSON file in each folder of a split, such as `train/_annotations.coco.json`;
            - JSON files in `annotations`; if there are any, only those called `instances_...`, such as
              `instances_train2017.json`;
            - JSON files in the folder itself.

            If a file's name has no split, it must be the only one. Images are searched beside the JSON file, in the
            folder of the split, in `images`, and in other folders that are not those of another split.
        split: Name of the split; "evaluation" for the first of `EVAL_SPLITS` that exists.
        names: Not used; the file has the names.

    The classes are the categories of the file in the order of their ids, also those without an object. Only the parent
    category that Roboflow writes is left out: id 0, supercategory "none", no annotation, and the supercategory of
    another category.

    Raises:
        UsageError: There is no such split, or several files for it; or the file cannot be parsed or lacks something.
    """
    file, found, splits = Path(source), None, ()
    if file.is_file():
        folder = file.parent.parent if file.parent.name == "annotations" else file.parent
    else:
        folder = file
        files = _files_of_splits(folder)
        splits = tuple(name for name in files if name is not None)
        found = choose_split(splits, split, folder)
        several = files[found]
        if len(several) > 1 or (None in files and splits):
            listed = few([shown(path) for paths in files.values() for path in paths])
            raise UsageError(
                f"{str(folder)!r} has several files with COCO's annotations, {listed}; expected one for each split, "
                "with the split in its name. Give one of them instead of the folder."
            )
        (file,) = several
    data = _load(file)
    return _read_data(data, file, folder, found, splits)


def _files_of_splits(folder: Path) -> dict[str | None, list[Path]]:
    """The files with annotations of each split; None for files without a split in their name."""
    files: dict[str | None, list[Path]] = {}
    for place in folders_in(folder):
        split = split_of(place.name)
        if split is not None and (inside := _coco_files(place)):
            named = [file for file in inside if file.name == ROBOFLOW]
            files.setdefault(split, []).extend(named or inside)
    if not files:
        found = _coco_files(folder / "annotations") or _coco_files(folder)
        for file in [file for file in found if file.name.startswith("instances_")] or found:
            files.setdefault(split_of(file.stem), []).append(file)
    return files


def _coco_files(folder: Path) -> list[Path]:
    """The files directly in a folder that have COCO's annotations, or are called like them."""
    if not folder.is_dir():
        return []
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(".json") and not is_hidden(name))
    files = [folder / name for name in names]
    return [file for file in files if file.name == ROBOFLOW or file.name.startswith("instances_") or _is_coco(file)]


def _is_coco(file: Path) -> bool:
    """Whether a file has the keys of COCO's annotations. It is searched and not parsed."""
    if not file.is_file() or not file.stat().st_size:
        return False
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return all(content.find(key) >= 0 for key in (b'"images"', b'"annotations"'))


def _load(file: Path) -> dict[str, list[Any]]:
    """The lists of a file."""
    # Nothing to collect is made, and the search for it would take twice as long as the rest.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        data = json.loads(file.read_bytes())
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{shown(file)}, line {error.lineno}: is no valid JSON ({error.msg}); expected COCO's annotations. It may "
            "be incomplete: copy or export it again."
        ) from error
    except (UnicodeDecodeError, OSError, RecursionError) as error:
        raise UsageError(f"{shown(file)} cannot be read: {error}; expected COCO's annotations.") from error
    finally:
        if was_enabled:
            gc.enable()
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise UsageError(
                f"{shown(file)} has no list {key!r}; expected COCO's annotations, with the lists 'images', "
                "'annotations' and 'categories'."
            )
    return data


def _read_data(
    data: dict[str, list[Any]], file: Path, folder: Path, found: str | None, splits: tuple[str, ...]
) -> Annotations:
    """The annotations of a parsed file."""
    images, annotations = data["images"], data["annotations"]
    image_ids = read_integers(images, "id", "image", file)
    file_names = read_texts(images, "file_name", "image", file)
    files, extra = _find_images(file_names, file, folder, found)
    check_once(image_ids, "image id", file)
    _check_files(files, image_ids, file)
    image_of = {number: index for index, number in enumerate(image_ids.tolist())}
    owners = look_up(annotations, "image_id", image_of, "'images'", file)
    categories = read_integers(annotations, "category_id", "annotation", file)
    ids, names = _classes(data["categories"], set(categories.tolist()), file)
    class_of = {number: index for index, number in enumerate(ids)}
    labels = look_up(annotations, "category_id", class_of, "'categories'", file)
    boxes = read_numbers(annotations, "bbox", "annotation", file, length=4)
    areas = read_numbers(annotations, "area", "annotation", file, default=-1)
    with np.errstate(invalid="ignore", over="ignore"):
        boxes[:, 2:] += boxes[:, :2]
    boxes[~np.isfinite(areas)] = np.nan
    areas[areas < 0] = np.nan
    return Annotations(
        images=rows_of_files(files, folder),
        exists=np.array([path is not None for path in files], bool),
        image_name=lambda index: f"{file_names[index]} (image {image_ids[index]} of {shown(file)})",
        image_ids=image_ids,
        sizes=_sizes(images, files, file),
        owners=owners,
        boxes=boxes,
        labels=labels,
        place=lambda index: f"{shown(file)}, {name_entry(annotations[index], index, 'annotation')}",
        names=names,
        source=str(folder) if found else shown(file),
        split=found,
        splits=splits,
        crowd=read_numbers(annotations, "iscrowd", "annotation", file, default=0) != 0,
        areas=areas,
        segments=[annotation.get("segmentation") for annotation in annotations],
        category_ids=ids,
        extra=extra,
    )


def _classes(categories: list[Any], annotated: set[int], file: Path) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Ids and names of the classes, by id."""
    ids = read_integers(categories, "id", "category", file)
    names = read_texts(categories, "name", "category", file)
    check_once(ids, "category id", file)
    above = [category.get("supercategory") for category in categories]
    is_parent = [
        number == 0 and over == "none" and 0 not in annotated and name in above[:index] + above[index + 1 :]
        for index, (number, name, over) in enumerate(zip(ids.tolist(), names, above, strict=True))
    ]
    kept = sorted((int(ids[index]), name) for index, name in enumerate(names) if not is_parent[index])
    if not kept:
        raise UsageError(f"{shown(file)} has no category; expected a list of 'id' and 'name' for each class.")
    return tuple(number for number, _ in kept), tuple(name for _, name in kept)


def _sizes(images: list[Any], files: Sequence[str | None], file: Path) -> np.ndarray:
    """Height and width of each image, (images, 2); from the image's own file if the annotations do not have them."""
    sides = [read_numbers(images, key, "image", file, default=0) for key in ("height", "width")]
    sizes = np.nan_to_num(np.stack(sides, 1), posinf=0).astype(np.int64)
    for index in np.flatnonzero((sizes <= 0).any(1)).tolist():
        path = files[index]
        sizes[index] = (0, 0) if path is None else upright_size(path)
    return sizes


def _find_images(
    names: Sequence[str], file: Path, folder: Path, found: str | None
) -> tuple[list[str | None], list[str]]:
    """The file of each image, None if there is none, and the images beside them that are not named."""
    split = found or split_of(file.stem) or split_of(file.parent.name)
    bases = list(dict.fromkeys(place for base in (file.parent, folder) for place in (base, base / "images")))
    below = [place for base in bases if base.is_dir() for place in folders_in(base)]
    of_split = [place for place in below if split is not None and split_of(place.name) == split]
    others = [place for place in below if split_of(place.name) is None]
    places = list(dict.fromkeys(map(str, [file.parent, *of_split, *bases, *others])))
    listed: dict[str, frozenset[str]] = {}

    def find(name: str) -> str | None:
        for part in dict.fromkeys((name, os.path.basename(name))):
            head, tail = os.path.split(part)
            for place in places:
                inside = os.path.join(place, head) if head else place
                if inside not in listed:
                    listed[inside] = frozenset(os.listdir(inside) if os.path.isdir(inside) else ())
                if tail in listed[inside]:
                    return os.path.join(inside, tail)
        return None

    files = [find(name.replace("\\", "/")) for name in names]
    used = {path for path in files if path is not None}
    searched = {os.path.dirname(path) for path in used}
    # A folder may have the images of all splits.
    own = [place for place in sorted(searched) if found is None or split_of(os.path.basename(place)) == found]
    inside = (os.path.join(place, name) for place in own for name in sorted(listed[place]) if is_image_name(name))
    return files, [path for path in inside if path not in used]


def _check_files(files: Iterable[str | None], ids: np.ndarray, file: Path) -> None:
    """Raises an error if two images have the same file."""
    first: dict[str, int] = {}
    for path, number in zip(files, ids.tolist(), strict=True):
        if path is not None and first.setdefault(path, number) != number:
            raise UsageError(
                f"{shown(file)} has the images {first[path]} and {number}, which are the same file {path}; make them "
                "one image, or restore the folders of their names."
            )
