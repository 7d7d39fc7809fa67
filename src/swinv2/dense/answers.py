"""Answers of segmenters and detectors for images as they are read.

In: an image of eight bits, of any size. Out: the class of each pixel, or the objects, at the size of the image. This
module reads and writes no file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Mask2FormerForUniversalSegmentation, RTDetrV2ForObjectDetection

from swinv2.dense.average_precision import Detections
from swinv2.dense.detectors import SwinRCNN
from swinv2.dense.masks import encode_masks
from swinv2.dense.saved import DETECTION, INSTANCES, SEGMENTATION, class_names, load_dense, task_of
from swinv2.dense.sliding import best_classes, pixel_scores, segment, sliding_bands
from swinv2.errors import UsageError
from swinv2.lengths import Pair, as_pair
from swinv2.loading import load_processor

LARGE_PIXELS = 1024 * 1024
"""Images of more pixels are segmented by windows, unless others are given."""

LARGE_WINDOW = 768
"""Side in pixels of these windows."""

MASK_THRESHOLD = 0.5


@dataclass
class Segmenter:
    """Finds the class of each pixel of images.

    Attributes:
        model: The segmenter, in evaluation mode.
        mean, std: Mean and standard deviation of each channel, for values from 0 to 1.
        window, stride: See `sliding.segment`; if no window is given, images of more than `LARGE_PIXELS` are computed by
            windows of `LARGE_WINDOW`.
        scales, flip: See `sliding.segment`.
    """

    model: nn.Module
    mean: Sequence[float]
    std: Sequence[float]
    window: int | Pair | None = None
    stride: int | Pair | None = None
    scales: Sequence[float] = (1.0,)
    flip: bool = False
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.names = class_names(self.model)

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

    @torch.inference_mode()
    def __call__(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """The class of each pixel (height, width).

        Besides the image and the answer, the memory depends on the width of the image at most, if windows slide over it
        and neither `scales` nor `flip` is given.

        Args:
            image: An RGB image, or its pixels (height, width, channels), eight bits.
        """
        # An array is not copied.
        pixels = torch.from_numpy(np.require(image, np.uint8, "W")).permute(2, 0, 1)
        _, height, width = pixels.shape
        window, stride = self.window, self.stride
        if window is None and height * width > LARGE_PIXELS:
            window = LARGE_WINDOW
        if list(self.scales) != [1.0] or self.flip or window is None:
            found = segment(self.model, self.normalise(pixels), window, stride, scales=self.scales, flip=self.flip)
            return found.cpu().numpy()
        sides = as_pair("window", window)
        steps = as_pair("stride", stride) if stride is not None else (sides[0] * 2 // 3, sides[1] * 2 // 3)
        score = pixel_scores(self.model)
        bands = sliding_bands(lambda views: score(self.normalise(views)).cpu(), pixels, sides, steps)
        found = torch.empty(height, width, dtype=torch.uint8 if len(self.names) <= 256 else torch.int32)
        for top, band in bands:
            found[top : top + band.shape[1]] = best_classes(band)
        return found.numpy()


@dataclass
class Detector:
    """Finds the objects in images.

    Attributes:
        model: The detector, in evaluation mode.
        processor: Its image processor; None for detectors of torchvision.
    """

    model: nn.Module
    processor: Any = None
    names: tuple[str, ...] = field(init=False)
    has_masks: bool = field(init=False)

    def __post_init__(self) -> None:
        config: Any = self.model.config
        self.names = class_names(self.model)
        self.has_masks = task_of(config.to_dict()) == INSTANCES

    @classmethod
    def load(cls, name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Self:
        """Loads a detector and its image processor.

        Raises:
            UsageError: The model is no detector, or cannot be loaded.
        """
        model: Any = load_dense(name, device, dtype)
        if task_of(model.config.to_dict()) not in (INSTANCES, DETECTION):
            raise UsageError(f"{name!r} finds classes of pixels, not objects; use `swinv2 segment`.")
        return cls(model, None if isinstance(model, SwinRCNN) else load_processor(name))

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image | np.ndarray]) -> list[Detections]:
        """The objects of each image, the surest first, also unsure ones; labels from 0, boxes in pixels.

        Args:
            images: RGB images, or their pixels (height, width, channels), eight bits, of any sizes.
        """
        arrays = [np.array(image) for image in images]
        weight = next(self.model.parameters())
        if isinstance(self.model, SwinRCNN):
            pixels = [torch.from_numpy(array).permute(2, 0, 1).to(weight.device) for array in arrays]
            found = self.model([each.to(weight.dtype) / 255 for each in pixels])
            return [self._of_torchvision(answer) for answer in found]
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

    def _of_mask2former(self, outputs: Any, size: Pair) -> Detections:
        """The objects of an output of Mask2Former; their boxes are those of the masks."""
        (answer,) = self.processor.post_process_instance_segmentation(
            outputs, threshold=0.0, target_sizes=[size], return_binary_maps=True
        )
        found = [
            (segment, mask > MASK_THRESHOLD)
            for segment, mask in zip(answer["segments_info"], answer["segmentation"], strict=True)
            if (mask > MASK_THRESHOLD).any()
        ]
        if not found:
            empty = torch.zeros(0)
            return _sorted(torch.zeros(0, 4), empty.long(), empty, torch.zeros(0, *size, dtype=torch.bool))
        masks = torch.stack([mask for _, mask in found])
        labels = torch.tensor([segment["label_id"] for segment, _ in found])
        scores = torch.tensor([segment["score"] for segment, _ in found])
        return _sorted(_boxes_around(masks), labels, scores, masks)


def _boxes_around(masks: Tensor) -> Tensor:
    """The boxes (objects, 4) around masks (objects, height, width), none of them empty."""
    boxes = [
        [columns.nonzero().min(), rows.nonzero().min(), columns.nonzero().max() + 1, rows.nonzero().max() + 1]
        for columns, rows in zip(masks.any(1), masks.any(2), strict=True)
    ]
    return torch.tensor(boxes, dtype=torch.float32)


def _sorted(boxes: Tensor, labels: Tensor, scores: Tensor, masks: Tensor | None) -> Detections:
    """Objects by their scores, on the CPU."""
    order = scores.argsort(descending=True, stable=True)
    encoded = None if masks is None else encode_masks(masks[order].cpu().numpy())
    return Detections(
        boxes[order].float().cpu().numpy(), labels[order].cpu().numpy(), scores[order].float().cpu().numpy(), encoded
    )
