"""Reads YOLO's annotations: a text file for each image, with a line for each object.

In: a folder, or a data.yaml. Out: `Annotations`, not yet cleaned. A line is "class x y width height", the centre and
the sides of a box, or "class x1 y1 x2 y2 x3 y3 ...", a polygon; all as fractions of the image's width and height. The
size of an image is read from the header of its file. Keypoints are not read; a rotated box is a polygon of 4 points.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import yaml

from swinv2.console import shown
from swinv2.errors import UsageError, few, first_sentence
from swinv2.images import images_inside
from swinv2.train.data.folders import folders_in
from swinv2.train.data.objects.annotations import Annotations, choose_split, rows_of_files, split_of, upright_size

logger = logging.getLogger(__name__)

YAML = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
"""Names of files that are read as a data.yaml. Other YAML files are if they have the keys of one."""

CLASSES = ("classes.txt", "obj.names", "names.txt", "names")
"""Files with the name of a class in each line, in the folder or beside the labels."""


def recognise(folder: Path) -> Path | None:
    """The data.yaml of a folder, or a folder 'labels' with text files; None if there is none."""
    files = _yaml_files(folder)
    places = [folder, *(place for place in folders_in(folder) if split_of(place.name) is not None)]
    labels = (place / "labels" for place in places if (place / "images").is_dir())
    return next(iter(files), None) or next((place for place in labels if any(place.rglob("*.txt"))), None)


def read(source: str, split: str, names: Sequence[str] = ()) -> Annotations:
    """Reads a split.

    Args:
        source: A data.yaml; or a folder with one; or a folder with `images` and `labels`, either directly in it, with
            or without folders of splits inside them, or in folders of splits. The labels of `images/a/1.jpg` are
            `labels/a/1.txt`; without a folder `labels`, `images/a/1.txt`.
        split: Name of the split; "evaluation" for the first of `EVAL_SPLITS` that exists.
        names: Names of the classes, if there are none in the data.yaml or in a file of `CLASSES`.

    An image without a text file has no objects, as in Ultralytics' data sets, with a warning.

    Raises:
        UsageError: There is no such split; there are no names; or a line is broken.
    """
    path = Path(source)
    files = [path] if path.is_file() else _yaml_files(path)
    if len(files) > 1:
        raise UsageError(f"{source!r} has several data files, {few([file.name for file in files])}; give one of them.")
    folder = path.parent if path.is_file() else path
    if files:
        content = _load(files[0])
        inside = content.get("path")
        base = folder / str(inside) if inside and (folder / str(inside)).is_dir() else folder
        places = {
            str(split_of(key)): _places(value, key, files[0], (base, folder))
            for key, value in content.items()
            if key in ("train", "val", "valid", "validation", "test") and value
        }
        own = _names_of(content, files[0])
    else:
        places, own = _places_of_folder(folder), ()
    splits = tuple(name for name in places if name)
    found = choose_split(splits, split, folder)
    images = list(_images_of(places[found or ""]))
    classes = own or _names_in_files([folder, folder / "labels", *places[found or ""]]) or tuple(names)
    if not classes:
        raise UsageError(
            f"{source!r} has no names of classes; write them into {shown(folder / 'classes.txt')}, one a line, or into "
            "a data.yaml."
        )
    return _read_labels(images, classes, folder, files[0] if files else folder, found, splits)


def _yaml_files(folder: Path) -> list[Path]:
    """The files of a folder that say where the images are."""
    named = [folder / name for name in YAML if (folder / name).is_file()]
    if named:
        return named
    others = [*sorted(folder.glob("*.yaml")), *sorted(folder.glob("*.yml"))]
    return [file for file in others if b"names" in file.read_bytes() and {"names", "train"} <= _load(file).keys()]


def _load(file: Path) -> dict[str, Any]:
    """The content of a data.yaml."""
    try:
        content: Any = yaml.safe_load(file.read_bytes())
    except (yaml.YAMLError, OSError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{shown(file)}{line}: is no valid YAML ({first_sentence(error)}); fix it.") from error
    if not isinstance(content, dict):
        raise UsageError(f"{shown(file)} has no keys; expected 'names', 'train' and 'val', as a data.yaml has.")
    if "kpt_shape" in content:
        raise UsageError(f"{shown(file)} is of a data set with keypoints ('kpt_shape'); expected boxes or polygons.")
    return {str(key): value for key, value in content.items()}


def _names_of(content: dict[str, Any], file: Path) -> tuple[str, ...]:
    """The names of the classes in a data.yaml; () if there are none."""
    stored = content.get("names") or ()
    if isinstance(stored, dict):
        if set(stored) != set(range(len(stored))):
            raise UsageError(
                f"{shown(file)} has names with the numbers {few(list(map(str, stored)))}; expected 0, 1, ..."
            )
        stored = [stored[number] for number in range(len(stored))]
    if not isinstance(stored, (list, tuple)):
        raise UsageError(f"{shown(file)} has 'names' {str(stored)[:60]!r}; expected a list of names, or number: name.")
    count = content.get("nc")
    if stored and count is not None and count != len(stored):
        raise UsageError(f"{shown(file)} has {len(stored)} names, but 'nc' is {count}; expected equal numbers.")
    return tuple(map(str, stored))


def _names_in_files(folders: Sequence[Path]) -> tuple[str, ...]:
    """The names of the classes in the first file of `CLASSES`; () if there is none."""
    file = next((place / name for place in folders for name in CLASSES if (place / name).is_file()), None)
    return () if file is None else tuple(line.strip() for line in _text(file).splitlines() if line.strip())


def _places(value: Any, key: str, file: Path, bases: Sequence[Path]) -> list[Path]:
    """The folders or lists of a split in a data.yaml."""
    found = []
    for place in value if isinstance(value, list) else [value]:
        # Roboflow writes "../train/images" for "train/images".
        variants = (str(place), str(place).removeprefix("../"))
        existing = [base / variant for variant in variants for base in bases if (base / variant).exists()]
        if not existing:
            raise UsageError(
                f"{shown(file)} has {key!r}: {place}, which does not exist; expected a folder of images, or a text "
                "file that lists images, relative to 'path' or to the file."
            )
        found.append(existing[0])
    return found


def _places_of_folder(folder: Path) -> dict[str, list[Path]]:
    """The folders of images of each split; "" if there are no splits."""
    images, places = folder / "images", {}
    for place in folders_in(images) if images.is_dir() else ():
        if (split := split_of(place.name)) is not None:
            places.setdefault(split, []).append(place)
    if not places and images.is_dir():
        return {"": [images]}
    for place in folders_in(folder):
        if (split := split_of(place.name)) is not None and (place / "images").is_dir():
            places.setdefault(split, []).append(place / "images")
    return places


def _images_of(places: Sequence[Path]) -> Iterator[Path]:
    """The images in folders and in lists."""
    for place in places:
        if place.is_dir():
            yield from images_inside(place)
        else:
            yield from (place.parent / line.strip() for line in _text(place).splitlines() if line.strip())


def _text(file: Path) -> str:
    """The text of a file."""
    try:
        return file.read_text("utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{shown(file)} cannot be read: {error}; expected a text file (UTF-8).") from error


def _labels_of(image: Path) -> Path:
    """The folder of an image's text file."""
    parts = image.parent.parts
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        folder = Path(*parts[:last], "labels", *parts[last + 1 :])
        if Path(*parts[:last], "labels").is_dir():
            return folder
    return image.parent


