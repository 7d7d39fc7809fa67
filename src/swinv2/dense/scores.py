"""The scores of a segmenter: mean intersection over union, by counting pixels.

In: for each image, the class of each pixel and the answers. Out: IoU and recall of each class and their means. Only a
matrix of counts is stored, so the memory does not depend on the number of images.

Source: mmsegmentation, evaluation/metrics/iou_metric.py. Areas are summed over all images before they are divided; the
mean of the images' own scores is another number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from swinv2.errors import UsageError


@dataclass
class SegmentationScores:
    """Counts pixels, image by image.

    Attributes:
        names: Names of the classes.
        ignore_index: Pixels with this label do not count.
        confusion: Number of pixels (class, answer), 64 bits.
        images: Number of images.
    """

    names: Sequence[str]
    ignore_index: int = 255
    confusion: np.ndarray = field(init=False)
    images: int = 0

    def __post_init__(self) -> None:
        self.confusion = np.zeros((len(self.names), len(self.names)), np.int64)

    def add(self, labels: Any, answers: Any, source: str = "the labels") -> None:
        """Counts the pixels of an image.

        Args:
            labels: The class of each pixel (height, width), or `ignore_index`; an array or a tensor on the CPU.
            answers: The answer for each pixel (height, width), a class; see `segment`.
            source: Name of the labels, for errors.

        Raises:
            UsageError: The sizes differ, or a value is no class.
        """
        labels, answers = np.asarray(labels), np.asarray(answers)
        if labels.dtype.kind not in "iu" or answers.dtype.kind not in "iu":
            raise UsageError(f"{source} are {labels.dtype}, the answers {answers.dtype}; expected integers.")
        if labels.shape != answers.shape:
            raise UsageError(f"{source} are {labels.shape}, the answers {answers.shape} pixels; compare equal sizes.")
        counted = labels != self.ignore_index
        count, true, found = len(self.names), labels[counted].astype(np.int64), answers[counted].astype(np.int64)
        for what, values in ((source, true), ("the answers", found)):
            wrong = values[(values < 0) | (values >= count)]
            if len(wrong):
                raise UsageError(
                    f"{what} have the value {wrong[0]} in {len(wrong):,} pixels; expected 0 to {count - 1}, or "
                    f"{self.ignore_index} for pixels that do not count."
                )
        self.confusion += np.bincount(true * count + found, minlength=count**2).reshape(count, count)
        self.images += 1

    def state(self) -> dict[str, Any]:
        """What other processes need of this one; see `join`."""
        return {
            "names": list(self.names), "ignore_index": self.ignore_index, "confusion": self.confusion,
            "images": self.images,
        }  # fmt: skip

    @classmethod
    def join(cls, states: Sequence[Mapping[str, Any]]) -> "SegmentationScores":
        """Joins the states of processes that have counted a share of the images each."""
        joined = cls(states[0]["names"], states[0]["ignore_index"])
        for state in states:
            joined.confusion += state["confusion"]
            joined.images += state["images"]
        return joined

    def summary(self) -> dict[str, Any]:
        """The results as plain values, for JSON. The IoU of a class that is neither in the labels nor in the answers is
        None, and so is the recall of a class that is not in the labels; they count in no mean."""
        right, true, found = self.confusion.diagonal(), self.confusion.sum(1), self.confusion.sum(0)
        union = true + found - right
        ious = [int(hit) / int(area) if area else None for hit, area in zip(right, union, strict=True)]
        recalls = [int(hit) / int(area) if area else None for hit, area in zip(right, true, strict=True)]
        return {
            "mIoU": _mean(ious),
            "mean_recall": _mean(recalls),
            "pixel_accuracy": int(right.sum()) / max(int(true.sum()), 1),
            "images": self.images,
            "iou": dict(zip(self.names, ious, strict=True)),
            "recall": dict(zip(self.names, recalls, strict=True)),
        }


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of the scores that exist."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
