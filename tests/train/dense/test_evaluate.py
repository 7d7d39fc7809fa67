"""Scores of saved segmenters and detectors: right ones, whoever reads the data, and each problem has a sentence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scenes import CLASSES, SMALL_HEADS, write_checkpoint, write_masks, write_objects
from swinv2.dense import Detections, DetectionScores, SegmentationScores, from_backbone
from swinv2.dense.saved import make_dense_processor
from swinv2.errors import UsageError
from swinv2.train.dense.evaluate import evaluate_dense, evaluate_images, open_to_evaluate

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a segmenter and a detector that have learned nothing."""
    root = tmp_path_factory.mktemp("dense")
    write_masks(root / "masks")
    write_objects(root / "objects")
    checkpoint = write_checkpoint(root / "checkpoint")
    for head, names in (("upernet", CLASSES), ("faster_rcnn", CLASSES[1:])):
        torch.manual_seed(0)
        model: Any = from_backbone(checkpoint, head, list(names), **SMALL_HEADS[head])
        model.save_pretrained(root / head)
        processor = make_dense_processor(model, (64, 64), [0.5] * 3, [0.5] * 3)
        if processor is not None:
            processor.save_pretrained(root / head)
    return root


class Oracle:
    """Answers with the truth, shifted by some pixels to the right."""

    def __init__(self, names: tuple[str, ...], shift: int) -> None:
        self.names, self.shift, self.has_masks = names, shift, False


def test_scores_of_known_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right answers have 1; boxes of 16 x 16 and 8 x 24 pixels, shifted by 3, overlap by 13 / 19 and 21 / 27."""
    from swinv2.train.dense import evaluate

    for shift, ap, ap50 in ((0, 1.0, 1.0), (3, (4 / 10 + 6 / 10) / 2, 1.0), (12, 0.0, 0.0)):
        dataset: Any = open_to_evaluate("detection", str(folder / "objects"), "train", CLASSES[1:])
        truths = iter([sample.objects for sample in dataset])

        def answers(answer: Any, images: list[Any], truths: Any = truths, shift: int = shift) -> Any:
            for objects in [next(truths) for _ in images]:
                boxes = objects.boxes + np.array([shift, 0, shift, 0], np.float32)
                yield Detections(boxes, objects.labels, np.ones(len(boxes)))

        monkeypatch.setattr(evaluate, "_answers", answers)
        scores, unreadable = evaluate_images(Oracle(CLASSES[1:], shift), dataset, workers=0)  # type: ignore[arg-type]
        assert unreadable == []
        assert isinstance(scores, DetectionScores)
        assert scores.summary()["AP"] == pytest.approx(ap)
        assert scores.summary()["AP50"] == pytest.approx(ap50)


def test_shares_of_the_images_join_to_all(folder: Path) -> None:
    """As the processes of a training evaluate."""
    for kind, task in (("upernet", "segmentation"), ("faster_rcnn", "detection")):
        data = str(folder / ("masks" if task == "segmentation" else "objects"))
        whole, dataset, _, _ = evaluate_dense(str(folder / kind), data, device="cpu", workers=0)
        from swinv2.dense import Detector, Segmenter

        answer: Any = (Segmenter if task == "segmentation" else Detector).load(str(folder / kind))
        parts = [evaluate_images(answer, dataset, chosen=range(rank, len(dataset), 2), workers=0)[0] for rank in (0, 1)]
        joined = type(parts[0]).join([part.state() for part in parts])
        assert joined.summary() == whole.summary()


def test_a_file_that_cannot_be_read_does_not_count(folder: Path, tmp_path: Path) -> None:
    data = write_masks(tmp_path)
    (data / "images/validation/002.png").write_bytes(b"no image")
    scores, dataset, unreadable, _ = evaluate_dense(str(folder / "upernet"), str(data), device="cpu", workers=0)
    assert isinstance(scores, SegmentationScores)
    assert (scores.images, len(dataset)) == (5, 6)
    assert len(unreadable) == 1
    assert "002.png" in unreadable[0]


def test_windows_and_scales_reach_the_segmenter(folder: Path) -> None:
    whole, windows, scales = (
        evaluate_dense(str(folder / "upernet"), str(folder / "masks"), device="cpu", workers=0, **options)[0].summary()
        for options in ({}, {"window": 32, "stride": 16}, {"scales": (0.5, 1.0), "flip": True})
    )
    assert len({json.dumps(each["iou"]) for each in (whole, windows, scales)}) == 3


def test_other_windows_extrapolate_or_stretch_the_bias(folder: Path) -> None:
    """Sizes and windows of the training change nothing; larger windows do, and in another way if the bias is
    stretched."""
    own, same, larger, stretched = (
        evaluate_dense(str(folder / "upernet"), str(folder / "masks"), device="cpu", workers=0, **options)[0].state()
        for options in (
            {},
            {"image_size": 64, "window_size": 4},
            {"image_size": 128, "window_size": 8},
            {"image_size": 128, "window_size": 8, "stretch_bias": True},
        )
    )
    assert np.array_equal(own["confusion"], same["confusion"])
    assert not np.array_equal(own["confusion"], larger["confusion"])
    assert not np.array_equal(stretched["confusion"], larger["confusion"])


def test_what_does_not_fit_has_a_sentence(folder: Path, tmp_path: Path) -> None:
    masks, objects = str(folder / "masks"), str(folder / "objects")
    with pytest.raises(UsageError, match="is no segmenter or detector with a Swin V2 backbone"):
        evaluate_dense(str(folder / "checkpoint"), masks)
    with pytest.raises(UsageError, match="is a detector; window are for segmenters"):
        evaluate_dense(str(folder / "faster_rcnn"), objects, window=32)
    other = write_masks(tmp_path)
    (other / "classes.txt").write_text("floor\nsquare\ntree\n")
    with pytest.raises(UsageError, match="lacks the classes 'bar' and the model lacks the classes 'tree'"):
        evaluate_dense(str(folder / "upernet"), str(other))
    (other / "classes.txt").write_text("floor\nsquare\nbar\n")
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(other / "masks/validation/000.png")
    with pytest.raises(UsageError, match=r"000\.png has 7 x 5 pixels, its image .*000\.png has 64 x 48"):
        evaluate_dense(str(folder / "upernet"), str(other), device="cpu", workers=0)


def test_an_annotation_of_another_size_is_named(folder: Path, tmp_path: Path) -> None:
    data = write_objects(tmp_path)
    file = data / "validation/_annotations.coco.json"
    found = json.loads(file.read_text())
    found["images"][1]["height"] = 100
    file.write_text(json.dumps(found))
    with pytest.raises(UsageError, match=r"001\.png has 50 x 60 pixels .*, its annotations are for 50 x 100"):
        evaluate_dense(str(folder / "faster_rcnn"), str(data), device="cpu", workers=0)