def _read_labels(
    images: Sequence[Path],
    names: tuple[str, ...],
    folder: Path,
    source: Path,
    found: str | None,
    splits: tuple[str, ...],
) -> Annotations:
    """The annotations of images."""
    folders = {place: _labels_of(place / "image") for place in {image.parent for image in images}}
    listed = {place: set(os.listdir(place)) if place.is_dir() else set() for place in {*folders.values()}}
    label_files = [folders[image.parent] / f"{image.stem}.txt" for image in images]
    without = [image for image, file in zip(images, label_files, strict=True) if file.name not in listed[file.parent]]
    if without and len(without) < len(images):
        logger.warning(
            f"{shown(source)} has {len(without):,} images without a text file, which count as images without objects; "
            f"first {shown(without[0])}"
        )
    owners, lines, numbers, polygons = [], [], [], []
    for index, file in enumerate(label_files):
        for line, values in _lines(file, len(names)) if file.name in listed[file.parent] else ():
            owners.append(index)
            lines.append(line)
            numbers.append(values if len(values) == 5 else [values[0], *_around(values[1:])])
            polygons.append(None if len(values) == 5 else values[1:])
    if len(without) == len(images) and images:
        raise UsageError(
            f"{shown(source)} has no labels for its images; expected, for example, {shown(label_files[0])} for "
            f"{shown(images[0])}."
        )
    _warn_of_orphans(listed, label_files, source, folders)
    table = np.array(numbers, np.float64).reshape(-1, 5)
    finite = table[:, 1:][np.isfinite(table[:, 1:])]
    if len(finite) and np.median(finite) > 2:
        raise UsageError(
            f"{shown(label_files[owners[0]])}, line {lines[0]}: the numbers of most lines are pixels; expected "
            "fractions of the image's width and height, from 0 to 1."
        )
    exists = np.array([image.is_file() for image in images], bool)
    sizes = np.array([upright_size(str(image)) for image in images], np.int64).reshape(-1, 2)
    owner = np.array(owners, np.int64)
    scale = sizes[owner][:, ::-1]
    with np.errstate(invalid="ignore", over="ignore"):
        centres, sides = table[:, 1:3] * scale, table[:, 3:5] * scale
        boxes = np.concatenate((centres - sides / 2, centres + sides / 2), 1)
        scaled = [
            None if points is None else [(np.reshape(points, (-1, 2)) * one).ravel().tolist()]
            for points, one in zip(polygons, scale, strict=True)
        ]
    return Annotations(
        images=rows_of_files(
            [str(image) if is_there else None for image, is_there in zip(images, exists, strict=True)], folder
        ),
        exists=exists,
        image_name=lambda index: shown(images[index]),
        image_ids=np.arange(len(images)),
        sizes=sizes,
        owners=owner,
        boxes=boxes,
        labels=table[:, 0].astype(np.int64),
        place=lambda index: f"{shown(label_files[owners[index]])}, line {lines[index]}",
        names=names,
        source=shown(source),
        split=found,
        splits=splits,
        segments=scaled if any(points is not None for points in scaled) else (),
    )


