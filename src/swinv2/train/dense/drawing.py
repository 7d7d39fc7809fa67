"""Figures of an evaluation: images with their truths and answers, and the scores of the classes.

In: images, truths and answers, one after another, and scores. Out: PNG files. A few images are stored, reduced.
"""

import heapq
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou

from swinv2.dense.average_precision import Detections, DetectionScores
from swinv2.dense.masks import decode_mask
from swinv2.dense.scores import SegmentationScores
from swinv2.drawing.overlays import Drawn, Entry, draw_classes, draw_objects
from swinv2.drawing.paper import open_figure, printable, save, tile_sheet
from swinv2.train.data.masks.dataset import IGNORED_PIXEL

MOST_IMAGES = 6
"""Largest number of images that are drawn: those of the worst answers."""

SIDE = 480
"""Longest side of a stored image in pixels."""

MOST_CLASSES, MOST_NAMES = 40, 12
"""Largest number of classes whose scores are drawn, and of names beside an image."""

SURE = 0.5
"""Detections with a lower score are not drawn."""


class Watched:
    """Stores the images with the worst answers.

    Args:
        names: Names of the classes.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._worst: list[Any] = []
        self._count = 0

    def note(self, name: str, pixels: np.ndarray, truth: Any, found: Any) -> None:
        """Stores an image if its answer is among the worst so far.

        Args:
            name: Name of the image.
            pixels: The image (height, width, 3), eight bits.
            truth, found: Classes of the pixels (height, width); or the objects, and `Detections`.
        """
        is_objects = isinstance(found, Detections)
        score = _share_found(truth, found) if is_objects else _share_right(truth, found)
        self._count += 1
        if len(self._worst) == MOST_IMAGES and -score <= self._worst[0][0]:
            return
        draw = _objects_over if is_objects else _classes_over
        pictures = [_reduced(draw(pixels, classes, self.names)) for classes in (truth, found)]
        push = heapq.heappush if len(self._worst) < MOST_IMAGES else heapq.heappushpop
        push(self._worst, (-score, -self._count, name, *pictures))

    def draw(self, scores: SegmentationScores | DetectionScores, folder: Path) -> list[Path]:
        """Draws `answers.png` and `classes.png`, for detectors also `precision.png`; returns the files."""
        files: list[Path] = []
        worst = sorted(self._worst, key=lambda each: (-each[0], -each[1]))
        if worst:
            tiles = [picture for each in worst for picture in each[3:]]
            captions = [text for each in worst for text in (Path(each[2]).name, f"{-each[0]:.0%} right")]
            files.append(folder / "answers.png")
            save(tile_sheet(tiles, captions, 2, ("truth", "answer")), files[-1])
        summary = scores.summary()
        title, numbers = ("IoU", summary["iou"]) if isinstance(scores, SegmentationScores) else ("AP", summary["ap"])
        mean = summary["mIoU"] if isinstance(scores, SegmentationScores) else summary["AP"]
        files.append(folder / "classes.png")
        _draw_numbers(numbers, f"{title} of the classes, mean {_percent(mean)}", files[-1])
        if isinstance(scores, DetectionScores):
            files.append(folder / "precision.png")
            _draw_curves(*scores.precision_recall(), files[-1])
        return files


def _reduced(picture: np.ndarray) -> np.ndarray:
    """A picture whose longer side has at most `SIDE` pixels."""
    image = Image.fromarray(picture)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _percent(value: float | None) -> str:
    """A share in percent; "none" if there is none."""
    return "none" if value is None else f"{value:.1%}"


def _share_right(truth: np.ndarray, found: np.ndarray) -> float:
    """The share of an image's labelled pixels that are right."""
    counted = truth != IGNORED_PIXEL
    return float((truth == found)[counted].mean()) if counted.any() else 1.0


def _share_found(truth: Any, found: Detections) -> float:
    """Objects that are found, as a share of the objects and of the wrong detections."""
    kept = np.asarray(found.scores) >= SURE
    boxes, labels = np.asarray(found.boxes)[kept], np.asarray(found.labels)[kept]
    objects = ~truth.crowd
    if not objects.any() and not kept.any():
        return 1.0
    overlaps: Tensor = box_iou(torch.from_numpy(truth.boxes[objects]).float(), torch.from_numpy(boxes).float())
    same = truth.labels[objects][:, None] == labels[None]
    hits = ((overlaps.numpy() >= 0.5) & same).any(1).sum() if len(labels) else 0
    return float(hits / max(int(objects.sum()) + int(kept.sum()) - int(hits), 1))


def _classes_over(pixels: np.ndarray, classes: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """An image with the classes of its pixels."""
    step = max(-(-max(classes.shape) // SIDE), 1)
    pixels, classes = pixels[::step, ::step], classes[::step, ::step]
    counts = np.bincount(classes.ravel(), minlength=256)
    present: list[int] = [index for index in np.argsort(-counts).tolist() if counts[index] and index < len(names)]
    legend = [Entry(index, names[index], float(counts[index]) / classes.size) for index in present[:MOST_NAMES]]
    return np.asarray(draw_classes(pixels, classes, legend))


def _objects_over(pixels: np.ndarray, objects: Any, names: Sequence[str]) -> np.ndarray:
    """An image with its objects, or with what is found in it."""
    is_found = isinstance(objects, Detections)
    scores = np.asarray(objects.scores) if is_found else np.ones(len(objects.labels))
    segments = (objects.masks if is_found else objects.segments) or [None] * len(scores)
    size = pixels.shape[0], pixels.shape[1]
    drawn = [
        Drawn(
            f"{names[int(label)]} {score:.0%}" if is_found else names[int(label)],
            int(label),
            np.asarray(box).tolist(),
            None if segment is None else decode_mask(segment, size),
        )
        for box, label, score, segment in zip(objects.boxes, objects.labels, scores, segments, strict=True)
        if score >= SURE
    ]
    return np.asarray(draw_objects(np.ascontiguousarray(pixels), drawn))


def _draw_numbers(numbers: dict[str, float | None], title: str, path: Path) -> None:
    """Draws the number of each class as a bar, the largest first; of many classes the smallest."""
    known = sorted(((value, name) for name, value in numbers.items() if value is not None), key=lambda pair: pair[0])
    shown = known[:MOST_CLASSES]
    figure = open_figure(6.0, 0.9 + 0.26 * len(shown))
    axes: Any = figure.subplots()
    bars = axes.barh([printable(name, 30) for _, name in shown], [value for value, _ in shown], color="#4477aa")
    axes.bar_label(bars, [f"{value:.1%}" for value, _ in shown], padding=3, fontsize=8)
    axes.set_xlim(0, 1.12)
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    save(figure, path)


def _draw_curves(recalls: np.ndarray, curves: dict[str, np.ndarray], path: Path) -> None:
    """Draws precision over recall of each class, at an intersection over union of one half."""
    figure = open_figure(6.0, 4.2)
    axes: Any = figure.subplots()
    for name, precision in list(curves.items())[:10]:
        axes.plot(recalls, precision, label=f"{printable(name, 30)} {precision.mean():.1%}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title("precision over recall at IoU 0.5; with AP50", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    if curves:
        axes.legend(frameon=False, fontsize=8)
    save(figure, path)
