"""The scores of a detector: COCO's average precision, of boxes or of masks.

In: for each image, its objects and the detections. Out: the twelve numbers of pycocotools' COCOeval, average precision
of each class, and curves; and masks in COCO's notations. This module knows no files and no model.

The memory does not depend on the number of images: each image is matched when it is added, and a detection becomes 31
bytes of a temporary file, in the folder that TMPDIR names. Only `summary` and `precision_recall` need more: they read
one class at a time, with about 200 bytes for each detection of that class.

Source: pycocotools, cocoeval.py. One rule differs: there, an object whose annotation has the id 0 is never found.
"""

import importlib
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

import numpy as np

from swinv2.disk import WriteError
from swinv2.errors import UsageError, few
from swinv2.lengths import Pair

RANGES = {"all": (0, 1e5**2), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e5**2)}
"""Smallest and largest area of an object that counts, in pixels."""

IOUS = np.linspace(0.5, 0.95, 10)
"""Intersection over union with which an object is found."""

RECALLS = np.linspace(0, 1, 101)
"""Recalls at which precision is read."""

MOST = 100
"""Detections of each class and image that count: those with the highest scores."""

_RECORD = np.dtype(
    [("label", "<u4"), ("index", "<i8"), ("rank", "u1"), ("score", "<f8"), ("hit", "u1", 5), ("ignored", "u1", 5)]
)
# Detections that are read at once.
_CHUNK = 65536


class Truth(Protocol):
    """The objects of an image; arrays, or tensors on the CPU.

    Attributes:
        boxes: Left, top, right and bottom (objects, 4), in pixels.
        labels: The class of each object (objects,), from 0.
        crowd: Whether a box or mask holds several objects (objects,). A crowd need not be found, and detections in it
            do not count.
        areas: The annotated area of each object (objects,), in pixels.
        segments: The mask of each object, see `decode_mask`; None if there are no masks. Only read if masks are
            compared.
    """

    @property
    def boxes(self) -> Any: ...
    @property
    def labels(self) -> Any: ...
    @property
    def crowd(self) -> Any: ...
    @property
    def areas(self) -> Any: ...
    @property
    def segments(self) -> Sequence[Any] | None: ...


@dataclass
class Detections:
    """What a detector finds in an image; arrays, or tensors on the CPU.

    Attributes:
        boxes: Left, top, right and bottom (detections, 4), in pixels.
        labels: The class of each detection (detections,), from 0.
        scores: The score of each detection (detections,).
        masks: The mask of each detection, see `encode_masks`; None if there are no masks.
    """

    boxes: Any
    labels: Any
    scores: Any
    masks: Sequence[Any] | None = None


