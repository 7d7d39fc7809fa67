"""Augmentation of images together with their masks or boxes, by torchvision's transforms.

In: an image of eight bits with a mask of classes, or with boxes, labels and masks of objects, as tv_tensors. Out: the
same, changed at random. The transforms draw from torch's global generator, which `examples.py` seeds for every image.

Source: mmsegmentation, datasets/transforms (random size, crop with a largest share of one class, photometric
distortion), as the authors' segmentation code uses them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from swinv2.dense.masks import boxes_around
from swinv2.lengths import Pair
from swinv2.train.data.masks.dataset import IGNORED_PIXEL

CROPS_TO_TRY = 10


class RandomScale(v2.Transform):
    """Augmentation: resizes everything by a random factor and keeps the aspect ratio.

    torchvision's ScaleJitter mixes up height and width of its target.

    Args:
        low, high: Smallest and largest factor.
        base: Size (height, width) into which a factor of 1 fits the image; None: its own size.
        is_turned: Whether the base is (shorter side, longest side), for images of both orientations.
    """

    def __init__(self, low: float, high: float, base: Pair | None = None, is_turned: bool = False) -> None:
        super().__init__()
        self.low, self.high, self.base, self.is_turned = low, high, base, is_turned

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the new size."""
        height, width = _size_of(flat_inputs)
        factor = self.low + (self.high - self.low) * torch.rand(()).item()
        if self.base is not None:
            sides = sorted((height, width)) if self.is_turned else (height, width)
            factor *= min(self.base[0] / sides[0], self.base[1] / sides[1])
        return {"size": [max(round(height * factor), 1), max(round(width * factor), 1)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resizes one of the inputs."""
        return self._call_kernel(F.resize, inpt, size=params["size"], antialias=True)


class CropOfClasses(v2.Transform):
    """Augmentation: a random crop in which one class has at most a share of the labelled pixels, if one is found.

    Args:
        size: Height and width of the crop; smaller images are padded.
        share: The largest share.
        fill: Values of the padding, for each channel from 0 to 255.
    """

    def __init__(self, size: Pair, share: float, fill: Sequence[float]) -> None:
        super().__init__()
        fills: Any = {tv_tensors.Image: [round(value) for value in fill], tv_tensors.Mask: IGNORED_PIXEL}
        self.share, self.crop = share, v2.RandomCrop(size, pad_if_needed=True, fill=fills)

    def forward(self, *inputs: Any) -> Any:
        """Crops image and mask."""
        sample = inputs[0] if len(inputs) == 1 else inputs
        cropped: Any = None
        for _ in range(CROPS_TO_TRY):
            cropped = self.crop(sample)
            mask = cropped["mask"]
            counts = torch.bincount(mask[mask != IGNORED_PIXEL].flatten().long())
            if self.share == 1.0 or (len(counts) and int(counts.max()) < self.share * int(counts.sum())):
                return cropped
        return cropped


class TurnedCrop(v2.Transform):
    """Augmentation: a random crop or random padding to a size, which is turned as the image is.

    Args:
        size: Shorter and longest side in pixels.
        fill: The values of the padding; see `RandomCrop`.
    """

    def __init__(self, size: Pair, fill: Any) -> None:
        super().__init__()
        self.wide = v2.RandomCrop(size, pad_if_needed=True, fill=fill)
        self.tall = v2.RandomCrop((size[1], size[0]), pad_if_needed=True, fill=fill)

    def forward(self, *inputs: Any) -> Any:
        """Crops image, boxes and masks."""
        sample: Any = inputs[0] if len(inputs) == 1 else inputs
        height, width = sample["image"].shape[-2:]
        return (self.tall if height > width else self.wide)(sample)


def _size_of(inputs: list[Any]) -> Pair:
    """Height and width of the image among some inputs."""
    image = next(each for each in inputs if isinstance(each, tv_tensors.Image))
    return image.shape[-2], image.shape[-1]


def _colours(strength: float) -> list[v2.Transform]:
    """Changes of brightness, contrast, saturation and hue."""
    return [v2.ColorJitter(strength, strength, strength, min(strength / 4, 0.5))] if strength else []


def for_masks(
    crop: Pair,
    mean: Sequence[float],
    scale_range: Sequence[float] = (0.5, 2.0),
    most_of_a_class: float = 0.75,
    flip: float = 0.5,
    color_jitter: float = 0.0,
) -> v2.Transform:
    """Augmentation of an image with a mask of classes: random size, crop, flip, colours.

    Args:
        crop: Height and width of the crop in pixels.
        mean: Mean of each channel from 0 to 1, the value of padding.
        scale_range: Smallest and largest factor of the size.
        most_of_a_class: See `CropOfClasses`.
        flip: Probability of a horizontal flip.
        color_jitter: Strength of changes of brightness, contrast, saturation and, by a quarter of it, hue.
    """
    is_scaled = tuple(scale_range) != (1.0, 1.0)
    steps: list[v2.Transform] = [RandomScale(scale_range[0], scale_range[1])] * is_scaled
    steps.append(CropOfClasses(crop, most_of_a_class, [255 * value for value in mean]))
    return v2.Compose([*steps, v2.RandomHorizontalFlip(flip), *_colours(color_jitter)])


def for_objects(
    size: Pair | None,
    mean: Sequence[float],
    scale_range: Sequence[float] = (1.0, 1.0),
    flip: float = 0.5,
    color_jitter: float = 0.0,
    resizes_itself: bool = False,
) -> v2.Transform:
    """Augmentation of an image with objects.

    Args:
        size: Height and width in pixels: the image is scaled at random into it and cropped or padded to it. With the
            range 1 to 1 it is resized to it, whatever its aspect ratio. None: the image is only scaled.
        mean, flip, color_jitter: See `for_masks`.
        scale_range: Smallest and largest factor of the size.
        resizes_itself: Whether the detector resizes images itself, so that the shorter side, or if it is less the
            longest side, is that of `size`. An image then becomes one that the detector does not resize again, and
            with the range 1 to 1 it keeps its size.
    """
    is_scaled = tuple(scale_range) != (1.0, 1.0)
    steps: list[v2.Transform] = [v2.RandomHorizontalFlip(flip), *_colours(color_jitter)]
    if is_scaled:
        steps.append(RandomScale(scale_range[0], scale_range[1], size, resizes_itself))
    if size is not None and is_scaled:
        fill: Any = {tv_tensors.Image: [round(255 * value) for value in mean], tv_tensors.Mask: 0}
        crop = TurnedCrop(size, fill) if resizes_itself else v2.RandomCrop(size, pad_if_needed=True, fill=fill)
        steps.append(crop)
    elif size is not None and not resizes_itself:
        steps.append(v2.Resize(size, antialias=True))
    return v2.Compose(steps)


def without_empty_boxes(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Boxes inside the image only, and the objects that still have at least a pixel in each direction."""
    boxes: Any = F.clamp_bounding_boxes(sample["boxes"])
    if "masks" in sample:
        # A crop cuts off parts of an object, and its box is around the rest.
        boxes = tv_tensors.BoundingBoxes(  # type: ignore[call-overload]
            boxes_around(sample["masks"].as_subclass(torch.Tensor).bool()), format="XYXY", canvas_size=boxes.canvas_size
        )
    boxes, is_kept = F.sanitize_bounding_boxes(boxes, min_size=1.0)
    objects = {name: sample[name][is_kept] for name in ("labels", "masks") if name in sample}
    return {**sample, **objects, "boxes": boxes}
