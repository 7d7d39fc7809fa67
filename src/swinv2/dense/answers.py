"""Answers of segmenters and detectors for images as they are read.

In: an image of eight bits, of any size. Out: the class of each pixel, or the objects, at the size of the image. This
module reads and writes no file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize
from transformers import Mask2FormerForUniversalSegmentation, RTDetrV2ForObjectDetection

from swinv2.dense.average_precision import Detections
from swinv2.dense.detectors import SwinRCNN
from swinv2.dense.masks import boxes_around, encode_masks
from swinv2.dense.saved import INSTANCES, SEGMENTATION, image_scale_of, load_dense, task_of
from swinv2.dense.sliding import segment
from swinv2.errors import UsageError
from swinv2.images import read_image, to_rgb, upright
from swinv2.lengths import Pair
from swinv2.loading import label_names, load_processor

LARGE_PIXELS = 1024 * 1024
"""Images of more pixels, after they are enlarged, are segmented by windows, unless others are given."""

LARGE_WINDOW = 768
"""Side in pixels of these windows, as the model sees them."""

MASK_THRESHOLD = 0.5

MOST_OBJECTS = 100
"""Objects in an image that Mask2Former answers with, as in COCO."""

RGB = 3

Picture = Image.Image | np.ndarray | str | Path
"""An image of PIL in any mode, which is turned as its EXIF data says; RGB pixels (height, width, 3), eight bits; or the
name of a file."""


@dataclass
class Segmenter:
    """Finds the class of each pixel of images.

    Attributes:
        model: The segmenter, in evaluation mode.
        mean, std: Mean and standard deviation of each channel, for values from 0 to 1.
        window, stride: See `sliding.segment`, in pixels of the image; if no window is given, images that have more than
            `LARGE_PIXELS` when they are enlarged are computed by windows of `LARGE_WINDOW`.
        scales, flip: See `sliding.segment`; the scales are relative to `image_scale`.
        image_scale: Factor by which images are enlarged for the model, that of its configuration.
    """

    model: nn.Module
    mean: Sequence[float]
    std: Sequence[float]
    window: int | Pair | None = None
    stride: int | Pair | None = None
    scales: Sequence[float] = (1.0,)
    flip: bool = False
    names: tuple[str, ...] = field(init=False)
    image_scale: float = field(init=False)

    def __post_init__(self) -> None:
        config: Any = self.model.config
        self.names = tuple(label_names(config))
        self.image_scale = image_scale_of(vars(config))

    @classmethod
    def load(cls, name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Self:
        """Loads a segmenter with the normalisation of its image processor.

        Raises:
            UsageError: The model is no segmenter, or cannot be loaded.
        """
        model: Any = load_dense(name, device, dtype)
        task = task_of(model.config.to_dict())
        if task != SEGMENTATION:
            raise UsageError(f"{name!r} finds objects ({task}), not classes of pixels; use `swinv2 detect`.")
        processor = load_processor(name)
        return cls(model, processor.image_mean, processor.image_std)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalised pixels, of the type of the weights, of pixels (..., channels, H, W) of eight bits."""
        weight = next(self.model.parameters())
        mean, std = (torch.tensor(list(each)).view(-1, 1, 1) for each in (self.mean, self.std))
        return ((pixels.float() / 255 - mean) / std).to(weight.device, weight.dtype)

    def prepare(self, pixels: Tensor) -> Tensor:
        """What the model takes of pixels (..., channels, H, W) of eight bits: enlarged and normalised."""
        if self.image_scale == 1.0:
            return self.normalise(pixels)
        size = [max(round(side * self.image_scale), 1) for side in pixels.shape[-2:]]
        return self.normalise(resize(pixels, size, antialias=True))

    def __call__(self, image: Picture) -> np.ndarray:
        """The class of each pixel (height, width).

        Besides the image and the answer, the memory depends on the width of the image at most, if windows slide over it
        and neither `scales` nor `flip` is given.

        Args:
            image: See `Picture`; an array is not copied.
        """
        pixels = torch.from_numpy(as_rgb_pixels(image)).permute(2, 0, 1)
        is_large = pixels.shape[1] * pixels.shape[2] * self.image_scale**2 > LARGE_PIXELS
        window = max(round(LARGE_WINDOW / self.image_scale), 1) if self.window is None and is_large else self.window
        found = segment(
            self.model, pixels, window, self.stride, scales=self.scales, flip=self.flip, prepare=self.prepare
        )
        return found.cpu().numpy()