@dataclass
class DetectionScores:
    """Compares objects and detections, image by image.

    Attributes:
        names: Names of the classes.
        masks: Whether masks are compared ("segm" in COCO) instead of boxes ("bbox").
        images: Number of images.
        objects: Number of objects (class, range of `RANGES`) without crowds, 64 bits.
        detections: Number of detections (class,) that are stored.
    """

    names: Sequence[str]
    masks: bool = False
    images: int = 0
    objects: np.ndarray = field(init=False)
    detections: np.ndarray = field(init=False)
    _file: IO[bytes] = field(init=False, repr=False, default_factory=tempfile.TemporaryFile)

    def __post_init__(self) -> None:
        weakref.finalize(self, self._file.close)
        twice = sorted({name for name in self.names if list(self.names).count(name) > 1})
        if twice:
            raise UsageError(f"several classes have the name {few(twice)}; give each class a name of its own.")
        self.objects = np.zeros((len(self.names), len(RANGES)), np.int64)
        self.detections = np.zeros(len(self.names), np.int64)

    def add(
        self, truth: Truth, answers: Detections, size: Pair, index: int | None = None, source: str = "the image"
    ) -> None:
        """Compares the objects and the detections of an image. Each image must be added once.

        Args:
            truth: The objects.
            answers: The detections, in any order. Of equal scores, the first one comes first.
            size: Height and width of the image, in pixels.
            index: Number of the image among all; in COCO, its place in the order of ids. Of equal scores, the one in
                the image with the lowest number comes first. None for the number of images so far. Give it if several
                processes share the images, or if they come in any order.
            source: Name of the image, for errors.

        Raises:
            UsageError: A shape is wrong, a value is no class, NaN or infinite, or masks are missing or wrong.
        """
        tools, count = _pycocotools(), len(self.names)
        true_boxes, true_labels, crowd, areas = _checked(truth, ("crowd", "areas"), count, f"{source}: the objects")
        boxes, labels, scores = _checked(answers, ("scores",), count, f"{source}: the detections")
        of_objects = _Regions(true_boxes, truth.segments, self.masks, size, f"{source}: the objects")
        of_answers = _Regions(boxes, answers.masks, self.masks, size, f"{source}: the detections")
        crowd = crowd.astype(bool)
        # (range, object)
        ignored = _outside(areas) | crowd
        records: list[np.ndarray] = []
        for label in np.unique(labels):
            mine, theirs = np.flatnonzero(labels == label), np.flatnonzero(true_labels == label)
            mine = mine[np.argsort(-scores[mine], kind="stable")[:MOST]]
            found, ious = of_answers.take(mine), np.zeros((len(mine), 0))
            if len(theirs):
                ious = np.asarray(tools.iou(found, of_objects.take(theirs), crowd[theirs].tolist()))
            outside = _outside(tools.area(found) if self.masks else found[:, 2] * found[:, 3])
            states = _match(ious, crowd[theirs], ignored[:, theirs], outside)
            records.append(_records(int(label), self.images if index is None else index, scores[mine], *states))
        self._write(records)
        np.add.at(self.objects, true_labels, ~ignored.T)
        self.images += 1

    def state(self) -> dict[str, Any]:
        """What other processes need of this one, as plain values that can be sent; see `join`. It has the contents of
        the temporary file."""
        self._file.seek(0)
        return {
            "names": list(self.names),
            "masks": self.masks,
            "images": self.images,
            "objects": self.objects.tolist(),
            "detections": self._file.read(),
        }

    @classmethod
    def join(cls, states: Sequence[Mapping[str, Any]]) -> "DetectionScores":
        """Joins the states of processes that have added a share of the images each, with their numbers (`index`). The
        result equals that of one process.

        Raises:
            UsageError: The states have other classes, or some compare masks and some boxes.
        """
        joined = cls(states[0]["names"], states[0]["masks"])
        for state in states:
            if (state["names"], state["masks"]) != (joined.names, joined.masks):
                raise UsageError(
                    "the scores to join differ in their classes or in masks; use the same in all processes."
                )
            joined._write([np.frombuffer(state["detections"], _RECORD)])
            joined.objects += np.asarray(state["objects"])
            joined.images += state["images"]
        return joined

    def summary(self) -> dict[str, Any]:
        """The results as plain values, for JSON.

        Returns:
            COCO's twelve numbers; "images" and "objects", their numbers; and for each class "ap", "ap50" and
            "objects_by_class". Crowds are not counted. A number is None where COCO has -1, if no object counts.
        """
        shape = len(self.names), len(RANGES), len(IOUS)
        precision, recall = np.full(shape, np.nan), np.full(shape, np.nan)
        recall_of_first = {most: np.full(shape[::2], np.nan) for most in (1, 10)}
        for label, records in enumerate(self._by_class()):
            hits, misses = _outcomes(records)
            for area, objects in enumerate(self.objects[label].tolist()):
                if objects:
                    recall[label, area] = hits[:, area].sum(0) / objects
                    columns = zip(hits[:, area].T, misses[:, area].T, strict=True)
                    precision[label, area] = [_curve(hit, miss, objects).mean() for hit, miss in columns]
            for most, values in recall_of_first.items():
                if self.objects[label, 0]:
                    values[label] = hits[records["rank"] < most, 0].sum(0) / self.objects[label, 0]
        results = {"AP": _mean(precision[:, 0]), "AP50": _mean(precision[:, 0, 0]), "AP75": _mean(precision[:, 0, 5])}
        sized = list(enumerate(RANGES))[1:]
        results |= {f"AP_{name}": _mean(precision[:, area]) for area, name in sized}
        results |= {f"AR{most}": _mean(values) for most, values in recall_of_first.items()}
        results |= {f"AR{MOST}": _mean(recall[:, 0])}
        results |= {f"AR_{name}": _mean(recall[:, area]) for area, name in sized}
        return {
            **results,
            "images": self.images,
            "objects": int(self.objects[:, 0].sum()),
            "ap": {name: _mean(values) for name, values in zip(self.names, precision[:, 0], strict=True)},
            "ap50": {name: _mean(values) for name, values in zip(self.names, precision[:, 0, 0], strict=True)},
            "objects_by_class": dict(zip(self.names, self.objects[:, 0].tolist(), strict=True)),
        }

    def precision_recall(self, iou: float = 0.5) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Curves of precision over recall, for objects of all areas.

        Args:
            iou: Intersection over union with which an object is found, one of `IOUS`.

        Returns:
            The recalls (101,), and for each class that has objects the precision (101,): the highest at that recall or
            a higher one, 0 where no recall is as high.

        Raises:
            UsageError: `iou` is none of `IOUS`.
        """
        chosen = np.flatnonzero(np.isclose(IOUS, iou))
        if not len(chosen):
            raise UsageError(f"the intersection over union is {iou}; expected 0.5, 0.55, ... or 0.95.")
        curves: dict[str, np.ndarray] = {}
        for name, objects, records in zip(self.names, self.objects[:, 0].tolist(), self._by_class(), strict=True):
            if objects:
                hits, misses = _outcomes(records)
                curves[name] = _curve(hits[:, 0, chosen[0]], misses[:, 0, chosen[0]], objects)
        return RECALLS.copy(), curves

    def _write(self, records: Sequence[np.ndarray]) -> None:
        """Appends detections to the temporary file."""
        try:
            self._file.seek(0, 2)
            for each in records:
                self._file.write(each.tobytes())
            self._file.flush()
        except OSError as error:
            raise WriteError(
                f"a temporary file in {tempfile.gettempdir()!r} could not be written ({error.strerror}); free space "
                "there, or name another folder in the environment variable TMPDIR."
            ) from error
        for each in records:
            self.detections += np.bincount(each["label"], minlength=len(self.names))

    def _by_class(self) -> Iterator[np.ndarray]:
        """The detections of each class, highest score first. They are grouped in another temporary file."""
        places = np.cumsum(self.detections) - self.detections
        with tempfile.TemporaryFile() as grouped:
            self._file.seek(0)
            while data := self._file.read(_CHUNK * _RECORD.itemsize):
                chunk = np.frombuffer(data, _RECORD)
                for label in np.unique(chunk["label"]):
                    group = chunk[chunk["label"] == label]
                    grouped.seek(int(places[label]) * _RECORD.itemsize)
                    grouped.write(group.tobytes())
                    places[label] += len(group)
            grouped.seek(0)
            for count in self.detections.tolist():
                records = np.frombuffer(grouped.read(count * _RECORD.itemsize), _RECORD)
                yield records[np.lexsort((records["rank"], records["index"], -records["score"]))]


def detections_as_coco(image_id: int, detections: Detections, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The detections of an image for a file of COCO results.

    Args:
        image_id: The image's id in the annotations.
        detections: The detections.
        category_ids: The id of each class in the annotations.

    Returns:
        A dictionary for each detection, with "segmentation" if it has a mask, or else "bbox": left, top, width and
        height in pixels. Not both: pycocotools would take the area of the box for that of the mask. Nothing is rounded.

    Raises:
        UsageError: A shape is wrong, or a value is no class, NaN or infinite.
    """
    source = f"image {image_id}: the detections"
    boxes, labels, scores = _checked(detections, ("scores",), len(category_ids), source)
    if detections.masks is None:
        key, places = "bbox", _with_sizes(boxes).tolist()
    else:
        key, places = "segmentation", detections.masks
    return [
        {"image_id": image_id, "category_id": category_ids[label], "score": score, key: place}
        for label, score, place in zip(labels.tolist(), scores.tolist(), places, strict=True)
    ]


