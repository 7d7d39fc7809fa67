"""Several labels for an image: the loss of a training, and the scores of its evaluation.

In: logits, and for each image 0 or 1 for every class. Out: a loss; scores by class and over all classes. A class is
predicted if its probability, the sigmoid of its logit, is above one half. This module knows no model and no data.
"""

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor
from transformers import EvalPrediction

from swinv2.train.data.examples import IGNORED_LABEL


def binary_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Binary cross entropy in fp32, the mean over classes and images.

    Args:
        logits: Scores (B, classes).
        labels: 0 or 1, or a mixture, for each class (B, classes); a row of `IGNORED_LABEL` does not count.
        smoothing: Label smoothing: this share of each label is replaced by one half.
    """
    counted = labels[:, 0] != IGNORED_LABEL
    targets = labels.float() * (1.0 - smoothing) + 0.5 * smoothing
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none").mean(1)
    return losses.where(counted, 0.0).sum() / counted.sum().clamp_min(1)


@dataclass(frozen=True)
class Scores:
    """How well the labels of images are found.

    Attributes:
        average_precisions: Average precision of each class (classes,); NaN for a class that no image has.
        recalls: Share of the images of each class for which it is predicted (classes,); NaN likewise.
        mean_average_precision: mAP, the mean over the classes that an image has.
        f1: Micro F1, over all labels of all images: harmonic mean of precision and recall.
        exact: Share of the images whose predicted labels are exactly the true ones.
    """

    average_precisions: np.ndarray
    recalls: np.ndarray
    mean_average_precision: float
    f1: float
    exact: float


def score(logits: np.ndarray, labels: np.ndarray) -> Scores:
    """Scores the logits (images, classes) of images; `labels` are 0 or 1 for each class (images, classes)."""
    truth, predicted = labels > 0.5, logits > 0.0
    precisions = np.array([average_precision(*columns) for columns in zip(logits.T, truth.T, strict=True)])
    hits, counts = (truth & predicted).sum(0), truth.sum(0)
    return Scores(
        average_precisions=precisions,
        recalls=hits / np.where(counts, counts, np.nan),
        mean_average_precision=float(np.nanmean(precisions)) if counts.any() else 0.0,
        f1=float(2 * hits.sum() / max(counts.sum() + predicted.sum(), 1)),
        exact=float((truth == predicted).all(1).mean()),
    )


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


def multilabel_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Metrics of a fine-tuning: mAP, micro F1, exact matches, and the numbers of readable and unreadable images."""
    logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    counted = labels[:, 0] != IGNORED_LABEL
    found = score(logits[counted], labels[counted])
    return {
        "mAP": found.mean_average_precision,
        "f1": found.f1,
        "exact": found.exact,
        "images": int(counted.sum()),
        "unreadable": int((~counted).sum()),
    }
