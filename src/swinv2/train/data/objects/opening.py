"""Opens data sets of images with boxes and masks, and cleans them.

In: a source whose format is recognised: COCO's JSON (`coco.py`), YOLO's text files (`yolo.py`), VOC's XML (`voc.py`),
or rows of `datasets` with a column "objects" (`rows.py`). Out: an `ObjectDataset`. All formats are cleaned here, and
what is left out or changed is named in a warning, once for each kind. What leaves no doubt that the files are wrong is
an error. It parses no file.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from swinv2.errors import UsageError
from swinv2.train.data.objects import coco, rows, voc, yolo
from swinv2.train.data.objects.annotations import Annotations, SegmentStore
from swinv2.train.data.objects.dataset import ObjectDataset, check_names

logger = logging.getLogger(__name__)

TOLERANCE = 0.05
"""A box may leave its image by so many pixels before a warning names it: files have rounded numbers. It is clipped."""

FORMATS = """expected one of
  COCO: a JSON file beside its images, in folders of splits, or in 'annotations'
  YOLO: a data.yaml, or folders 'images' and 'labels'
  VOC: XML files in 'Annotations' with 'JPEGImages', or beside their images
  datasets: a metadata.jsonl or parquet files with a column 'objects'"""

_READERS = {"COCO": coco, "YOLO": yolo, "VOC": voc, "datasets": rows}


def open_objects(source: str, split: str, *, names: Sequence[str] = (), needs_masks: bool = False) -> ObjectDataset:
    """Opens a split of a data set with boxes and possibly masks.

    Args:
        source: A folder whose format is recognised; see `coco.read`, `yolo.read`, `voc.read` and `rows.read`. Or a
            file of COCO (.json), YOLO (.yaml) or parquet; or the name of a data set on the hub.
        split: Name of the split; "evaluation" for the first of `EVAL_SPLITS` that exists.
        names: Names of the classes in their order: those of class numbers if the data has no names.
        needs_masks: Whether objects without a mask are left out, with a warning.

    Raises:
        UsageError: The source has no known format or several; there is no such split, no image or no object; or an
            annotation is broken. The message names the file and the annotation.
    """
    path = Path(source)
    if path.is_file():
        suffixes = {".json": "COCO", ".yaml": "YOLO", ".yml": "YOLO", ".parquet": "datasets"}
        if path.suffix.lower() not in suffixes:
            raise UsageError(f"{source!r} is a file of no known format; {FORMATS}.")
        chosen = suffixes[path.suffix.lower()]
    elif path.is_dir():
        signs = {name: reader.recognise(path) for name, reader in _READERS.items()}
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
    opened = clean(_READERS[chosen].read(source, split, names), needs_masks)
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
    check_names(found.names, found.source)
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