def encode_masks(masks: Any) -> list[dict[str, Any]]:
    """Encodes masks for JSON.

    Args:
        masks: Booleans (masks, height, width); an array, or a tensor on the CPU.

    Returns:
        COCO's compressed RLE of each mask, with the counts as text.

    Raises:
        UsageError: The masks have another shape or type.
    """
    tools, pixels = _pycocotools(), np.asarray(masks)
    if pixels.ndim != 3 or pixels.dtype != bool:
        raise UsageError(f"the masks are {pixels.dtype} {pixels.shape}; expected booleans (masks, height, width).")
    encoded = [tools.encode(np.asfortranarray(mask, np.uint8)) for mask in pixels]
    return [{"size": list(map(int, each["size"])), "counts": each["counts"].decode()} for each in encoded]


def decode_mask(segment: Any, size: Pair, source: str = "the mask") -> np.ndarray:
    """A mask as booleans (height, width).

    Args:
        segment: COCO's polygons, a list of [x, y, x, y, ...] in pixels; or RLE, a dictionary with "size" and "counts",
            compressed (text) or not (a list).
        size: Height and width of the image, in pixels.
        source: Name of the mask, for errors.

    Raises:
        UsageError: It is none of these, or has another size.
    """
    tools, encoded = _pycocotools(), _as_rle(segment, size, source)
    with warnings.catch_warnings():
        # pycocotools makes the array in a way that numpy 2 will change.
        warnings.simplefilter("ignore", DeprecationWarning)
        return tools.decode(encoded).astype(bool)


