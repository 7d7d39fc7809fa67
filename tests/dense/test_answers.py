"""Segmenters and detectors answer for every image that can be opened, at its size."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.v2.functional import resize

from scenes import SMALL_HEADS, write_checkpoint
from swinv2.dense import Detector, Segmenter, from_backbone
from swinv2.dense.masks import decode_mask
from swinv2.dense.saved import INSTANCES, load_dense, make_dense_processor
from swinv2.errors import UsageError

pytestmark = pytest.mark.usefixtures("registered")

HALF = [0.5] * 3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of each head."""
    root = tmp_path_factory.mktemp("models")
    checkpoint = write_checkpoint(root / "checkpoint")
    for head, fields in SMALL_HEADS.items():
        torch.manual_seed(0)
        model: Any = from_backbone(checkpoint, head, ["a", "b"], **fields)
        if head == "mask2former":
            model.config.dense_task = INSTANCES
        model.save_pretrained(root / head)
        processor = make_dense_processor(model, (64, 64), HALF, HALF)
        if processor is not None:
            processor.save_pretrained(root / head)
    return root


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "I;16"])
def test_images_of_every_mode(mode: str, models: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60), dtype=np.uint8)
    image = Image.fromarray(noise.astype(np.uint16)) if mode == "I;16" else Image.fromarray(noise).convert(mode)
    assert Segmenter.load(str(models / "upernet"))(image).shape == (40, 60)
    (found,) = Detector.load(str(models / "faster_rcnn"))([image])
    assert found.boxes.shape[1] == 4


def test_a_photograph_is_upright_however_it_is_given(models: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).save(tmp_path / "turned.png", exif=exif)
    segmenter, detector = Segmenter.load(str(models / "upernet")), Detector.load(str(models / "faster_rcnn"))
    opened = Image.open(tmp_path / "turned.png")
    answers = [segmenter(given) for given in (opened, tmp_path / "turned.png", np.rot90(noise, -1))]
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
    assert answers[0].shape == (60, 40)
    assert opened.size == (60, 40)
    assert detector([opened])[0].boxes.tolist() == detector([str(tmp_path / "turned.png")])[0].boxes.tolist()
    with pytest.raises(UsageError, match="a detector takes a list of images"):
        detector(opened)  # type: ignore[arg-type]


def test_arrays_of_another_shape_are_named(models: Path) -> None:
    for array in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))):
        with pytest.raises(UsageError, match=r"expected \(height, width, 3\) of uint8"):
            Segmenter.load(str(models / "upernet"))(array)


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_a_line_of_pixels_has_no_objects_and_stops_nothing(head: str, models: Path) -> None:
    images = [np.zeros((48, 64, 3), np.uint8), np.zeros((2000, 8, 3), np.uint8), np.zeros((64, 48, 3), np.uint8)]
    found = Detector.load(str(models / head))(images)
    assert len(found) == 3
    assert len(found[1].scores) == 0
    assert (found[1].masks is None) == (head == "faster_rcnn")


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn", "rt_detr"])
def test_detectors_compute_in_bf16(head: str, models: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    (found,) = Detector.load(str(models / head), dtype=torch.bfloat16)([image])
    assert np.asarray(found.boxes).dtype == np.float32


def test_masks_of_mask2former_have_the_size_of_the_image(models: Path) -> None:
    """Two queries: a bar, four pixels thick at the size of the image, and nothing."""
    detector = Detector.load(str(models / "mask2former"))
    assert detector.has_masks
    assert detector.processor.size == {"height": 64, "width": 64}
    height, width = 160, 320
    truth = torch.full((height, width), -10.0)
    truth[40:44, 100:200] = 10.0
    logits = torch.nn.functional.interpolate(truth[None, None], scale_factor=0.25, mode="area")[0]
    masks = torch.cat([logits, torch.full_like(logits, -5.0)])
    classes = torch.tensor([[0.0, 9.0, 0.0], [0.0, 9.0, 0.0]])
    outputs = SimpleNamespace(class_queries_logits=classes[None], masks_queries_logits=masks[None])
    found = detector._of_mask2former(outputs, (height, width))
    assert set(found.labels.tolist()) == {0, 1}
    assert found.labels[0] == 1
    mask = decode_mask(found.masks[0], (height, width))  # type: ignore[index]
    overlap = (mask & (truth.numpy() > 0)).sum() / (mask | (truth.numpy() > 0)).sum()
    assert overlap > 0.75
    assert np.abs(found.boxes[0] - [100, 40, 200, 44]).max() <= 2
    none = SimpleNamespace(class_queries_logits=classes[None], masks_queries_logits=torch.full_like(masks[None], -5.0))
    assert len(detector._of_mask2former(none, (height, width)).scores) == 0


def test_a_segmenter_enlarges_images(models: Path, tmp_path: Path) -> None:
    model: Any = load_dense(str(models / "upernet"))
    model.config.image_scale = 1.5
    model.save_pretrained(tmp_path)
    make_dense_processor(model, (64, 64), HALF, HALF).save_pretrained(tmp_path)
    segmenter = Segmenter.load(str(tmp_path))
    noise = np.random.default_rng(0).integers(0, 255, (41, 60, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(noise).resize((90, 62), Image.Resampling.BICUBIC).resize((60, 41)))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    larger = resize(pixels, [62, 90], antialias=True)
    with torch.no_grad():
        logits = model((larger / 255 - 0.5) / 0.5).logits
    expected = F.interpolate(logits, (41, 60), mode="bilinear").argmax(1)[0].numpy()
    found = segmenter(image)
    assert np.array_equal(found, expected)
    assert (found != Segmenter.load(str(models / "upernet"))(image)).any()
    # Windows are of the image, whatever its scale.
    segmenter.window, segmenter.stride = (41, 60), (41, 60)
    assert np.array_equal(segmenter(image), expected)
    segmenter.window = segmenter.stride = (24, 32)
    windows = segmenter(image)
    with torch.no_grad():
        corner = model((resize(pixels[..., :24, :32], [36, 48], antialias=True) / 255 - 0.5) / 0.5).logits
    # The next windows begin at row 17 and column 28.
    part = F.interpolate(corner, (24, 32), mode="bilinear").argmax(1)[0].numpy()[:17, :28]
    assert np.array_equal(windows[:17, :28], part)


@pytest.mark.parametrize("size", [(40, 60), (60, 40)])
def test_scales_are_relative_to_that_of_the_segmenter(size: tuple[int, int], models: Path) -> None:
    """The model sees the image at these sizes, as it is and mirrored, or windows of it."""
    segmenter: Any = Segmenter.load(str(models / "upernet"))
    segmenter.image_scale, segmenter.scales, segmenter.flip = 2.0, (1.0, 0.5), True
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    seen: list[tuple[int, ...]] = []
    segmenter.model.register_forward_pre_hook(lambda model, inputs: seen.append(tuple(inputs[0].shape[2:])))
    assert segmenter(image).shape == size
    assert seen == [(2 * size[0], 2 * size[1])] * 2 + [size] * 2
    seen.clear()
    segmenter.window, segmenter.scales, segmenter.flip = (20, 30), (1.0, 1.0), False
    assert segmenter(image).shape == size
    assert set(seen) == {(40, 60)}
