"""Examples of segmenters and detectors: the same for the same seed, epoch and image, and in the form of each head."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scenes import CLASSES, write_masks, write_objects
from swinv2.errors import UsageError
from swinv2.train.data.examples import SampleIndex
from swinv2.train.dense.augment import for_masks, for_objects
from swinv2.train.dense.evaluate import open_to_evaluate
from swinv2.train.dense.examples import DenseExamples, MaskExample, Normalise, ObjectExample, collate_dense

MEAN = (0.5, 0.5, 0.5)
PLAIN = Normalise(MEAN, MEAN)


def of_masks(root: Path, as_queries: bool = False, seed: int = 0) -> DenseExamples:
    dataset: Any = open_to_evaluate("segmentation", str(root), "train", CLASSES)
    make = MaskExample(dataset, for_masks((32, 32), MEAN, (0.5, 2.0), 1.0, 0.5), PLAIN, as_queries)
    return DenseExamples(dataset, make, seed)


def of_objects(root: Path, head: str, size: tuple[int, int] | None = None) -> DenseExamples:
    dataset: Any = open_to_evaluate("instances", str(root), "train", CLASSES[1:])
    augment = for_objects(size, MEAN, flip=0.0)
    normalise = Normalise(None, None) if size is None else PLAIN
    return DenseExamples(dataset, ObjectExample(dataset, augment, normalise, head))


def test_an_example_depends_on_seed_epoch_and_index_only(tmp_path: Path) -> None:
    examples = of_masks(write_masks(tmp_path))
    torch.manual_seed(5)
    first = examples[SampleIndex(1, 3)]
    torch.manual_seed(6)
    again, other_epoch = examples[SampleIndex(1, 3)], examples[SampleIndex(2, 3)]
    other_seed = of_masks(tmp_path, seed=1)[SampleIndex(1, 3)]
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    assert torch.equal(first["labels"], again["labels"])
    assert not torch.equal(first["pixel_values"], other_epoch["pixel_values"])
    assert not torch.equal(first["pixel_values"], other_seed["pixel_values"])


def test_masks_for_each_head(tmp_path: Path) -> None:
    """UperNet takes a class for each pixel, Mask2Former a mask for each class that occurs."""
    write_masks(tmp_path)
    pixels = of_masks(tmp_path)[SampleIndex(0, 0)]
    queries = of_masks(tmp_path, as_queries=True)[SampleIndex(0, 0)]
    labels = pixels["labels"]
    assert labels.shape == (32, 32)
    assert labels.dtype == torch.int64
    present = sorted(set(labels.unique().tolist()) - {255})
    assert queries["class_labels"].tolist() == present
    for label, mask in zip(present, queries["mask_labels"], strict=True):
        assert torch.equal(mask, (labels == label).float())


def test_objects_for_each_head(tmp_path: Path) -> None:
    write_objects(tmp_path)
    stored = of_objects(tmp_path, "faster_rcnn").dataset[0].objects  # type: ignore[union-attr]
    boxes = torch.from_numpy(stored.boxes)
    rcnn = of_objects(tmp_path, "mask_rcnn")[SampleIndex(0, 0)]
    assert rcnn["pixel_values"].shape == (3, 48, 64)
    assert 0.0 <= float(rcnn["pixel_values"].min()) <= float(rcnn["pixel_values"].max()) <= 1.0
    assert torch.equal(rcnn["labels"]["boxes"], boxes)
    assert rcnn["labels"]["labels"].tolist() == (stored.labels + 1).tolist()
    for mask, (left, top, right, bottom) in zip(rcnn["labels"]["masks"], boxes.int().tolist(), strict=True):
        assert int(mask.sum()) == (right - left) * (bottom - top) == int(mask[top:bottom, left:right].sum())
    assert "masks" not in of_objects(tmp_path, "faster_rcnn")[SampleIndex(0, 0)]["labels"]

    detr = of_objects(tmp_path, "rt_detr", (96, 96))[SampleIndex(0, 0)]
    assert detr["pixel_values"].shape == (3, 96, 96)
    left, top, right, bottom = boxes[0].tolist()
    expected = [(left + right) / 128, (top + bottom) / 96, (right - left) / 64, (bottom - top) / 48]
    assert detr["labels"]["boxes"][0].tolist() == pytest.approx(expected, abs=1e-5)
    assert detr["labels"]["class_labels"].tolist() == stored.labels.tolist()

    queries = of_objects(tmp_path, "mask2former", (48, 64))[SampleIndex(0, 0)]
    assert torch.equal(queries["mask_labels"], rcnn["labels"]["masks"].float())


def test_the_next_image_replaces_one_that_cannot_be_read(tmp_path: Path) -> None:
    examples = of_masks(write_masks(tmp_path))
    name = Path(examples.dataset[2].name)
    name.write_bytes(b"no image")
    found = examples[SampleIndex(0, 2)]
    assert len(found["broken"]) == 1
    assert found["broken"][0].startswith(str(name))
    assert torch.equal(found["labels"], examples[SampleIndex(0, 3)]["labels"])
    for index in range(len(examples)):
        Path(examples.dataset[index].name).write_bytes(b"no image")
    with pytest.raises(UsageError, match="12 images in a row cannot be read"):
        examples[SampleIndex(0, 0)]


def test_batches_are_stacked_if_they_have_one_shape(tmp_path: Path) -> None:
    write_objects(tmp_path)
    of_sizes = of_objects(tmp_path, "faster_rcnn")
    batch = collate_dense([of_sizes[SampleIndex(0, index)] for index in range(2)])
    assert [tuple(image.shape) for image in batch["pixel_values"]] == [(3, 48, 64), (3, 60, 50)]
    assert isinstance(batch["labels"], list)
    of_one = of_objects(tmp_path, "rt_detr", (64, 64))
    batch = collate_dense([of_one[SampleIndex(0, index)] | {"broken": ["a"]} for index in range(2)])
    assert batch["pixel_values"].shape == (2, 3, 64, 64)
    assert batch["broken"] == ["a", "a"]


def test_normalisation() -> None:
    image = torch.full((3, 2, 2), 255, dtype=torch.uint8)
    assert torch.equal(PLAIN(image), torch.ones(3, 2, 2))
    assert np.allclose(Normalise(None, None)(image), 1.0)