@dataclass
class _Regions:
    """The boxes or masks of an image as pycocotools compares them."""

    boxes: np.ndarray
    segments: Sequence[Any] | None
    masks: bool
    size: Pair
    source: str

    def __post_init__(self) -> None:
        self.boxes = _with_sizes(self.boxes)
        given = sum(segment is not None for segment in self.segments or ())
        if self.masks and given != len(self.boxes):
            raise UsageError(
                f"{self.source} have {len(self.boxes)} boxes and {given or 'no'} masks; expected a mask for each box."
            )

    def take(self, rows: np.ndarray) -> Any:
        """Boxes (rows, 4) or a list of masks."""
        if not self.masks or self.segments is None:
            # pycocotools reads the memory row by row, whatever its order is.
            return np.ascontiguousarray(self.boxes[rows])
        return [_as_rle(self.segments[row], self.size, f"{self.source}, mask {row},") for row in rows.tolist()]


def _with_sizes(boxes: np.ndarray) -> np.ndarray:
    """Left, top, width and height of boxes (n, 4)."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _as_rle(segment: Any, size: Pair, source: str) -> dict[str, Any]:
    """Any of COCO's notations as compressed RLE."""
    tools, (height, width) = _pycocotools(), size
    if isinstance(segment, Mapping):
        counts, found = segment.get("counts"), tuple(segment.get("size") or ())
        if found != (height, width):
            raise UsageError(f"{source} has the size {found}; expected {(height, width)}, that of the image.")
        if isinstance(counts, str | bytes):
            return {"size": [height, width], "counts": counts}
        if not isinstance(counts, Sequence) or sum(counts) != height * width:
            raise UsageError(f"{source} has other counts than the {height * width} pixels of the image; expected RLE.")
        return tools.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width)
    polygons = list(segment) if isinstance(segment, Sequence) and not isinstance(segment, str) else []
    if not polygons or any(np.ndim(each) != 1 or len(each) < 6 or len(each) % 2 for each in polygons):
        raise UsageError(f"{source} is neither RLE nor polygons [[x, y, x, y, x, y, ...], ...] of at least 3 points.")
    return tools.merge(tools.frPyObjects([np.asarray(each, float).tolist() for each in polygons], height, width))


