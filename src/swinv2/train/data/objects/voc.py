"""Reads PASCAL VOC's annotations: an XML file for each image.

In: a folder. Out: `Annotations`, not yet cleaned. Boxes in the files count pixels from 1, and their last pixel is
inside: left - 1, top - 1, right and bottom are their borders. A difficult object counts as a crowd, which an evaluation
ignores. Parts of objects, actions and masks are not read.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from swinv2.console import shown
from swinv2.errors import UsageError, few
from swinv2.images import is_hidden, is_image_name
from swinv2.train.data.folders import folders_in
from swinv2.train.data.objects.annotations import Annotations, choose_split, rows_of_files, split_of, upright_size

SIDES = ("xmin", "ymin", "xmax", "ymax")

_TOGETHER = "trainval"
"""VOC's list of the images of two splits, which is a split of its own."""


@dataclass(frozen=True)
class _Image:
    """An XML file: `image` is the file of its image, or None; `size` its height and width, or (0, 0); the others have
    an item for each object."""

    file: Path
    image: Path | None
    size: tuple[int, int]
    names: list[str]
    boxes: list[list[float]]
    difficult: list[bool]


def recognise(folder: Path) -> Path | None:
    """The first XML file with VOC's annotations in a folder; None if there is none."""
    places = [folder / "Annotations", *(place for place in folders_in(folder) if split_of(place.name)), folder]
    firsts = (next(iter(_xml_files(place)), None) for place in places)
    return next((file for file in firsts if file is not None and b"<annotation" in file.read_bytes()), None)


def read(source: str, split: str, names: Sequence[str] = ()) -> Annotations:
    """Reads a split.

    Args:
        source: A folder with `Annotations` and `JPEGImages` (or `images`), whose splits are the lists in
            `ImageSets/Main`, if there are any; or a folder of XML files beside their images, possibly in folders of
            splits. The image of a file has the same name, or the one that the file gives.
        split: Name of the split; "evaluation" for the first of `EVAL_SPLITS` that exists; "trainval" if it is listed.
        names: Names of the classes in their order; () for the names in the split in the order of the alphabet.

    Raises:
        UsageError: There is no such split, or a file cannot be parsed or lacks something.
    """
    folder = Path(source)
    if (folder / "Annotations").is_dir():
        lists = _lists(folder)
        splits = tuple(lists)
        found = split if split in lists else choose_split(splits, split, folder)
        available = {file.stem: file for file in _xml_files(folder / "Annotations")}
        if found is None:
            files, unnamed = list(available.values()), []
        else:
            files, unnamed = _listed_files(lists[found], available)
        images = [place for name in ("JPEGImages", "images", "Annotations") if (place := folder / name).is_dir()]
        is_shared = found is not None
    else:
        places: dict[str, list[Path]] = {}
        for place in folders_in(folder):
            if (name := split_of(place.name)) is not None and _xml_files(place):
                places.setdefault(name, []).append(place)
        splits = tuple(places)
        found = choose_split(splits, split, folder)
        images = places[found] if found else [folder]
        files, unnamed, is_shared = [file for place in images for file in _xml_files(place)], [], False
    by_name = {
        path.name: path
        for place in images
        for path in map(place.joinpath, sorted(os.listdir(place)))
        if is_image_name(path.name)
    }
    by_stem = {path.stem: path for path in by_name.values()}
    parsed = [_parse(file, by_name, by_stem) for file in files]
    if not is_shared:
        used = {one.image for one in parsed}
        unnamed = [shown(path) for path in by_name.values() if path not in used]
    return _annotations(parsed, names, folder, found, splits, unnamed)


def _xml_files(folder: Path) -> list[Path]:
    """The XML files directly in a folder, by name."""
    if not folder.is_dir():
        return []
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(".xml") and not is_hidden(name))
    return [folder / name for name in names]


def _lists(folder: Path) -> dict[str, Path]:
    """The list of images of each split."""
    lists = {}
    for file in sorted((folder / "ImageSets" / "Main").glob("*.txt")):
        # Other lists are for one class: cat_train.txt.
        name = file.stem if file.stem == _TOGETHER else split_of(file.stem) if file.stem.isalpha() else None
        if name is not None:
            lists[name] = file
    return lists


