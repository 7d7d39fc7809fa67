"""Several labels for an image: the loss of a training, and the scores of its evaluation.

In: logits, and for each image 0 or 1 for every class. Out: a loss; scores by class and over all classes. A class is
predicted if its probability, the sigmoid of its logit, is above one half. This module knows no model and no data.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.examples import IGNORED_LABEL
from swinv2.train.drawing.precisions import draw_average_precisions


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy in fp32, the mean over classes and images.

    Args:
        logits: Scores (B, classes).
        labels: 0 or 1, or a mixture, for each class (B, classes); a row of `IGNORED_LABEL` does not count.
    """
    counted = labels[:, 0] != IGNORED_LABEL
    losses = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none").mean(1)
    return losses.where(counted, 0.0).sum() / counted.sum().clamp_min(1)


def mix_several(mix: Any, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mixes images and their labels (B, classes) by timm's Mixup `mix`, which by itself mixes one label of each."""
    # The image takes the part of the class: the mixed labels are the shares (B, B) of all images in each mixed one.
    mix.num_classes = len(labels)
    images, shares = mix(images, torch.arange(len(labels), device=labels.device))
    return images, shares @ labels


@dataclass(frozen=True)
class MultilabelEvaluation:
    """The results of an evaluation. A class that no image has counts in none of the means; its own numbers are NaN."""

    mean_average_precision: float
    """mAP: the mean over the classes."""
    f1: float
    """Micro F1, over all labels of all images: the harmonic mean of precision and recall."""
    exact: float
    """Share of the images whose predicted labels are exactly the true ones."""
    loss: float | None
    """Mean binary cross entropy, if it is known."""
    images: int
    """Number of readable images."""
    unreadable: list[str]
    """Names of unreadable images, each with the reason."""
    names: tuple[str, ...]
    average_precisions: np.ndarray
    """Average precision of each class (classes,)."""
    recalls: np.ndarray
    """Share of the images of each class for which it is predicted (classes,)."""
    images_by_class: np.ndarray
    """Number of readable images of each class (classes,)."""

    @classmethod
    def of(
        cls, truths: np.ndarray, logits: np.ndarray, loss: float | None, names: tuple[str, ...], unreadable: list[str]
    ) -> Self:
        """Counts answers.

        Args:
            truths: 0 or 1 for each class (images, classes); a row of `IGNORED_LABEL` does not count. At least one row
                counts.
            logits: Scores (images, classes).
            loss: Mean binary cross entropy, if it is known.
            names: Names of the classes.
            unreadable: Names of unreadable images.
        """
        counted = truths[:, 0] != IGNORED_LABEL
        truth, logits = truths[counted] > 0.5, logits[counted]
        predicted, counts = logits > 0.0, truth.sum(0)
        precisions = np.array([average_precision(*columns) for columns in zip(logits.T, truth.T, strict=True)])
        hits = (truth & predicted).sum(0)
        return cls(
            mean_average_precision=float(np.nanmean(precisions)) if counts.any() else 0.0,
            f1=float(2 * hits.sum() / max(counts.sum() + predicted.sum(), 1)),
            exact=float((truth == predicted).all(1).mean()),
            loss=loss,
            images=len(truth),
            unreadable=unreadable,
            names=names,
            average_precisions=precisions,
            recalls=hits / np.where(counts, counts, np.nan),
            images_by_class=counts,
        )

    @property
    def metrics(self) -> dict[str, float]:
        """What the log of a training has: the scores of all classes and the number of readable images."""
        return {"mAP": self.mean_average_precision, "f1": self.f1, "exact": self.exact, "images": self.images}

    def summary(self) -> dict[str, Any]:
        """The results as plain values, for JSON; the numbers of a class that no image has are None."""
        return {
            "mAP": self.mean_average_precision,
            "f1": self.f1,
            "exact": self.exact,
            "loss": self.loss,
            "images": self.images,
            "unreadable": self.unreadable,
            "average_precision": self._by_name(self.average_precisions),
            "recall": self._by_name(self.recalls),
            "images_by_class": dict(zip(self.names, self.images_by_class.tolist(), strict=True)),
        }

    def mistakes(self, dataset: ImageDataset) -> list[dict[str, Any]]:
        """None: an image has a right or wrong answer for each class."""
        return []

    def _by_name(self, numbers: np.ndarray) -> dict[str, float | None]:
        """A number of each class, for JSON."""
        values = (None if np.isnan(number) else float(number) for number in numbers)
        return dict(zip(self.names, values, strict=True))

    def draw(self, dataset: ImageDataset, folder: Path) -> list[Path]:
        """Draws the average precision of each class, if an image has any; returns the file. There is no confusion
        matrix: no class is mistaken for one other."""
        if np.isnan(self.average_precisions).all():
            return []
        file = folder / "average-precision.png"
        draw_average_precisions(self.average_precisions, self.names, file)
        return [file]


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Average precision of one class: the mean, over the images that have the class, of the precision among all images
    that score at least as high. NaN if no image has the class.

    Args:
        scores: One score for each image.
        truth: Whether the image has the class.

    Example:

        >>> import numpy as np
        >>> average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]))  # the mean of 1/1 and 2/3
        0.8333333333333333
    """
    order = np.argsort(-scores, kind="stable")
    scores, truth = scores[order], truth[order]
    # Images of equal scores are counted together.
    at_least = np.searchsorted(-scores, -scores, side="right")
    precisions = np.cumsum(truth)[at_least - 1] / at_least
    return float(precisions[truth].mean()) if truth.any() else float("nan")
