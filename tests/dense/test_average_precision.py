"""Average precision equals pycocotools' own, on random images and on cases worked out by hand."""

import contextlib
import errno
import io
import json
import os
import pickle
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from swinv2.dense.average_precision import RECALLS, Detections, DetectionScores, detections_as_coco
from swinv2.dense.masks import encode_masks
from swinv2.disk import WriteError
from swinv2.errors import UsageError

SIZE = (150, 200)
# The last one has no object.
NAMES = ("cat", "dog", "bird", "crowded", "imagined")
IDS = (3, 7, 8, 20, 90)
# The names of our numbers, in COCO's order.
TWELVE = "AP AP50 AP75 AP_small AP_medium AP_large AR1 AR10 AR100 AR_small AR_medium AR_large".split()  # noqa: SIM905


@dataclass
class Objects:
    """The objects of an image; see `Truth`."""

    boxes: Any
    labels: Any
    crowd: Any
    areas: Any
    segments: list[Any] | None = None


Case = tuple[Objects, Detections]


def ellipse(box: np.ndarray) -> np.ndarray:
    """The pixels of the ellipse in a box."""
    left, top, right, bottom = box
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    half_width, half_height = max(right - left, 1) / 2, max(bottom - top, 1) / 2
    inside = ((x - (left + right) / 2) / half_width) ** 2 + ((y - (top + bottom) / 2) / half_height) ** 2 <= 1
    assert inside.dtype == bool
    return inside


def segment_of(box: np.ndarray, notation: int) -> Any:
    """A mask in one of COCO's three notations."""
    left, top, right, bottom = map(float, box)
    if notation == 0:
        middle = (left + right) / 2
        whole = [left, top, middle, top, middle, bottom, left, bottom]
        return [whole, [middle, top, right, (top + bottom) / 2, middle, bottom]]
    (encoded,) = encode_masks(ellipse(box)[None])
    if notation == 1:
        return encoded
    # The lengths of runs, column by column, beginning with pixels outside of the mask.
    pixels = ellipse(box).T.ravel().astype(int)
    ends = np.flatnonzero(np.diff(pixels)) + 1
    counts = np.diff(ends, prepend=0, append=pixels.size).tolist()
    return {"size": list(SIZE), "counts": [0, *counts] if pixels[0] else counts}


def random_boxes(random: np.random.Generator, count: int) -> np.ndarray:
    """Boxes from 2 to 140 pixels wide, some of them on whole pixels."""
    sides = np.exp(random.uniform(np.log(2), np.log(140), (count, 2)))
    corners = random.uniform(0, 1, (count, 2)) * (np.array([SIZE[1], SIZE[0]]) - sides)
    boxes = np.concatenate([corners, corners + sides], axis=1)
    return np.where(random.random((count, 1)) < 0.3, boxes.round(), boxes)


def moved(random: np.random.Generator, boxes: np.ndarray) -> np.ndarray:
    """Boxes near others: a few equal, most with an IoU over 0.5."""
    sides = boxes[:, 2:] - boxes[:, :2]
    shift = random.normal(0, 0.08, boxes.shape) * np.concatenate([sides, sides], axis=1)
    shift[random.random(len(boxes)) < 0.1] = 0
    near = np.clip(boxes + shift, 0, [SIZE[1], SIZE[0], SIZE[1], SIZE[0]])
    return np.concatenate([near[:, :2], np.maximum(near[:, 2:], near[:, :2])], axis=1)


