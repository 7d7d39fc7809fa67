"""Data sets of images with boxes and masks, for detection and instance segmentation.

In: a source whose format is recognised: COCO's JSON (`coco.py`), YOLO's text files (`yolo.py`), VOC's XML (`voc.py`),
or rows of `datasets` with a column "objects" (`object_rows.py`). Out: an `ObjectDataset`, which gives images that are
not yet decoded and their objects in pixels. All formats are cleaned here, and what is left out or changed is named in a
warning, once for each kind. What leaves no doubt that the files are wrong is an error. It knows no model, no image size
of a model and no augmentation, and draws no masks.
"""

import logging
import re
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from PIL import ExifTags, Image

from swinv2.errors import UsageError, few
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.folders import EVAL_SPLITS, SPLIT_FOLDERS

logger = logging.getLogger(__name__)

Segment = list[list[float]] | dict[str, Any]
"""A mask as it is stored: polygons `[[x0, y0, x1, y1, ...], ...]` in pixels, or COCO's run lengths, {"size": [height,
width], "counts": a list, or compressed text}."""

TOLERANCE = 0.05
"""A box may leave its image by so many pixels before a warning names it: files have rounded numbers. It is clipped."""

FORMATS = """expected one of
  COCO: a JSON file beside its images, in folders of splits, or in 'annotations'
  YOLO: a data.yaml, or folders 'images' and 'labels'
  VOC: XML files in 'Annotations' with 'JPEGImages', or beside their images
  datasets: a metadata.jsonl or parquet files with a column 'objects'"""

_SPLIT_OF = {called: split for split, names in SPLIT_FOLDERS.items() for called in names}

_SIDEWAYS = (5, 6, 7, 8)
"""Values of EXIF's orientation with which height and width change places."""