def _listed_files(file: Path, available: dict[str, Path]) -> tuple[list[Path], list[str]]:
    """The XML files of the images in a list, and the names of those that have none."""
    try:
        lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UsageError(f"{shown(file)} is no text (UTF-8); expected the name of an image in each line.") from error
    if not lines:
        raise UsageError(f"{shown(file)} is empty; expected the name of an image in each line.")
    files = [available[line] for line in lines if line in available]
    return files, [f"{line} of {shown(file)}, which has no XML file" for line in lines if line not in available]


def _parse(file: Path, by_name: dict[str, Path], by_stem: dict[str, Path]) -> _Image:
    """Reads an XML file."""
    try:
        root = ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise UsageError(
            f"{shown(file)}, line {error.position[0]}: is no valid XML ({error}); it may be incomplete: copy or export "
            "it again."
        ) from error
    except (OSError, ValueError, LookupError) as error:
        raise UsageError(f"{shown(file)} cannot be read: {error}; expected VOC's annotations.") from error
    if root.tag != "annotation":
        raise UsageError(f"{shown(file)} begins with <{root.tag}>; expected <annotation>, as VOC's files do.")
    image = by_stem.get(file.stem) or by_name.get((root.findtext("filename") or "").strip())
    height, width = (root.findtext(f"size/{key}") or "0" for key in ("height", "width"))
    size = (int(height), int(width)) if height.strip().isdecimal() and width.strip().isdecimal() else (0, 0)
    if min(size) == 0:
        size = upright_size(str(image)) if image else (0, 0)
    objects = list(enumerate(root.findall("object"), 1))
    return _Image(
        file,
        image,
        size,
        [_text(one, "name", file, number) for number, one in objects],
        [[_number(one, f"bndbox/{side}", file, number) for side in SIDES] for number, one in objects],
        [(one.findtext("difficult") or "").strip() not in ("", "0") for _, one in objects],
    )


def _text(element: ElementTree.Element, key: str, file: Path, number: int) -> str:
    """The text of an element inside an object."""
    text = (element.findtext(key) or "").strip()
    if not text:
        raise UsageError(
            f"{shown(file)}, object {number}: has no <{key.replace('/', '><')}>; expected a name, and a box of "
            "<xmin>, <ymin>, <xmax> and <ymax>. Add it, or delete the object."
        )
    return text


def _number(element: ElementTree.Element, key: str, file: Path, number: int) -> float:
    """The number of an element inside an object."""
    text = _text(element, key, file, number)
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(
            f"{shown(file)}, object {number}: <{key.split('/')[-1]}> is {text[:60]!r}; expected a number of pixels."
        ) from error


def _annotations(
    parsed: Sequence[_Image],
    names: Sequence[str],
    folder: Path,
    found: str | None,
    splits: tuple[str, ...],
    unnamed: Sequence[str],
) -> Annotations:
    """The annotations of parsed files."""
    places = [(image.file, number) for image in parsed for number in range(1, len(image.names) + 1)]
    words = [name for image in parsed for name in image.names]
    classes = tuple(names) or tuple(sorted(set(words)))
    others = [index for index, word in enumerate(words) if word not in classes]
    if others:
        file, number = places[others[0]]
        raise UsageError(
            f"{shown(file)}, object {number}: the name is {words[others[0]]!r}; expected one of {few(classes)}. Fix "
            "it, or add the name."
        )
    number_of = {name: index for index, name in enumerate(classes)}
    boxes = np.array([box for image in parsed for box in image.boxes], np.float64).reshape(-1, 4)
    return Annotations(
        images=rows_of_files([str(image.image) if image.image else None for image in parsed], folder),
        exists=np.array([image.image is not None for image in parsed], bool),
        image_name=lambda index: f"the one of {shown(parsed[index].file)}",
        image_ids=np.arange(len(parsed)),
        sizes=np.array([image.size for image in parsed], np.int64).reshape(-1, 2),
        owners=np.repeat(np.arange(len(parsed)), np.array([len(image.names) for image in parsed], np.int64)),
        boxes=boxes - (1, 1, 0, 0),
        labels=np.array([number_of[word] for word in words], np.int64),
        place=lambda index: f"{shown(places[index][0])}, object {places[index][1]}",
        names=classes,
        source=str(folder),
        split=found,
        splits=splits,
        crowd=np.array([flag for image in parsed for flag in image.difficult], bool),
        extra=unnamed,
    )