def _lines(file: Path, classes: int) -> Iterator[tuple[int, list[float]]]:
    """The lines of a text file, from 1, and their numbers."""
    for number, line in enumerate(_text(file).splitlines(), 1):
        if not (words := line.split()):
            continue
        where = f"{shown(file)}, line {number}"
        try:
            values = [float(word) for word in words]
        except ValueError as error:
            raise UsageError(
                f"{where}: {shorten(line, 60)!r} has text; expected numbers, 'class x y width height' or 'class x1 y1 "
                "x2 y2 ...', as fractions of the image."
            ) from error
        if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
            raise UsageError(
                f"{where}: {shorten(line, 60)!r} has {len(values)} values; expected 5 for a box, or the class and at "
                "least 3 points for a polygon. Fix or delete the line."
            )
        if not values[0].is_integer() or not 0 <= values[0] < classes:
            raise UsageError(
                f"{where}: the class is {words[0]}; expected 0 to {classes - 1}, as there are {classes} names. Fix the "
                "line, or add the name of the class."
            )
        yield number, values


def _around(points: Sequence[float]) -> list[float]:
    """The box around a polygon: its centre and its sides."""
    across, down = points[::2], points[1::2]
    left, top, right, bottom = min(across), min(down), max(across), max(down)
    return [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]


def _warn_of_orphans(
    listed: dict[Path, set[str]], label_files: Sequence[Path], source: Path, folders: dict[Path, Path]
) -> None:
    """Warns of text files without an image, in folders that have only labels."""
    used = set(label_files)
    places = [place for place in listed if place not in folders]
    orphans = [
        place / name
        for place in sorted(places)
        for name in sorted(listed[place])
        if name.endswith(".txt") and name not in CLASSES and place / name not in used
    ]
    if orphans:
        logger.warning(
            f"{shown(source)} has {len(orphans):,} text files without an image, which are left out; first "
            f"{shown(orphans[0])}"
        )