@dataclass(frozen=True)
class Objects:
    """The objects of an image.

    Attributes:
        boxes: (n, 4) float32: left, top, right, bottom in pixels of the upright image.
        labels: (n,) int64: class, from 0.
        crowd: (n,) bool: whether it is a region of many objects, COCO's iscrowd, or VOC's difficult object. It is used
            in an evaluation only, where what is found there is neither right nor wrong.
        areas: (n,) float64: the annotated area in pixels, COCO's `area`; otherwise the area of the box.
        segments: (n,) masks; None for an object without one.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    segments: tuple[Segment | None, ...]

    def __len__(self) -> int:
        return len(self.labels)


class AnnotatedImage(NamedTuple):
    """An image as it is stored, and its objects.

    Attributes:
        image: Path or contents of an image file, or pixels (H, W) or (H, W, channels), eight bits.
        objects: Its objects.
        name: Its name in messages.
        image_id: COCO's id of the image; otherwise its index in the split.
        annotated_size: Height and width in pixels to which the boxes belong, by the annotations; by the header of the
            file if the annotations have none. It differs from the size of the image if they belong to another one.
    """

    image: str | bytes | np.ndarray
    objects: Objects
    name: str
    image_id: int
    annotated_size: tuple[int, int] | None


class SegmentStore:
    """The masks of many objects in few arrays, which processes share and send quickly.

    Args:
        segments: The masks of the objects as a file has them. A polygon of fewer than 6 numbers is left out.
        place: Says where an object is annotated, for messages.

    Attributes:
        short: Objects with a polygon that was left out.
        broken: Objects with a polygon that has NaN or infinite numbers.
        runs: The masks that are run lengths.

    Raises:
        UsageError: A mask is in no known notation.
    """

    def __init__(self, segments: Sequence[Any], place: Callable[[int], str]) -> None:
        numbers, polygon_ends, object_ends = array("d"), array("q", [0]), array("q", [0])
        self.short: list[int] = []
        self.runs: dict[int, dict[str, Any]] = {}
        for index, segment in enumerate(segments):
            if isinstance(segment, dict):
                self.runs[index] = _check_runs(segment, place(index))
            for polygon in segment if isinstance(segment, list) else ():
                if not isinstance(polygon, list) or (len(polygon) % 2 and len(polygon) > 6):
                    raise UsageError(
                        f"{place(index)} has a polygon {str(polygon)[:60]}; expected a list of polygons, each x, y, x, "
                        "y ... in pixels: fix it, or delete the annotation."
                    )
                if len(polygon) < 6:
                    self.short += [index] if index not in self.short[-1:] else []
                    continue
                try:
                    numbers.extend(polygon)
                except TypeError as error:
                    raise UsageError(f"{place(index)} has a polygon with values that are not numbers.") from error
                polygon_ends.append(len(numbers))
            if not isinstance(segment, (dict, list, type(None))):
                raise UsageError(
                    f"{place(index)} has the mask {str(segment)[:60]!r}; expected polygons or run lengths."
                )
            object_ends.append(len(polygon_ends) - 1)
        self._numbers, self._polygon_ends, self._object_ends = map(np.array, (numbers, polygon_ends, object_ends))
        polygons = np.searchsorted(self._polygon_ends, np.flatnonzero(~np.isfinite(self._numbers)), "right") - 1
        self.broken = np.unique(np.searchsorted(self._object_ends, polygons, "right") - 1)
        self.exists = np.diff(self._object_ends) > 0
        self.exists[list(self.runs)] = True

    def __getitem__(self, index: int) -> Segment | None:
        if index in self.runs:
            return self.runs[index]
        first, end = self._object_ends[index : index + 2]
        borders = self._polygon_ends[first : end + 1].tolist()
        return [self._numbers[start:stop].tolist() for start, stop in pairwise(borders)] or None


@dataclass(frozen=True)
class Annotations:
    """What a format's reader found in a split, before it is cleaned. All images are there, also missing ones.

    Attributes:
        images: The images, without labels; the file of one that does not exist is "".
        exists: (images,) bool: whether the image exists.
        image_name: Says the name of an image, for messages.
        image_ids: (images,) their ids.
        sizes: (images, 2) height and width in pixels; 0 for an image that cannot be read.
        owners: (objects,) index of each object's image.
        boxes: (objects, 4) left, top, right, bottom in pixels.
        labels: (objects,) class, from 0.
        place: Says where an object is annotated, for messages: a file, and the line or the id of the annotation.
        names: Names of the classes.
        source: The file or folder, for messages.
        split: Name of the split; None if there are no splits.
        splits: Names of all splits of the source.
        crowd: (objects,) bool; None if there are no crowds.
        areas: (objects,) annotated areas, NaN where there is none; None if there are none.
        segments: (objects,) masks as they are stored; () if there are none.
        category_ids: The id of each class in COCO's files; () for 1 to n.
        extra: Names of image files that no annotation names.
    """

    images: ImageDataset
    exists: np.ndarray
    image_name: Callable[[int], str]
    image_ids: np.ndarray
    sizes: np.ndarray
    owners: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    place: Callable[[int], str]
    names: tuple[str, ...]
    source: str
    split: str | None = None
    splits: tuple[str, ...] = ()
    crowd: np.ndarray | None = None
    areas: np.ndarray | None = None
    segments: Sequence[Any] = ()
    category_ids: tuple[int, ...] = ()
    extra: Sequence[str] = ()


@dataclass(frozen=True)
class ObjectDataset:
    """All images of a split with their objects; an image may have none.

    Attributes:
        names: Names of the classes.
        source: The source, for messages.
        split: Name of the split; None if the source has no splits.
        splits: Names of all splits of the source.
        category_ids: COCO's category id of each class, for files of results; otherwise 1 to n.
        has_masks: Whether every object that is no crowd has a mask, and there is one.
        images: The images that count, as a data set without labels.
        image_ids, sizes: (rows,), (rows, 2): id, and height and width of each row of `images`.
        starts: (rows + 1,) the first object of each row, and the end.
        boxes, labels, crowd, areas: All objects, one row after the other; see `Objects`.
        origins: (objects,) index of each object in `store`.
        store: The masks; None if there are none.
    """

    names: tuple[str, ...]
    source: str
    split: str | None
    splits: tuple[str, ...]
    category_ids: tuple[int, ...]
    has_masks: bool
    images: ImageDataset = field(repr=False)
    image_ids: np.ndarray = field(repr=False)
    sizes: np.ndarray = field(repr=False)
    starts: np.ndarray = field(repr=False)
    boxes: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    crowd: np.ndarray = field(repr=False)
    areas: np.ndarray = field(repr=False)
    origins: np.ndarray = field(repr=False)
    store: SegmentStore | None = field(repr=False)

    @property
    def has_evaluation_split(self) -> bool:
        """Whether the source has a split that "evaluation" stands for."""
        return not set(EVAL_SPLITS).isdisjoint(self.splits)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> AnnotatedImage:
        index = range(len(self))[index]
        image, _, name = self.images[index]
        row = index if self.images.chosen is None else int(self.images.chosen[index])
        height, width = map(int, self.sizes[row])
        size = (height, width) if height else None
        return AnnotatedImage(image, self._objects_of(row), name, int(self.image_ids[row]), size)

    def __iter__(self) -> Iterator[AnnotatedImage]:
        return (self[index] for index in range(len(self)))

    def _objects_of(self, row: int) -> Objects:
        """The objects of a row of `images`."""
        part = slice(*self.starts[row : row + 2])
        origins = self.origins[part].tolist()
        segments = tuple(None if self.store is None else self.store[origin] for origin in origins)
        boxes, labels, crowd, areas = (
            values[part].copy() for values in (self.boxes, self.labels, self.crowd, self.areas)
        )
        return Objects(boxes, labels, crowd, areas, segments)

    def counts(self) -> np.ndarray:
        """The number of objects of each class, (classes,), without crowds. No image is read."""
        is_chosen = np.ones(len(self.image_ids), bool)
        if self.images.chosen is not None:
            is_chosen[:] = False
            is_chosen[self.images.chosen] = True
        counted = np.repeat(is_chosen, np.diff(self.starts)) & ~self.crowd
        return np.bincount(self.labels[counted], minlength=len(self.names))

    def share(self, fraction: float, seed: int) -> "ObjectDataset":
        """Draws a share of the images at random. Equal seeds draw equal images; a smaller share is part of a larger
        one.

        Raises:
            UsageError: The share is out of its range.
        """
        return replace(self, images=self.images.share(fraction, seed))

    def set_aside(self, share: float) -> "tuple[ObjectDataset, ObjectDataset]":
        """Divides the images into the rest and a share, by the names of their files; see `ImageDataset.set_aside`."""
        rest, aside = self.images.set_aside(share)
        return replace(self, images=rest), replace(self, images=aside)

    def with_names(self, names: Sequence[str], whose: str) -> "ObjectDataset":
        """The same data with its classes in the order of other names, for example those of a model.

        Args:
            names: All names. Those that this data does not have get unused category ids.
            whose: Whose names they are, for the message: "the model".

        Raises:
            UsageError: A class of this data is not among the names, or a name is there twice.
        """
        if len(set(names)) < len(names):
            raise UsageError(f"{whose} has the class name {_repeated(names)!r} twice; give each class another name.")
        others = [name for name in self.names if name not in names]
        if others:
            raise UsageError(
                f"{self.source} has classes that {whose} does not have: {few(others)}; it has {few(names)}. Rename or "
                "delete them in the annotations."
            )
        ids = dict(zip(self.names, self.category_ids, strict=True))
        for name in names:
            ids.setdefault(name, max(ids.values()) + 1)
        numbers = np.array([names.index(name) for name in self.names], np.int64)
        category_ids = tuple(ids[name] for name in names)
        return replace(self, names=tuple(names), category_ids=category_ids, labels=numbers[self.labels])


def open_objects(source: str, split: str, *, names: Sequence[str] = (), needs_masks: bool = False) -> ObjectDataset:
    """Opens a split of a data set with boxes and possibly masks.

    Args:
        source: A folder whose format is recognised; see `coco.read`, `yolo.read`, `voc.read` and `object_rows.read`. Or
            a file of COCO (.json), YOLO (.yaml) or parquet; or the name of a data set on the hub.
        split: Name of the split; "evaluation" for the first of `EVAL_SPLITS` that exists.
        names: Names of the classes in their order: those of class numbers if the data has no names.
        needs_masks: Whether objects without a mask are left out, with a warning.

    Raises:
        UsageError: The source has no known format or several; there is no such split, no image or no object; or an
            annotation is broken. The message names the file and the annotation.
    """
    # Here, because they import this module.
    from swinv2.train.data import coco, object_rows, voc, yolo

    path = Path(source)
    readers = {"COCO": coco, "YOLO": yolo, "VOC": voc, "datasets": object_rows}
    if path.is_file():
        suffixes = {".json": "COCO", ".yaml": "YOLO", ".yml": "YOLO", ".parquet": "datasets"}
        if path.suffix.lower() not in suffixes:
            raise UsageError(f"{source!r} is a file of no known format; {FORMATS}.")
        chosen = suffixes[path.suffix.lower()]
    elif path.is_dir():
        signs = {name: reader.recognise(path) for name, reader in readers.items()}
        found = {name: sign for name, sign in signs.items() if sign is not None}
        if not found:
            raise UsageError(f"{source!r} has no annotations in a known format; {FORMATS}.")
        if len(found) > 1:
            several = " and ".join(f"{name} ({sign})" for name, sign in found.items())
            raise UsageError(
                f"{source!r} has annotations in several formats, {several}; give the JSON file or the data.yaml itself "
                "instead of the folder, or move the others away."
            )
        chosen = next(iter(found))
    else:
        chosen = "datasets"
    opened = clean(readers[chosen].read(source, split, names), needs_masks)
    return opened.with_names(names, "the given list of names") if names else opened


def clean(found: Annotations, needs_masks: bool = False) -> ObjectDataset:
    """Leaves out what cannot be used, clips boxes to their images, and warns of each kind once.

    Args:
        found: What a reader found.
        needs_masks: Whether objects without a mask are left out.

    Raises:
        UsageError: A class name is there twice; a mask is in no known notation or has another size than its image; no
            image or no object is left, or none has a mask.
    """
    if len(set(found.names)) < len(found.names):
        raise UsageError(
            f"{found.source} has the class name {_repeated(found.names)!r} twice; give each class another name."
        )
    report = _Report(found)
    usable = _usable_images(found, report)
    boxes, keep = _clip(found, usable, report)
    store = SegmentStore(found.segments, found.place) if len(found.segments) else None
    crowd = np.zeros(len(keep), bool) if found.crowd is None else found.crowd
    has_mask = np.zeros(len(keep), bool)
    if store is not None:
        _check_sizes(found, store, usable)
        is_broken, is_short = np.zeros((2, len(keep)), bool)
        is_broken[store.broken] = is_short[store.short] = True
        keep &= ~report.objects(keep & is_broken, "left out, because a polygon has NaN or infinite numbers")
        report.objects(keep & is_short, "with a polygon of fewer than 3 points, which is no mask")
        has_mask = store.exists
    if needs_masks:
        if not (has_mask & keep & ~crowd).any():
            raise UsageError(
                f"no object of {report.where} has a mask; train with --task detection, or give annotations with "
                "polygons or run lengths."
            )
        keep &= ~report.objects(keep & ~has_mask & ~crowd, "left out, because they have no mask")
    if not keep.any():
        raise UsageError(f"{report.where} has no object in {usable.sum():,} images; expected boxes of objects.")
    order = np.flatnonzero(keep)[np.argsort(found.owners[keep], kind="stable")]
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = sides.prod(1) if found.areas is None else np.where(np.isnan(found.areas), sides.prod(1), found.areas)
    return ObjectDataset(
        names=found.names,
        source=found.source,
        split=found.split,
        splits=found.splits,
        category_ids=found.category_ids or tuple(range(1, len(found.names) + 1)),
        has_masks=bool((keep & ~crowd).any() and has_mask[keep & ~crowd].all()),
        images=found.images if usable.all() else replace(found.images, chosen=np.flatnonzero(usable)),
        image_ids=found.image_ids,
        sizes=found.sizes.astype(np.int32),
        starts=np.searchsorted(found.owners[order], np.arange(len(usable) + 1)),
        boxes=boxes[order].astype(np.float32),
        labels=found.labels[order].astype(np.int64),
        crowd=crowd[order],
        areas=areas[order].astype(np.float64),
        origins=order,
        store=store if has_mask.any() else None,
    )


class _Report:
    """Warns of what was left out or changed, with the count and the first example."""

    def __init__(self, found: Annotations) -> None:
        self.where = found.source + (f", split {found.split!r}," if found.split else "")
        self._place = found.place

    def objects(self, which: np.ndarray, what: str) -> np.ndarray:
        """Warns of objects, (objects,) bool, if there are any, and returns the same."""
        if which.any():
            count, first = int(which.sum()), self._place(int(which.argmax()))
            logger.warning(f"{self.where} has {count:,} object{'s' * (count > 1)} {what}; first {first}")
        return which

    def images(self, names: Sequence[str], what: str) -> None:
        """Warns of images, if there are any."""
        if names:
            logger.warning(f"{self.where} has {len(names):,} image{'s' * (len(names) > 1)} {what}; first {names[0]}")


def _usable_images(found: Annotations, report: _Report) -> np.ndarray:
    """Which images exist and can be read, (images,) bool. Warns of the others."""
    can_read = (found.sizes > 0).all(1)
    missing, unreadable = np.flatnonzero(~found.exists), np.flatnonzero(found.exists & ~can_read)
    report.images([found.image_name(index) for index in missing.tolist()], "left out, because the file does not exist")
    report.images(
        [found.image_name(index) for index in unreadable.tolist()], "left out, because the file cannot be read"
    )
    report.images(found.extra, "left out, because no annotation names them")
    usable = found.exists & can_read
    if not usable.any():
        example = f", for example {found.image_name(0)}" if len(usable) else ""
        raise UsageError(
            f"no image of {report.where} was found{example}; put the images beside the annotations or into a folder "
            "'images'."
        )
    return usable


def _clip(found: Annotations, usable: np.ndarray, report: _Report) -> tuple[np.ndarray, np.ndarray]:
    """The boxes clipped to their images, (objects, 4), and which of them remain, (objects,) bool."""
    boxes, sizes = found.boxes, found.sizes[found.owners]
    limits = sizes[:, [1, 0, 1, 0]]
    keep = usable[found.owners]
    keep &= ~report.objects(keep & ~np.isfinite(boxes).all(1), "left out, because a number is NaN or infinite")
    clipped = np.clip(boxes, 0, limits)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(1)
    outside = has_area & ((boxes[:, 2:] <= 0) | (boxes[:, :2] >= limits[:, :2])).any(1)
    # In float32, as they are used: there a very narrow box has no width.
    narrow = clipped.astype(np.float32)
    has_area &= (narrow[:, 2:] > narrow[:, :2]).all(1)
    keep &= ~report.objects(keep & outside, "left out, because the box is outside the image")
    keep &= ~report.objects(keep & ~has_area, "left out, because the box has no area")
    report.objects(keep & (np.abs(clipped - boxes) > TOLERANCE).any(1), "whose box was clipped to the image")
    return clipped, keep


def _check_runs(runs: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Run lengths unchanged; an error if they are not in COCO's notation."""
    size: Any = runs.get("size")
    counts = runs.get("counts")
    is_size = isinstance(size, (list, tuple)) and len(size) == 2 and all(isinstance(side, int) for side in size)
    if not is_size or not isinstance(counts, (list, str, bytes)):
        raise UsageError(
            f"{place} has run lengths with the keys {sorted(runs)}; expected 'size', height and width in pixels, and "
            "'counts', a list or text."
        )
    if isinstance(counts, list) and sum(counts) != size[0] * size[1]:
        raise UsageError(f"{place} has run lengths of {sum(counts)} pixels; expected {size[0]} x {size[1]}, its size.")
    return dict(runs)


