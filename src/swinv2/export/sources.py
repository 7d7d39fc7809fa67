"""The models that can be exported, and the images that they take.

In: a model's folder or name. Out: the model, its image processor for the images of an export, and samples.
"""

import copy
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Mask2FormerForUniversalSegmentation, RTDetrV2ForObjectDetection

from swinv2.dense.detectors import SwinRCNN
from swinv2.dense.saved import image_scale_of, load_dense, read_dense_config
from swinv2.errors import UsageError
from swinv2.exported import OPENVINO
from swinv2.heads import Swinv2Backbone, Swinv2ForImageClassification, Swinv2ForMaskedImageModeling
from swinv2.images import BrokenImage, read_or_skip
from swinv2.lengths import Pair, as_pair
from swinv2.loading import load_model, load_processor, read_config
from swinv2.model import Swinv2Model, Swinv2PreTrainedModel
from swinv2.simmim import patch_grid_of

logger = logging.getLogger(__name__)

RGB = 3

LABELS, FEATURES, MAPS, PIXELS = "labels", "features", "maps", "pixels"

_CLASSES: dict[str, Any] = {
    LABELS: Swinv2ForImageClassification,
    FEATURES: Swinv2Model,
    MAPS: Swinv2Backbone,
    PIXELS: Swinv2ForMaskedImageModeling,
}
"""What a model answers with, and the class that does."""

ANSWERS = tuple(_CLASSES)

OBJECTS = ("logits", "pred_boxes", "class_queries_logits", "masks_queries_logits")
"""The outputs of detectors that describe objects."""

_PROBE = ((40, 60), (60, 40))
"""Sizes of two images that show whether a processor makes all images alike."""


