"""The scores of a detector: COCO's average precision, of boxes or of masks.

In: for each image, its objects and the detections. Out: the twelve numbers of pycocotools' COCOeval, average precision
of each class, and curves; and detections as COCO's results. This module knows no files and no model.

The memory does not depend on the number of images: each image is matched when it is added, and a detection becomes 31
bytes of a temporary file, in the folder that TMPDIR names. Only `summary` and `precision_recall` need more: they read
one class at a time, with about 200 bytes for each detection of that class.

Source: pycocotools, cocoeval.py. One rule differs: there, an object whose annotation has the id 0 is never found.
"""

import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

from swinv2.dense.masks import load_pycocotools
from swinv2.dense.matching import IOUS, RANGES, Regions, Truth, checked, match, outside_ranges, with_sizes
from swinv2.disk import WriteError
from swinv2.errors import UsageError, few
from swinv2.lengths import Pair

RECALLS = np.linspace(0, 1, 101)
"""Recalls at which precision is read."""

MOST = 100
"""Detections of each class and image that count: those with the highest scores."""

_RECORD = np.dtype(
    [("label", "<u4"), ("index", "<i8"), ("rank", "u1"), ("score", "<f8"), ("hit", "u1", 5), ("ignored", "u1", 5)]
)
# Detections that are read at once.
_CHUNK = 65536


@dataclass
class Detections:
    """What a detector finds in an image; arrays, or tensors on the CPU.

    Attributes:
        boxes: Left, top, right and bottom (detections, 4), in pixels.
        labels: The class of each detection (detections,), from 0.
        scores: The score of each detection (detections,).
        masks: The mask of each detection, see `masks.encode_masks`; None if there are no masks.
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
        tools, count = load_pycocotools(), len(self.names)
        true_boxes, true_labels, crowd, areas = checked(truth, ("crowd", "areas"), count, f"{source}: the objects")
        boxes, labels, scores = checked(answers, ("scores",), count, f"{source}: the detections")
        of_objects = Regions(true_boxes, truth.segments, self.masks, size, f"{source}: the objects")
        of_answers = Regions(boxes, answers.masks, self.masks, size, f"{source}: the detections")
        crowd = crowd.astype(bool)
        # (range, object)
        ignored = outside_ranges(areas) | crowd
        records: list[np.ndarray] = []
        for label in np.unique(labels):
            mine, theirs = np.flatnonzero(labels == label), np.flatnonzero(true_labels == label)
            mine = mine[np.argsort(-scores[mine], kind="stable")[:MOST]]
            found, ious = of_answers.take(mine), np.zeros((len(mine), 0))
            if len(theirs):
                ious = np.asarray(tools.iou(found, of_objects.take(theirs), crowd[theirs].tolist()))
            outside = outside_ranges(tools.area(found) if self.masks else found[:, 2] * found[:, 3])
            states = match(ious, crowd[theirs], ignored[:, theirs], outside)
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
    boxes, labels, scores = checked(detections, ("scores",), len(category_ids), source)
    if detections.masks is None:
        key, places = "bbox", with_sizes(boxes).tolist()
    else:
        key, places = "segmentation", detections.masks
    return [
        {"image_id": image_id, "category_id": category_ids[label], "score": score, key: place}
        for label, score, place in zip(labels.tolist(), scores.tolist(), places, strict=True)
    ]


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
