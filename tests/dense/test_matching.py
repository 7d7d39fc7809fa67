"""Which detection finds which object, worked out by hand."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from swinv2.dense.matching import RANGES, Regions, checked, match, outside_ranges
from swinv2.errors import UsageError


def matched(
    ious: list[list[float]], crowd: list[bool] | None = None, ignored: list[bool] | None = None, area: float = 50.0**2
) -> tuple[list[int], list[int]]:
    """For each detection, with how many of the ten thresholds it is right, and with how many it does not count; among
    objects and detections of all areas."""
    overlaps = np.array(ious)
    detections, objects = overlaps.shape
    crowds = np.array(crowd or [False] * objects)
    left_out = np.repeat(np.array([ignored or crowds.tolist()]), len(RANGES), 0)
    hits, unimportant = match(overlaps, crowds, left_out, outside_ranges(np.full(detections, area)))
    return hits[:, 0].sum(1).tolist(), unimportant[:, 0].sum(1).tolist()


def test_the_highest_score_takes_an_object_first() -> None:
    # 0.5 to 0.7 are five of the thresholds, 0.75 to 0.9 four more: where the first one is not enough.
    assert matched([[0.72], [0.92]]) == ([5, 4], [0, 0])


def test_a_detection_takes_the_object_with_the_highest_overlap_and_the_last_of_equals() -> None:
    # Thresholds 0.5 and 0.55: the first one takes the second object, the next one the other. Up to 0.8: only the first.
    assert matched([[0.56, 0.81], [0.57, 0.9]]) == ([7, 4], [0, 0])
    assert matched([[0.6, 0.6], [0.1, 0.6]]) == ([3, 0], [0, 0])


def test_a_crowd_is_always_free_and_takes_only_what_finds_no_other() -> None:
    # The overlap with the crowd is higher, but the object comes first.
    assert matched([[0.9, 0.6], [0.9, 0.1], [0.9, 0.1]], crowd=[True, False]) == ([3, 0, 0], [6, 9, 9])


def test_areas_outside_of_a_range_do_not_count_unless_the_object_is_found() -> None:
    outside = outside_ranges(np.array([50.0**2, 20.0**2]))
    hits, unimportant = match(np.array([[0.99], [0.2]]), np.array([False]), np.zeros((4, 1), bool), outside)
    assert list(RANGES) == ["all", "small", "medium", "large"]
    assert hits.sum(2).tolist() == [[10, 10, 10, 10], [0, 0, 0, 0]]
    assert unimportant.sum(2).tolist() == [[0, 0, 0, 0], [0, 0, 10, 10]]


def test_both_ranges_have_an_area_between_them() -> None:
    found = outside_ranges(np.array([1.0, 32.0**2, 96.0**2, 1e11]))
    assert found.tolist() == [
        [False, False, False, True],
        [False, False, True, True],
        [True, False, False, True],
        [True, True, False, True],
    ]


@dataclass
class Found:
    boxes: Any
    labels: Any
    scores: Any = ()


def test_what_is_compared_has_the_shapes_of_arrays() -> None:
    boxes, labels, scores = checked(Found([], []), ("scores",), 2, "it")
    assert (boxes.shape, labels.shape, scores.shape) == ((0, 4), (0,), (0,))
    with pytest.raises(UsageError, match=r"7\.jpg have 1 boxes and scores \(0,\); expected one for each box"):
        checked(Found([[0, 0, 1, 1]], [0]), ("scores",), 2, "7.jpg")


def test_regions_are_boxes_with_sizes_or_masks() -> None:
    boxes = np.array([[1.0, 2, 4, 6], [0, 0, 5, 5]])
    square = {"size": [6, 6], "counts": [0, 36]}
    assert Regions(boxes, None, False, (6, 6), "it").take(np.array([1, 0])).tolist() == [[0, 0, 5, 5], [1, 2, 3, 4]]
    (found,) = Regions(boxes, [square, square], True, (6, 6), "it").take(np.array([1]))
    assert found["size"] == [6, 6]
    with pytest.raises(UsageError, match="it have 2 boxes and 1 masks; expected a mask for each box"):
        Regions(boxes, [square, None], True, (6, 6), "it")