def random_case(random: np.random.Generator, number: int) -> Case:
    """An image with up to 12 objects and the detections of a middling detector."""
    count = 0 if number % 7 == 0 else int(random.integers(1, 13))
    boxes, labels = random_boxes(random, count), random.choice(3, count)
    crowd = random.random(count) < 0.15
    # All objects of this class are crowds: none counts.
    labels[crowd & (random.random(count) < 0.5)] = 3
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) * random.uniform(0.4, 1, count)
    # Both ranges have the objects between them.
    areas = np.where(random.random(count) < 0.1, random.choice([32**2, 96**2], count), areas)
    if count > 3:
        # An equal object of another size: the last one that counts is found.
        boxes[1], labels[1], crowd[1], areas[1] = boxes[0], labels[0], crowd[0], 50_000
    segments = [segment_of(box, int(random.integers(3))) for box in boxes]
    times = 0 if number % 5 == 4 else int(random.integers(1, 4))
    found = np.concatenate([*(moved(random, boxes) for _ in range(times)), random_boxes(random, 6 * bool(times))])
    answers = np.concatenate([*(labels for _ in range(times)), random.choice(len(NAMES), 6 * bool(times))]).astype(int)
    if number == 1:
        # More than 100 of a class.
        found, answers = np.tile(found, (140 // len(found) + 1, 1)), np.tile(answers, 140 // len(answers) + 1)
        found, answers[:130] = moved(random, found), 0
    wrong = random.random(len(answers)) < 0.1
    answers = np.where(wrong, random.choice(len(NAMES), len(answers)), answers)
    scores = random.random(len(found)).round(1 + number % 2)
    masks = encode_masks(np.stack([ellipse(box) for box in found])) if len(found) else []
    return Objects(boxes, labels, crowd, areas, segments), Detections(found, answers, scores, masks)


@cache
def random_cases(seed: int = 0, count: int = 30) -> tuple[Case, ...]:
    random = np.random.default_rng(seed)
    return tuple(random_case(random, number) for number in range(count))


def evaluate_with_coco(cases: Sequence[Case], masks: bool) -> COCOeval:
    """pycocotools' results, from annotations and a file of results."""
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number, (truth, answers) in enumerate(cases):
        for row, (left, top, right, bottom) in enumerate(truth.boxes.tolist()):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 + number,
                    "category_id": IDS[truth.labels[row]],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": float(truth.areas[row]),
                    "iscrowd": int(truth.crowd[row]),
                }
            )
            if truth.segments is not None:
                annotations[-1]["segmentation"] = truth.segments[row]
        results += detections_as_coco(100 + number, answers if masks else replace(answers, masks=None), IDS)
    images = [{"id": 100 + number, "height": SIZE[0], "width": SIZE[1]} for number in range(len(cases))]
    categories = [{"id": key, "name": name} for key, name in zip(IDS, NAMES, strict=True)]
    with contextlib.redirect_stdout(io.StringIO()):
        truths: Any = COCO()
        truths.dataset = {"images": images, "annotations": annotations, "categories": categories}
        truths.createIndex()
        evaluation = COCOeval(truths, truths.loadRes(json.loads(json.dumps(results))), "segm" if masks else "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def scores_of(cases: Sequence[Case], masks: bool = False, indices: Sequence[int] | None = None) -> DetectionScores:
    """Our scores; without `indices`, the images have no numbers."""
    scores = DetectionScores(NAMES, masks)
    for place, (truth, answers) in enumerate(cases):
        scores.add(truth, answers, SIZE, None if indices is None else indices[place])
    return scores


def as_coco(value: float | None) -> float:
    return -1 if value is None else value


@pytest.mark.parametrize("masks", [False, True], ids=["bbox", "segm"])
@pytest.mark.parametrize("seed", [0, 1])
def test_all_numbers_are_those_of_pycocotools(seed: int, masks: bool) -> None:
    cases = random_cases(seed)
    expected, found = evaluate_with_coco(cases, masks), scores_of(cases, masks).summary()
    # The cases have what the rules are about.
    assert all(0.02 < value < 0.9 for value in expected.stats)
    assert [as_coco(found[name]) for name in TWELVE] == pytest.approx(expected.stats.tolist(), abs=1e-12)
    for number, name in enumerate(NAMES):
        precision = expected.eval["precision"][:, :, number, 0, 2]
        assert as_coco(found["ap"][name]) == pytest.approx(precision.mean(), abs=1e-12)
        assert as_coco(found["ap50"][name]) == pytest.approx(precision[0].mean(), abs=1e-12)
    assert found["ap"]["imagined"] is None
    assert found["ap"]["crowded"] is None
    count = sum(int((~truth.crowd).sum()) for truth, _ in cases)
    assert found["images"] == len(cases)
    assert found["objects"] == count == sum(found["objects_by_class"].values())
    json.dumps(found)


@pytest.mark.parametrize("masks", [False, True], ids=["bbox", "segm"])
def test_curves_are_those_of_pycocotools(masks: bool) -> None:
    cases = random_cases()
    expected = evaluate_with_coco(cases, masks).eval["precision"]
    scores = scores_of(cases, masks)
    for iou, place in ((0.5, 0), (0.75, 5), (0.95, 9)):
        recalls, curves = scores.precision_recall(iou)
        assert recalls.tolist() == RECALLS.tolist()
        assert list(curves) == ["cat", "dog", "bird"]
        for number, name in enumerate(curves):
            np.testing.assert_allclose(curves[name], expected[place, :, number, 0, 2], atol=1e-12)
    with pytest.raises(UsageError, match=r"is 0\.42; expected 0\.5, 0\.55"):
        scores.precision_recall(0.42)


def test_the_random_cases_have_what_the_rules_are_about() -> None:
    cases = random_cases()
    per_class = [np.bincount(answers.labels, minlength=len(NAMES)).max() for _, answers in cases]
    assert max(per_class) > 100
    assert any(len(truth.boxes) and not len(answers.boxes) for truth, answers in cases)
    assert any(len(answers.boxes) and not len(truth.boxes) for truth, answers in cases)
    assert sum(truth.crowd.sum() for truth, _ in cases) > 10
    assert any(len(np.unique(answers.scores)) < len(answers.scores) for _, answers in cases)
    segments = [each for truth, _ in cases for each in truth.segments or ()]
    assert {type(each) if isinstance(each, list) else type(each["counts"]) for each in segments} == {list, str}


def single(boxes: list[list[float]], scores: list[float] | None = None, crowd: Sequence[bool] = ()) -> Any:
    """Objects, or with scores detections, of one class."""
    corners = np.array(boxes, float).reshape(-1, 4)
    labels = np.zeros(len(boxes), int)
    if scores is not None:
        return Detections(corners, labels, np.array(scores))
    areas = (corners[:, 2:] - corners[:, :2]).prod(1)
    return Objects(corners, labels, np.array(crowd or [False] * len(boxes), bool), areas)


def test_two_images_by_hand() -> None:
    scores = DetectionScores(("cat",))
    # An object of 100 x 100 pixels; 62 of its 100 columns are found; then a detection far away.
    first = single([[0, 0, 100, 100]])
    scores.add(first, single([[0, 0, 62, 100], [120, 0, 150, 100]], [0.9, 0.8]), SIZE)
    # Two objects of 10 x 10 pixels, of which one is found exactly; another detection is in a crowd of 50 x 50.
    second = single([[0, 0, 10, 10], [20, 0, 30, 10], [100, 100, 150, 150]], crowd=(False, False, True))
    scores.add(second, single([[0, 0, 10, 10], [110, 110, 130, 130]], [0.7, 0.95]), SIZE)
    found = scores.summary()
    # With an IoU of 0.5, 0.55 and 0.6: right, wrong, right, of 3 objects. The precision is 1 up to a recall of 1/3 (34
    # of the 101 recalls), 2/3 up to 2/3 (33), then 0. With an IoU over 0.62: wrong, wrong, right: 1/3 up to 1/3.
    loose, strict = (34 + 33 * 2 / 3) / 101, 34 / 3 / 101
    assert found["AP50"] == pytest.approx(loose)
    assert found["AP75"] == pytest.approx(strict)
    assert found["AP"] == pytest.approx((3 * loose + 7 * strict) / 10)
    # Each image's first detection: of the second image, the one in the crowd.
    assert found["AR1"] == pytest.approx((3 * 1 / 3 + 0) / 10)
    assert found["AR100"] == pytest.approx((3 * 2 / 3 + 7 * 1 / 3) / 10)
    # Small: one of the two objects, and no detection is wrong: 51 of the recalls are up to 1/2.
    assert found["AP_small"] == pytest.approx(51 / 101)
    # Medium: no object. Large: 62 x 100 pixels are not large, but if the object is found, the detection counts.
    assert found["AP_medium"] is None
    assert found["AR_medium"] is None
    assert found["AP_large"] == pytest.approx(3 / 10)
    assert found["objects_by_class"] == {"cat": 3}
    recalls, curves = scores.precision_recall()
    expected = np.select([recalls <= 1 / 3, recalls <= 2 / 3], [1, 2 / 3], 0)
    np.testing.assert_allclose(curves["cat"], expected)


def test_of_two_objects_with_an_equal_overlap_the_last_one_is_found() -> None:
    # The first detection overlaps both objects by 70 of 130 pixels; the second one is the second object.
    case = single([[0, 0, 10, 10], [6, 0, 16, 10]]), single([[3, 0, 13, 10], [6, 0, 16, 10]], [0.9, 0.8])
    found = scores_of([case]).summary()
    # With an IoU of 0.5: right, wrong; otherwise: wrong, right. Of 2 objects, so up to a recall of 1/2.
    assert found["AP50"] == pytest.approx(51 / 101)
    assert found["AP"] == pytest.approx((51 / 101 + 9 * 51 / 101 / 2) / 10)
    assert found["AP"] == pytest.approx(evaluate_with_coco([case], masks=False).stats[0], abs=1e-12)


def test_of_equal_scores_the_image_with_the_lowest_number_comes_first() -> None:
    right, wrong = single([[0, 0, 10, 10]], [0.5]), single([[20, 20, 30, 30]], [0.5])
    truth = single([[0, 0, 10, 10]])
    assert scores_of([(truth, right), (truth, wrong)]).summary()["AP50"] == pytest.approx(51 / 101)
    assert scores_of([(truth, wrong), (truth, right)]).summary()["AP50"] == pytest.approx(51 / 101 / 2)
    numbered = scores_of([(truth, wrong), (truth, right)], indices=(1, 0))
    assert numbered.summary()["AP50"] == pytest.approx(51 / 101)


@pytest.mark.parametrize("masks", [False, True], ids=["bbox", "segm"])
def test_processes_that_share_the_images_get_the_results_of_one(masks: bool) -> None:
    cases = random_cases()
    whole = scores_of(cases, masks).summary()
    states = []
    for first in range(3):
        mine = list(range(first, len(cases), 3))[::-1]
        states.append(pickle.loads(pickle.dumps(scores_of([cases[index] for index in mine], masks, mine).state())))
    joined = DetectionScores.join(states[::-1])
    assert joined.summary() == whole
    assert DetectionScores.join([joined.state()]).summary() == whole
    with pytest.raises(UsageError, match="the scores to join differ in their classes"):
        DetectionScores.join([joined.state(), DetectionScores(NAMES, not masks).state()])


def test_the_results_of_many_detections_are_grouped_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = scores_of(random_cases())
    whole = scores.summary()
    monkeypatch.setattr("swinv2.dense.average_precision._CHUNK", 7)
    assert scores.detections.sum() > 70
    assert scores.summary() == whole


def test_tensors_in_any_order_of_memory_have_the_same_results() -> None:
    cases = random_cases()
    plain = scores_of(cases).summary()
    tensors: list[Case] = []
    for truth, answers in cases:
        columns = torch.tensor(answers.boxes).T.contiguous().T
        crowd = torch.tensor(truth.crowd, dtype=torch.uint8)
        objects = Objects(np.asfortranarray(truth.boxes), torch.tensor(truth.labels), crowd, torch.tensor(truth.areas))
        tensors.append((objects, Detections(columns, torch.tensor(answers.labels), torch.tensor(answers.scores))))
    assert scores_of(tensors).summary() == plain


def test_the_memory_does_not_grow_with_the_images() -> None:
    cases = random_cases()[2:12]
    scores = DetectionScores(NAMES)

    def add(count: int) -> int:
        tracemalloc.reset_peak()
        for number in range(count):
            scores.add(*cases[number % len(cases)], SIZE)
        return tracemalloc.get_traced_memory()[1]

    tracemalloc.start()
    try:
        add(20)
        held = tracemalloc.get_traced_memory()[0]
        few = add(50)
        many = add(2000)
        assert many < few * 1.1
        assert tracemalloc.get_traced_memory()[0] < held + 2000
    finally:
        tracemalloc.stop()
    stored = sum(len(answers.boxes) for _, answers in cases)
    assert scores.detections.sum() == stored * 207
    assert len(scores.state()["detections"]) == 31 * stored * 207


def test_the_temporary_file_is_closed_with_the_scores() -> None:
    scores = DetectionScores(NAMES)
    file = scores._file
    assert not file.closed
    del scores
    assert file.closed


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_an_error_that_says_what_to_do() -> None:
    scores, (truth, answers) = DetectionScores(NAMES), random_cases()[2]
    with open("/dev/full", "w+b", buffering=0) as full:
        scores._file = full
        with pytest.raises(WriteError, match=rf"\({os.strerror(errno.ENOSPC)}\); free space there, .* TMPDIR"):
            scores.add(truth, answers, SIZE)
    assert scores.images == 0
    assert not scores.objects.any()


def test_no_image_and_nothing_found_have_no_numbers_or_zero() -> None:
    scores = DetectionScores(("cat", "dog"))
    found = scores.summary()
    assert [found[name] for name in TWELVE] == [None] * 12
    assert scores.precision_recall()[1] == {}
    scores.add(single([[0, 0, 50, 50]]), single([], []), SIZE)
    found = scores.summary()
    assert found["AP"] == found["AR100"] == found["AP_medium"] == 0
    assert found["ap"] == {"cat": 0, "dog": None}
    assert found["AP_small"] is None
    # Boxes, labels and scores may be empty lists.
    scores.add(Objects([], [], [], []), Detections([], [], []), SIZE)
    assert scores.images == 2


OBJECT = Objects(np.array([[0, 0, 9, 9.0]]), np.array([0]), np.array([False]), np.array([81.0]))
ANSWER = Detections(np.array([[0, 0, 9, 9.0]]), np.array([0]), np.array([0.5]))
FLAT = [[0, 0, 9, 0, 9, 9]]


@pytest.mark.parametrize(
    ("truth", "answers", "message"),
    [
        ({"boxes": np.zeros((1, 5))}, {}, r"7\.jpg: the objects have boxes \(1, 5\); expected \(objects, 4\)"),
        ({"boxes": np.array([[5, 5, 2, 2.0]])}, {}, r"the objects have the box \[5.0, 5.0, 2.0, 2.0\]; expected left"),
        ({"labels": np.array([0, 1])}, {}, r"the objects have 1 boxes and labels \(2,\); expected one for each box"),
        ({"labels": np.array([2])}, {}, "the objects have the label 2; expected 0 to 1"),
        ({"areas": np.array([np.nan])}, {}, "the objects have areas that are NaN or infinite"),
        ({"crowd": np.zeros((1, 1))}, {}, r"the objects have 1 boxes and crowd \(1, 1\)"),
        ({}, {"boxes": np.zeros(4)}, r"7\.jpg: the detections have boxes \(4,\)"),
        ({}, {"labels": np.array([-1])}, "the detections have the label -1; expected 0 to 1"),
        ({}, {"labels": np.array([0.0])}, "the detections have labels of float64; expected integers"),
        ({}, {"scores": np.array([[0.5]])}, r"the detections have 1 boxes and scores \(1, 1\)"),
        ({}, {"scores": np.array([np.inf])}, "the detections have scores that are NaN or infinite"),
        ({}, {"boxes": np.array([[0, 0, np.nan, 1]])}, "the detections have boxes that are NaN or infinite"),
    ],
)
def test_an_image_with_wrong_values_is_named_and_not_counted(
    truth: dict[str, Any], answers: dict[str, Any], message: str
) -> None:
    scores = DetectionScores(("cat", "dog"))
    with pytest.raises(UsageError, match=message):
        scores.add(replace(OBJECT, **truth), replace(ANSWER, **answers), SIZE, source="7.jpg")
    assert scores.images == 0
    assert not scores.objects.any()


@pytest.mark.parametrize(
    ("segments", "masks", "message"),
    [
        (None, [FLAT], r"7\.jpg: the objects have 1 boxes and no masks; expected a mask for each box"),
        ([None], [FLAT], "the objects have 1 boxes and no masks"),
        ([FLAT], None, r"7\.jpg: the detections have 1 boxes and no masks"),
        ([FLAT], [FLAT, FLAT], "the detections have 1 boxes and 2 masks"),
        ([[[0, 0, 9, 9]]], [FLAT], r"the objects, mask 0, is neither RLE nor polygons .* of at least 3 points"),
        ([{"size": [9, 9], "counts": [81]}], [FLAT], r"mask 0, has the size \(9, 9\); expected \(150, 200\)"),
        ([FLAT], [{"size": SIZE, "counts": [7]}], "the detections, mask 0, has other counts than the 30000 pixels"),
    ],
)
def test_masks_that_are_missing_or_wrong_are_named(segments: Any, masks: Any, message: str) -> None:
    scores = DetectionScores(("cat", "dog"), masks=True)
    with pytest.raises(UsageError, match=message):
        scores.add(replace(OBJECT, segments=segments), replace(ANSWER, masks=masks), SIZE, source="7.jpg")
    assert scores.images == 0


def test_two_classes_of_one_name_are_an_error() -> None:
    with pytest.raises(UsageError, match="several classes have the name cat"):
        DetectionScores(("cat", "dog", "cat"))


def test_detections_become_results_by_hand() -> None:
    answers = Detections(np.array([[1, 2, 11.5, 4]], np.float32), np.array([1]), np.array([0.25], np.float32))
    expected = {"image_id": 42, "category_id": 7, "score": 0.25}
    assert detections_as_coco(42, answers, IDS) == [{**expected, "bbox": [1.0, 2.0, 10.5, 2.0]}]
    masks = encode_masks(torch.ones(1, *SIZE, dtype=torch.bool))
    (found,) = detections_as_coco(42, replace(answers, masks=masks), IDS)
    assert found == {**expected, "segmentation": masks[0]}
    assert json.loads(json.dumps(found)) == found
    with pytest.raises(UsageError, match="image 42: the detections have the label 1; expected 0 to 0"):
        detections_as_coco(42, answers, IDS[:1])
