"""Runs a detector over image files, batch by batch, and writes what it finds.

In: paths. Out, for each path, in order: the objects, or a `BrokenImage`; an image with their boxes and masks
(`NAME_objects.png`), if a folder is given. This module prints nothing; `coco.py` writes results for COCO.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from swinv2.dense.average_precision import Detections
from swinv2.dense.masks import decode_mask
from swinv2.disk import unique_name, whole_file
from swinv2.drawing.overlays import Drawn, draw_objects
from swinv2.images import BrokenImage, read_or_skip
from swinv2.reading import read_batches

Detect = Callable[[Sequence[np.ndarray]], list[Detections]]
"""Finds the objects of images (height, width, 3), such as `dense.answers.Detector`."""


@dataclass(frozen=True)
class Detected:
    """What was found in an image.

    Attributes:
        size: Width and height of the image.
        found: The objects, the highest score first.
        files: The files that were written.
    """

    size: tuple[int, int]
    found: Detections
    files: list[Path]


class _Pixels:
    """For each file, the pixels (height, width, 3), eight bits, or a `BrokenImage`."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray | BrokenImage:
        image = read_or_skip(self.paths[index])
        return image if isinstance(image, BrokenImage) else np.array(image)


def detect_files(
    detector: Detect,
    names: Sequence[str],
    paths: Sequence[Path],
    threshold: float = 0.5,
    batch_size: int = 4,
    output: Path | None = None,
) -> Iterator[tuple[Path, Detected | BrokenImage]]:
    """Finds the objects in images.

    Args:
        detector: See `Detect`.
        names: Names of its classes.
        paths: The files.
        threshold: Objects of a lower score are left out.
        batch_size: Largest number of images that the detector gets at once.
        output: The folder to draw into; None to draw nothing. Of images with the same name, from the second one on the
            name gets a number: `dog_objects.png`, `dog-2_objects.png`.

    Returns:
        For each file, in order, what was found, or the reason why the file was skipped.
    """
    taken: set[str] = set()
    following = iter(paths)
    for batch in read_batches(_Pixels(paths), batch_size):
        valid = [item for item in batch if not isinstance(item, BrokenImage)]
        answers = iter(detector(valid) if valid else [])
        for item in batch:
            path = next(following)
            if isinstance(item, BrokenImage):
                yield path, item
                continue
            found, files = above(next(answers), threshold), list[Path]()
            if output is not None:
                files.append(output / f"{unique_name(path, taken)}_objects.png")
                _draw(item, found, names, files[0])
            yield path, Detected((item.shape[1], item.shape[0]), found, files)


def above(found: Detections, threshold: float) -> Detections:
    """The objects whose score is at least `threshold`, the highest score first."""
    scores = np.asarray(found.scores)
    order = np.argsort(-scores, kind="stable")
    rows = order[scores[order] >= threshold]
    masks = None if found.masks is None else [found.masks[row] for row in rows.tolist()]
    return Detections(np.asarray(found.boxes)[rows], np.asarray(found.labels)[rows], scores[rows], masks)


def as_records(found: Detections, names: Sequence[str]) -> list[dict[str, Any]]:
    """The objects as plain values, for JSON.

    Returns:
        For each object its "label" and "index" (from 0), "score" (six digits), "box": left, top, right and bottom in
        hundredths of pixels, and "mask", COCO's compressed RLE, if there are masks.
    """
    boxes, labels, scores = (np.asarray(values, float) for values in (found.boxes, found.labels, found.scores))
    records: list[dict[str, Any]] = [
        {"label": names[int(index)], "index": int(index), "score": round(score, 6),
         "box": [round(edge, 2) for edge in box]}
        for index, score, box in zip(labels.tolist(), scores.tolist(), boxes.tolist(), strict=True)
    ]  # fmt: skip
    if found.masks is not None:
        for record, mask in zip(records, found.masks, strict=True):
            record["mask"] = mask
    return records


def draw_found(pixels: np.ndarray, found: Detections, names: Sequence[str]) -> Image.Image:
    """Draws the objects of an image (height, width, 3), those with the highest scores last."""
    masks = [None] * len(found.scores) if found.masks is None else found.masks
    size = pixels.shape[0], pixels.shape[1]
    objects = (
        Drawn(
            f"{record['label']} {record['score']:.0%}",
            record["index"],
            record["box"],
            None if mask is None else decode_mask(mask, size),
        )
        for record, mask in reversed(list(zip(as_records(found, names), masks, strict=True)))
    )
    return draw_objects(pixels, objects)


def _draw(pixels: np.ndarray, found: Detections, names: Sequence[str], file: Path) -> None:
    """Draws the objects of an image, and writes a PNG file, atomically."""
    drawn = draw_found(pixels, found, names)
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as partial:
        drawn.save(partial, "PNG")