def _check_sizes(found: Annotations, store: SegmentStore, usable: np.ndarray) -> None:
    """Raises an error if run lengths are of another size than their image."""
    for index, runs in store.runs.items():
        owner = found.owners[index]
        size, expected = list(runs["size"]), found.sizes[owner].tolist()
        if usable[owner] and size != expected:
            raise UsageError(
                f"{found.place(index)} has run lengths for an image of {size[0]} x {size[1]} pixels (height x width), "
                f"but {found.image_name(int(owner))} has {expected[0]} x {expected[1]}; fix the one that is wrong."
            )


def _repeated(names: Sequence[str]) -> str:
    """The first of some names that is there twice."""
    return next(name for index, name in enumerate(names) if name in names[:index])


def split_of(name: str) -> str | None:
    """The split that the name of a folder or file stands for; None if it stands for none.

    Example:

        >>> split_of("valid"), split_of("instances_train2017"), split_of("contest")
        ('validation', 'train', None)
    """
    return next((_SPLIT_OF[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _SPLIT_OF), None)


def choose_split(splits: Collection[str], split: str, source: Path) -> str | None:
    """The wanted one of the splits of a folder.

    Args:
        splits: Names of the splits that it has. A folder without any counts as the split "train", as the one for
            evaluation, and as the one that it is called.
        split: Name of the split; "evaluation" for the first of `EVAL_SPLITS` that exists.
        source: The folder.

    Raises:
        UsageError: There is no such split.
    """
    if not splits and (split in ("train", "evaluation") or _SPLIT_OF.get(split, split) == split_of(source.name)):
        return None
    wanted = EVAL_SPLITS if split == "evaluation" else (split,)
    for name in wanted:
        if _SPLIT_OF.get(name, name) in splits:
            return _SPLIT_OF.get(name, name)
    has = f"the splits {sorted(splits)}" if splits else "no splits"
    raise UsageError(
        f"{str(source)!r} has {has}; expected {' or '.join(map(repr, wanted))}. Choose one of its splits with --split, "
        "or for a training with --train-split and --eval-split."
    )


def rows_of_files(files: Sequence[str | None], folder: Path) -> ImageDataset:
    """Image files as a data set without labels; a missing file becomes "".

    Raises:
        UsageError: The name of a file is no valid text.
    """
    for file in files:
        try:
            (file or "").encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"the name of {file!r} is no valid text (UTF-8); rename it.") from error
    columns = {"image": [file or "" for file in files]}
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features({"image": datasets.Image(decode=False)}))
    return ImageDataset(rows, "image", None, (), str(folder))


def upright_size(file: str | bytes) -> tuple[int, int]:
    """Height and width of an image in pixels, upright, from the header of its file or of its contents; (0, 0) if it
    cannot be read. An orientation behind the pixels of a PNG, which is rare, is not seen."""
    try:
        with Image.open(BytesIO(file) if isinstance(file, bytes) else file) as image:
            # The base class's method: the one for PNG reads all pixels.
            is_sideways = Image.Image.getexif(image).get(ExifTags.Base.Orientation) in _SIDEWAYS
            # The tags of a TIFF have the sides of the stored image; `size` is already that of the upright one.
            tags = getattr(image, "tag_v2", {})
            width, height = (int(tags.get(tag, side)) for tag, side in zip((256, 257), image.size, strict=True))
            return (width, height) if is_sideways else (height, width)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0, 0