@dataclass
class Source:
    """A model to export.

    Attributes:
        name: Its folder or name.
        model: The model, on the CPU, in fp32.
        processor: Its image processor, which is not changed.
    """

    name: str
    model: Any
    processor: Any

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return getattr(self.model.config, "num_channels", None) or RGB

    def usual_size(self) -> Pair:
        """The size (height, width) of the images that the processor makes; if their size depends on the image, that of
        the configuration."""
        made = {self._made_by(self.processor, size) for size in _PROBE}
        if len(made) == 1:
            return made.pop()
        backbone = next(each for each in self.model.modules() if isinstance(each, (Swinv2Model, Swinv2Backbone)))
        return as_pair("image_size", backbone.config.image_size)

    def _made_by(self, processor: Any, size: Pair) -> Pair:
        """The size that a processor makes of an image of a size."""
        pixels = Image.new("L" if self.channels == 1 else "RGB", (size[1], size[0]))
        made = processor(images=pixels, return_tensors="pt")["pixel_values"]
        return made.shape[2], made.shape[3]

    def processor_for(self, size: Pair, takes_bytes: bool = False) -> Any:
        """The processor, changed so that every image gets a size (height, width).

        Args:
            size: The size.
            takes_bytes: Whether a graph normalises the images, so that the processor does not.

        Raises:
            UsageError: It cannot be changed so.
        """
        processor = self._resized_processor(size)
        if takes_bytes:
            processor.do_rescale = processor.do_normalize = False
        return processor

    def _resized_processor(self, size: Pair) -> Any:
        """The processor for images of a size."""
        processor = copy.deepcopy(self.processor)
        if {self._made_by(processor, each) for each in _PROBE} == {size}:
            return processor
        height, width = size
        crop = getattr(processor, "crop_size", None)
        edge = dict(processor.size or {}).get("shortest_edge") if getattr(processor, "do_resize", False) else None
        if getattr(processor, "do_center_crop", False) and crop and edge:
            # The same share of the shorter side, with more or fewer pixels.
            share = max(height / crop["height"], width / crop["width"])
            processor.size = {"shortest_edge": max(round(edge * share), height, width)}
            processor.crop_size = {"height": height, "width": width}
        else:
            processor.do_resize, processor.size = True, {"height": height, "width": width}
            if hasattr(processor, "do_center_crop"):
                processor.do_center_crop = False
        if {self._made_by(processor, each) for each in _PROBE} != {size}:
            raise UsageError(
                f"the image processor of {self.name!r} ({type(processor).__name__}) cannot be set to images of "
                f"{height} x {width} pixels; give --image-size as in its preprocessor_config.json."
            )
        return processor

    def normalisation(self) -> tuple[float, list[float] | None, list[float] | None]:
        """The processor's factor for pixels of eight bits, and mean and deviation of each channel, or None."""
        processor = self.processor
        factor = float(processor.rescale_factor) if processor.do_rescale else 1.0
        if not processor.do_normalize:
            return factor, None, None
        mean, std = (
            [float(each)] * self.channels if isinstance(each, (int, float)) else [float(one) for one in each]
            for each in (processor.image_mean, processor.image_std)
        )
        return factor, mean, std

    @property
    def finds_objects(self) -> bool:
        """Whether it is a detector, which has outputs beside its objects."""
        return isinstance(self.model, (RTDetrV2ForObjectDetection, Mask2FormerForUniversalSegmentation))

    @property
    def has_classes(self) -> bool:
        """Whether it answers with classes."""
        return not isinstance(self.model, Swinv2PreTrainedModel) or hasattr(self.model, "classifier")

    @property
    def image_scale(self) -> float:
        """The factor by which a segmenter enlarges images before they enter it; see `dense.answers.Segmenter`."""
        return image_scale_of(self.model.config.to_dict())

    @property
    def chooses(self) -> bool:
        """Whether it is a detector that chooses its queries among the proposals of an image."""
        return isinstance(self.model, RTDetrV2ForObjectDetection)

    def refuse_format(self, format: str) -> None:
        """Raises an error if a runtime is known to compute the model otherwise."""
        if self.chooses and format == OPENVINO:
            raise UsageError(
                f"{self.name!r} is RT-DETR v2, whose decoder OpenVINO computes otherwise than torch; use --to onnx."
            )

    @property
    def batch_size(self) -> int | None:
        """The batch that its graph takes; None for any."""
        # transformers' model makes its number of images a constant when it is traced.
        return 1 if isinstance(self.model, RTDetrV2ForObjectDetection) else None

    def inputs(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """All inputs of the graph for a batch of images."""
        if not isinstance(self.model, Swinv2ForMaskedImageModeling):
            return {"pixel_values": pixel_values}
        patch = as_pair("patch_size", self.model.config.patch_size)
        height, width = patch_grid_of((pixel_values.shape[2], pixel_values.shape[3]), patch)
        mask = torch.arange(height * width).expand(len(pixel_values), -1) % 3 == 0
        return {"pixel_values": pixel_values, "bool_masked_pos": mask}


def open_source(name: str, answers: str | None = None) -> Source:
    """Loads a model to export.

    Args:
        name: A folder, or a name on the hub.
        answers: One of `ANSWERS`; None for what the model was saved for.

    Raises:
        UsageError: The model cannot be loaded, or cannot be exported; the message says why.
    """
    if (Path(name).expanduser() / "export.json").is_file():
        raise UsageError(f"{name!r} is an exported model; export the model that it came from.")
    if read_dense_config(name) is not None:
        if answers is not None:
            raise UsageError(f"--answers is for models without a dense head, and {name!r} has one; leave it out.")
        model: Any = load_dense(name)
        if isinstance(model, SwinRCNN):
            raise UsageError(
                f"{name!r} is an R-CNN of torchvision: the number of its objects depends on the image, which a "
                "graph of fixed shapes cannot have. Train --head rt_detr to export a detector."
            )
        return Source(name, model, load_processor(name))
    config = read_config(name)
    if config.num_channels not in (1, 3):
        raise UsageError(
            f"{name!r} takes images of {config.num_channels} channels; files of images, with which an export is "
            "compared, have 1 or 3."
        )
    saved = {each.__name__: answer for answer, each in _CLASSES.items()}
    chosen = answers or saved.get((config.architectures or [""])[0], LABELS)
    fields: dict[str, Any] = {}
    if chosen == MAPS and saved.get((config.architectures or [""])[0]) != MAPS:
        fields = {"out_features": config.stage_names[1:]}
    model = load_model(_CLASSES[chosen], name, torch.device("cpu"), torch.float32, **fields)
    return Source(name, model, load_processor(name, model.config.num_channels))


def prepare_images(paths: Iterable[Path], processor: Any, channels: int) -> list[np.ndarray]:
    """The pixels (channels, height, width) of the readable images among some files, as a processor makes them.
    Unreadable ones are left out, with a warning."""
    prepared: list[np.ndarray] = []
    for path in paths:
        image = read_or_skip(path, channels)
        if isinstance(image, BrokenImage):
            logger.warning("skipped %s: %s", image.path, image.reason)
            continue
        prepared.append(np.asarray(processor(images=image, return_tensors="pt")["pixel_values"][0], np.float32))
    return prepared


class ObjectsOnly(nn.Module):
    """A detector without the outputs of its layers, which nobody needs who wants objects.

    Args:
        network: The detector.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Classes and boxes, or classes and masks, of every query."""
        outputs = self.network(pixel_values=pixel_values)
        return {name: outputs[name] for name in OBJECTS if name in outputs}


class TakesBytes(nn.Module):
    """A network that takes pixels of eight bits, as image libraries give them, and normalises them itself.

    Args:
        network: The network.
        factor, mean, std: See `Source.normalisation`.
    """

    factor: Tensor
    offset: Tensor

    def __init__(self, network: nn.Module, factor: float, mean: list[float] | None, std: list[float] | None) -> None:
        super().__init__()
        self.network = network
        deviation = torch.tensor(std or [1.0], dtype=torch.float64)
        offset = torch.tensor(mean or [0.0], dtype=torch.float64) / deviation
        self.register_buffer("factor", (factor / deviation).float().view(-1, 1, 1))
        self.register_buffer("offset", offset.float().view(-1, 1, 1))

    def forward(self, pixel_values: Tensor, **kwargs: Tensor) -> Any:
        """Runs the network on images (batch, height, width, channels) of eight bits."""
        pixels = pixel_values.permute(0, 3, 1, 2).float()
        return self.network(pixel_values=pixels * self.factor - self.offset, **kwargs)


def batches_of(pixels: Sequence[np.ndarray], batch_size: int) -> list[Tensor]:
    """Prepared images as batches."""
    return [torch.from_numpy(np.stack(pixels[at : at + batch_size])) for at in range(0, len(pixels), batch_size)]
