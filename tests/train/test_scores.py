"""Counts of answers add up, also of more classes than a matrix could have."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.examples import IGNORED_LABEL
from swinv2.train.drawing import confusion
from swinv2.train.scores import Evaluation


def test_counts() -> None:
    truths = np.array([0, 2, 2, IGNORED_LABEL, 0, 2])
    best = np.array([[0, 1], [2, 0], [0, 2], [0, 1], [1, 0], [2, 1]])
    found = Evaluation.of(truths, best, np.linspace(0.5, 1, 6), 0.1, ("a", "b", "c"), ["broken"])
    assert found.confusion.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 2]]
    assert (found.top1, found.images) == (0.6, 5)
    assert found.summary()["recall"] == {"a": 0.5, "b": None, "c": pytest.approx(2 / 3)}
    assert found.summary()["images_by_class"] == {"a": 2, "b": 0, "c": 3}
    assert [index for index, *_ in found.worst] == [4, 2]
    rows = Dataset.from_dict({"image": [{"bytes": b"", "path": f"{index}.png"} for index in range(6)]})
    assert found.mistakes(ImageDataset(rows, "image", None, (), "x")) == [
        {"image": "4.png", "label": "a", "answer": "b", "probability": 0.9},
        {"image": "2.png", "label": "c", "answer": "a", "probability": 0.7},
    ]


def test_the_classes_of_imagenet_22k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their confusion matrix would have 3.8 GB."""
    # Writing the file takes long if each allocation is noted.
    monkeypatch.setattr(confusion, "save", lambda *_, **__: None)
    names = tuple(f"class {index}" for index in range(21_841))
    truths = np.arange(len(names)).repeat(2)
    # Of the last 60 classes, one image of two is wrong.
    answers = np.where((truths >= len(names) - 60) & (np.arange(len(truths)) % 2 == 1), 0, truths)
    tracemalloc.start()
    found = Evaluation.of(truths, answers[:, None].repeat(5, 1), np.ones(len(truths)), None, names, [])
    recall = found.summary()["recall"]
    assert (recall["class 0"], recall["class 21840"]) == (1.0, 0.5)
    drawn = Evaluation(**(vars(found) | {"worst": []})).draw(ImageDataset([], "image", None, (), "x"), tmp_path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [file.name for file in drawn] == ["confusion.png"]
    assert most < 2**28
