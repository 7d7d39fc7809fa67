"""Mean IoU, worked out by hand on three images."""

import numpy as np
import pytest
import torch

from swinv2.dense.scores import SegmentationScores
from swinv2.errors import UsageError

# A class that no label and no answer has; and one that only an answer has.
NAMES = ("road", "sky", "tree", "never", "imagined")
LABELS = [
    np.array([[0, 0, 1], [0, 255, 1]]),
    np.array([[1, 1], [1, 255]]),
    np.array([[2, 0], [2, 0], [2, 2]]),
]
ANSWERS = [
    np.array([[0, 1, 1], [0, 2, 1]]),
    np.array([[1, 1], [0, 0]]),
    np.array([[2, 0], [2, 4], [0, 2]]),
]


def test_three_images_by_hand() -> None:
    scores = SegmentationScores(NAMES)
    for labels, answers in zip(LABELS, ANSWERS, strict=True):
        scores.add(labels, answers)
    found = scores.summary()
    # road: 5 pixels, of which 3 are found, and 2 others are called road: 3 / (5 + 2). sky: 5, 4 found, 1 other: 4 / 6.
    # tree: 4, 3 found, none else (one called tree does not count): 3 / 4. imagined: 0 / 1.
    assert found["iou"] == {"road": 3 / 7, "sky": 4 / 6, "tree": 3 / 4, "never": None, "imagined": 0.0}
    assert found["recall"] == {"road": 3 / 5, "sky": 4 / 5, "tree": 3 / 4, "never": None, "imagined": None}
    assert found["mIoU"] == pytest.approx((3 / 7 + 4 / 6 + 3 / 4 + 0) / 4)
    assert found["mean_recall"] == pytest.approx((3 / 5 + 4 / 5 + 3 / 4) / 3)
    assert found["pixel_accuracy"] == 10 / 14
    assert found["images"] == 3
    assert scores.confusion.dtype == np.int64
    assert scores.confusion.sum() == 14


def test_values_that_are_no_class() -> None:
    scores = SegmentationScores(("a", "b"))
    with pytest.raises(UsageError, match=r"mask\.png have the value 7 in 2 pixels; expected 0 to 1, or 255"):
        scores.add(np.array([[0, 7, 7]]), np.array([[0, 0, 0]]), "mask.png")
    with pytest.raises(UsageError, match="the answers have the value 2"):
        scores.add(np.array([[0, 1]], np.uint8), np.array([[0, 2]], np.uint8))
    with pytest.raises(UsageError, match=r"are \(1, 2\), the answers \(2, 1\) pixels"):
        scores.add(torch.zeros(1, 2, dtype=torch.long), torch.zeros(2, 1, dtype=torch.uint8))
    with pytest.raises(UsageError, match="are float64, the answers uint8; expected integers"):
        scores.add(np.zeros((1, 2)), np.zeros((1, 2), np.uint8))
    assert scores.images == 0
    assert not scores.confusion.any()


def test_nothing_that_counts() -> None:
    scores = SegmentationScores(("a", "b"), ignore_index=0)
    scores.add(np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8))
    assert scores.summary()["mIoU"] is None