@dataclass
class Detector:
    """Finds the objects in images.

    Attributes:
        model: The detector, in evaluation mode.
        processor: Its image processor; None for detectors of torchvision.
        dtype: Type of the computation. torchvision's detectors keep weights in fp32 and compute by autocast, because
            some of their operations have no other types.
    """

    model: nn.Module
    processor: Any = None
    dtype: torch.dtype = torch.float32
    names: tuple[str, ...] = field(init=False)
    has_masks: bool = field(init=False)

    def __post_init__(self) -> None:
        config: Any = self.model.config
        self.names = tuple(label_names(config))
        self.has_masks = task_of(config.to_dict()) == INSTANCES

    @classmethod
    def load(cls, name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Self:
        """Loads a detector and its image processor.

        Raises:
            UsageError: The model is no detector, or cannot be loaded.
        """
        model: Any = load_dense(name, device)
        if task_of(model.config.to_dict()) == SEGMENTATION:
            raise UsageError(f"{name!r} finds classes of pixels, not objects; use `swinv2 segment`.")
        if isinstance(model, SwinRCNN):
            return cls(model, None, dtype)
        return cls(model.to(dtype), load_processor(name), dtype)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Picture]) -> list[Detections]:
        """The objects of each image, the surest first; labels from 0, boxes in pixels. torchvision's detectors leave
        out those with a score below their `box_score_thresh`, 0.05.

        Args:
            images: See `Picture`; of any sizes.
        """
        if isinstance(images, (str, Path, Image.Image, np.ndarray)):
            raise UsageError("a detector takes a list of images; write detector([image]).")
        arrays = [as_rgb_pixels(image) for image in images]
        weight = next(self.model.parameters())
        if isinstance(self.model, SwinRCNN):
            pixels = [torch.from_numpy(array).permute(2, 0, 1).to(weight.device) / 255 for array in arrays]
            # Of an image that is thinner than a pixel after resizing, nothing is left.
            usable = [index for index, each in enumerate(pixels) if self.model.keeps_pixels_of(each)]
            with torch.autocast(weight.device.type, self.dtype, enabled=self.dtype != torch.float32):
                outputs = self.model([pixels[index] for index in usable]) if usable else []
            found = dict(zip(usable, map(self._of_torchvision, outputs), strict=True))
            return [found[index] if index in found else self._nothing(array) for index, array in enumerate(arrays)]
        sizes = [(array.shape[0], array.shape[1]) for array in arrays]
        answers: list[Detections] = []
        # One at a time: a batch of images of several sizes would be padded.
        for array, size in zip(arrays, sizes, strict=True):
            inputs = self.processor(images=array, return_tensors="pt")["pixel_values"].to(weight.device, weight.dtype)
            if isinstance(self.model, RTDetrV2ForObjectDetection):
                outputs = self.model(inputs)
                (answer,) = self.processor.post_process_object_detection(outputs, 0.0, [size])
                answers.append(_sorted(answer["boxes"], answer["labels"], answer["scores"], None))
            else:
                assert isinstance(self.model, Mask2FormerForUniversalSegmentation)
                answers.append(self._of_mask2former(self.model(inputs), size))
        return answers

    def _of_torchvision(self, answer: dict[str, Tensor]) -> Detections:
        """An answer of torchvision's detector, whose label 0 is the background."""
        masks = answer["masks"][:, 0] > MASK_THRESHOLD if self.has_masks else None
        return _sorted(answer["boxes"], answer["labels"] - 1, answer["scores"], masks)

    def _nothing(self, array: np.ndarray) -> Detections:
        """No object in an image."""
        empty, size = torch.zeros(0), array.shape[:2]
        masks = torch.zeros(0, *size, dtype=torch.bool) if self.has_masks else None
        return _sorted(torch.zeros(0, 4), empty.long(), empty, masks)

    def _of_mask2former(self, outputs: Any, size: Pair) -> Detections:
        """The objects of an output of Mask2Former for an image of a size; their boxes are those of the masks. Unlike
        transformers' post-processing, it computes the masks at the size of the image.

        Source: Cheng et al., Mask2Former, 2022: the score is that of the class times the mean probability in the mask.
        """
        classes = outputs.class_queries_logits[0].float().softmax(-1)[:, :-1]
        scores, places = classes.flatten().topk(min(MOST_OBJECTS, classes.numel()))
        queries, labels = places // classes.shape[1], places % classes.shape[1]
        logits = outputs.masks_queries_logits[0, queries].float()
        logits = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
        masks = logits > 0
        inside = masks.sum((1, 2))
        scores = scores * (logits.sigmoid() * masks).sum((1, 2)) / inside.clamp(min=1)
        kept = inside > 0
        masks = masks[kept]
        return _sorted(boxes_around(masks), labels[kept], scores[kept], masks)


def as_rgb_pixels(image: Picture) -> np.ndarray:
    """The RGB pixels (height, width, 3) of an image, upright, eight bits, writable.

    Raises:
        BrokenImageError: A file cannot be read.
        UsageError: An array has another shape or type.
    """
    if isinstance(image, (str, Path)):
        return np.array(read_image(image))
    if isinstance(image, Image.Image):
        # A copy: the image of the caller stays as it is.
        return np.array(to_rgb(upright(image.copy())))
    if not isinstance(image, np.ndarray):
        raise UsageError(f"an image is {type(image).__name__}; expected a file's name, an image of PIL, or an array.")
    if image.ndim != 3 or image.shape[2] != RGB or image.dtype != np.uint8:
        raise UsageError(f"an image is an array {image.shape} of {image.dtype}; expected (height, width, 3) of uint8.")
    return np.require(image, np.uint8, ["C", "W"])


def _sorted(boxes: Tensor, labels: Tensor, scores: Tensor, masks: Tensor | None) -> Detections:
    """Objects by their scores, on the CPU."""
    order = scores.argsort(descending=True, stable=True)
    encoded = None if masks is None else encode_masks(masks[order].cpu().numpy())
    return Detections(
        boxes[order].float().cpu().numpy(), labels[order].cpu().numpy(), scores[order].float().cpu().numpy(), encoded
    )