def _checked(objects: Any, others: Sequence[str], classes: int, source: str) -> tuple[np.ndarray, ...]:
    """The boxes (n, 4), the labels (n,) and other fields (n,) of objects. Raises an error unless they have these
    shapes, and values that can be compared."""
    boxes, labels = np.asarray(objects.boxes, float), np.asarray(objects.labels)
    if not boxes.size and not labels.size:
        boxes, labels = np.zeros((0, 4)), np.zeros(0, np.int64)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise UsageError(f"{source} have boxes {boxes.shape}; expected (objects, 4): left, top, right, bottom.")
    if labels.dtype.kind not in "iu":
        raise UsageError(f"{source} have labels of {labels.dtype}; expected integers.")
    values = {"labels": labels, **{name: np.asarray(getattr(objects, name), float) for name in others}}
    for name, each in values.items():
        if each.shape != (len(boxes),):
            raise UsageError(f"{source} have {len(boxes)} boxes and {name} {each.shape}; expected one for each box.")
    for name, each in {"boxes": boxes, **values}.items():
        if not np.isfinite(each).all():
            raise UsageError(f"{source} have {name} that are NaN or infinite; expected finite values.")
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise UsageError(f"{source} have the label {wrong[0]}; expected 0 to {classes - 1}.")
    wrong = boxes[(boxes[:, 2:] < boxes[:, :2]).any(1)]
    if len(wrong):
        raise UsageError(f"{source} have the box {wrong[0].tolist()}; expected left, top, right, bottom.")
    return boxes, *values.values()


def _outside(areas: np.ndarray) -> np.ndarray:
    """Whether each area is outside each range (range, area)."""
    return np.stack([(areas < low) | (areas > high) for low, high in RANGES.values()])


def _match(
    ious: np.ndarray, crowd: np.ndarray, ignored: np.ndarray, outside: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Matches detections and objects of a class, the highest score first. A detection gets the free object with the
    highest IoU, the last one of equals; an ignored object only if no other is free. A crowd is always free.

    Args:
        ious: Intersection over union (detection, object), sorted by score.
        crowd: Whether an object is a crowd (object,).
        ignored: Whether an object does not count (range, object).
        outside: Whether the area of a detection is outside of a range (range, detection).

    Returns:
        For each detection, range and threshold of `IOUS`: whether it finds an object that counts, and whether it does
        not count. A detection that is neither is wrong.
    """
    found = np.zeros((len(ious), len(RANGES), len(IOUS)), bool)
    unimportant = np.zeros_like(found)
    thresholds = np.minimum(IOUS, 1 - 1e-10)[:, None]
    free = np.ones((len(RANGES), len(IOUS), len(crowd)), bool)
    areas, limits = np.arange(len(RANGES))[:, None], np.arange(len(IOUS))
    for row in np.flatnonzero((ious >= IOUS[0]).any(1)):
        able = free & (ious[row] >= thresholds)
        counting = able & ~ignored[:, None]
        able = np.where(counting.any(2, keepdims=True), counting, able)
        best = len(crowd) - 1 - np.where(able, ious[row], -1)[..., ::-1].argmax(2)
        found[row] = able.any(2)
        unimportant[row] = found[row] & ignored[areas, best]
        free[areas, limits, best] &= ~found[row] | crowd[best]
    unimportant |= ~found & outside.T[:, :, None]
    return found & ~unimportant, unimportant


def _records(label: int, index: int, scores: np.ndarray, hit: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """The detections of a class in an image as they are stored, highest score first."""
    records = np.zeros(len(scores), _RECORD)
    records["label"], records["index"], records["rank"], records["score"] = label, index, range(len(scores)), scores
    for name, values in (("hit", hit), ("ignored", ignored)):
        records[name] = np.packbits(values.reshape(len(scores), -1), axis=1)
    return records


def _outcomes(records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which detections are right and which wrong (detection, range, threshold)."""
    shape = len(records), len(RANGES), len(IOUS)
    hit, ignored = (np.unpackbits(records[name], axis=1).astype(bool).reshape(shape) for name in ("hit", "ignored"))
    return hit, ~(hit | ignored)


def _curve(hits: np.ndarray, misses: np.ndarray, objects: int) -> np.ndarray:
    """The precision at each of `RECALLS`, from detections in the order of their scores."""
    right, wrong = np.cumsum(hits), np.cumsum(misses)
    precision = right / (wrong + right + np.spacing(1))
    # The highest precision from here on; 0 after the last detection.
    precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
    return precision[np.searchsorted(right / objects, RECALLS)]


def _mean(values: np.ndarray) -> float | None:
    """The mean of the values that exist."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else None


def _pycocotools() -> Any:
    """pycocotools' functions for masks and boxes. Raises an error if it is not installed."""
    try:
        return importlib.import_module("pycocotools.mask")
    except ImportError as error:
        raise UsageError("average precision needs pycocotools; install it by: pip install 'swinv2[dense]'.") from error
