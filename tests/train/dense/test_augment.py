"""Images, masks and boxes change together."""

from typing import Any

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from swinv2.train.dense.augment import CropOfClasses, RandomScale, for_masks, for_objects, without_empty_boxes

MEAN = (0.5, 0.5, 0.5)
IGNORED = 255


def striped(height: int = 40, width: int = 60) -> dict[str, Any]:
    """An image whose red is 80 times the class of the pixel: three vertical stripes."""
    classes = torch.arange(width).div(width / 3, rounding_mode="floor").to(torch.uint8).repeat(height, 1)
    image = torch.stack([classes * 80, torch.zeros_like(classes), torch.zeros_like(classes)])
    return {"image": tv_tensors.Image(image), "mask": tv_tensors.Mask(classes)}


def with_boxes(height: int = 40, width: int = 60) -> dict[str, Any]:
    """A black image with two white boxes, and their masks."""
    boxes = torch.tensor([[5.0, 10.0, 25.0, 30.0], [40.0, 4.0, 50.0, 36.0]])
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    return {
        "image": tv_tensors.Image(masks.amax(0).repeat(3, 1, 1) * 255),
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),  # type: ignore[call-overload]
        "labels": torch.tensor([3, 7]),
        "masks": tv_tensors.Mask(masks),
    }


@pytest.mark.parametrize("seed", range(5))
def test_a_mask_follows_its_image(seed: int) -> None:
    torch.manual_seed(seed)
    changed = for_masks((32, 32), MEAN, (0.5, 2.0), 1.0, 0.5)(striped())
    image, mask = changed["image"], changed["mask"]
    assert image.shape == (3, 32, 32)
    assert mask.shape == (32, 32)
    inside = mask != IGNORED
    # Padding has the mean colour. Beside borders of classes, colours are mixed.
    assert (image[:, ~inside] == 128).all()
    wrong = (image[0][inside].float() / 80 - mask[inside].float()).abs() > 0.5
    assert wrong.float().mean() < 0.05


def test_a_crop_has_several_classes_if_there_are() -> None:
    torch.manual_seed(0)
    crop = CropOfClasses((20, 20), 0.75, [0, 0, 0])
    shares = []
    for _ in range(20):
        mask = crop(striped())["mask"]
        shares.append((torch.bincount(mask.flatten().long()).max() / mask.numel()).item())
    assert max(shares) < 0.75
    one = {**striped(), "mask": tv_tensors.Mask(torch.zeros(40, 60, dtype=torch.uint8))}
    assert crop(one)["mask"].shape == (20, 20)
    empty = {**striped(), "mask": tv_tensors.Mask(torch.full((40, 60), IGNORED, dtype=torch.uint8))}
    assert crop(empty)["mask"].shape == (20, 20)


def test_a_random_size_keeps_the_aspect_ratio() -> None:
    torch.manual_seed(0)
    sizes = {tuple(RandomScale(0.5, 2.0)(striped())["mask"].shape) for _ in range(20)}
    assert len(sizes) > 10
    assert all(20 <= height <= 80 and abs(width - 1.5 * height) <= 1 for height, width in sizes)
    # Into (100, 60): a factor of 1 gives 40 x 60, however they are turned.
    assert tuple(RandomScale(1.0, 1.0, (100, 60))(striped())["mask"].shape) == (40, 60)
    assert tuple(RandomScale(1.0, 1.0, (60, 100))(striped())["mask"].shape) == (60, 90)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [None, (48, 48)])
def test_boxes_and_masks_follow_their_image(seed: int, size: tuple[int, int] | None) -> None:
    torch.manual_seed(seed)
    changed = without_empty_boxes(for_objects(size, (0.0, 0.0, 0.0), (0.6, 1.5), 0.5)(with_boxes()))
    assert len(changed["boxes"]) == len(changed["labels"]) == len(changed["masks"])
    assert size is None or changed["image"].shape[1:] == size
    for box, mask in zip(changed["boxes"], changed["masks"], strict=True):
        columns, rows = (mask.any(axis).nonzero().flatten() for axis in (0, 1))
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert np.abs(np.array(found) - box.numpy()).max() <= 1.5
        assert changed["image"][0][mask.bool()].float().mean() > 200


def test_one_size_without_a_range_is_a_plain_resize() -> None:
    changed = for_objects((80, 30), MEAN, (1.0, 1.0), flip=0.0)(with_boxes())
    assert changed["boxes"][0].tolist() == [2.5, 20.0, 12.5, 60.0]


def test_objects_outside_are_left_out() -> None:
    sample = with_boxes()
    boxes = torch.tensor([[-5.0, -5.0, 0.4, 30.0], [50.0, 30.0, 90.0, 70.0]])
    sample["boxes"] = tv_tensors.wrap(boxes, like=sample["boxes"])
    masks = sample.pop("masks")
    kept = without_empty_boxes(sample)
    assert kept["boxes"].tolist() == [[50.0, 30.0, 60.0, 40.0]]
    assert kept["labels"].tolist() == [7]
    # With masks, the boxes are around what is left of them.
    masks[0] = 0
    masks[1, 10:] = 0
    kept = without_empty_boxes({**sample, "masks": masks})
    assert kept["boxes"].tolist() == [[40.0, 4.0, 50.0, 10.0]]
    assert kept["masks"].shape == (1, 40, 60)
