"""Describes a model in numbers, without its weights.

In: the name of a preset or checkpoint, or a folder. Out: a `Description`. The network is built on torch's meta device,
so no model takes memory for its weights.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from swinv2.config import Swinv2Config
from swinv2.errors import UsageError
from swinv2.heads import (
    Swinv2Backbone,
    Swinv2Classifier,
    Swinv2ForImageClassification,
    Swinv2ForMaskedImageModeling,
)
from swinv2.layers.stage import Encoder
from swinv2.lengths import Lengths, Pair, Windows, as_pair
from swinv2.loading import EXAMPLE, label_names, read_config
from swinv2.model import Swinv2Model, Swinv2PreTrainedModel
from swinv2.ops.backends import explain_backend
from swinv2.video.config import Swinv2VideoConfig
from swinv2.video.models import Swinv2ForVideoClassification, Swinv2VideoModel, Swinv2VideoPreTrainedModel
from swinv2.zoo import CHECKPOINTS, PRESETS, find_preset

_CLASSES: dict[str, type[Swinv2PreTrainedModel]] = {
    model_class.__name__: model_class
    for model_class in (
        *(Swinv2Model, Swinv2ForImageClassification, Swinv2ForMaskedImageModeling, Swinv2Backbone),
        *(Swinv2VideoModel, Swinv2ForVideoClassification),
    )
}


@dataclass(frozen=True)
class StageDescription:
    """One stage, for an image or a clip of the configured size.

    Attributes:
        name: "stage1" and so on.
        blocks, channels, heads: Numbers of blocks, channels and heads.
        grid, window, shift: Size (height, width) in tokens of the map, its windows and their shift; of a video model,
            (frames, height, width).
        pretrained_window: The window in which the position bias was learned.
        parameters: Number of parameters, including merging.
    """

    name: str
    blocks: int
    channels: int
    heads: int
    grid: Lengths
    window: Lengths
    shift: Lengths
    pretrained_window: Lengths
    parameters: int


@dataclass(frozen=True)
class Description:
    """A model in numbers.

    Attributes:
        name: The name that was given.
        kind: Source of the numbers, in words.
        model_class: Class of the model.
        parameters: Number of parameters of that class.
        image_size: Configured image size (height, width) in pixels.
        num_channels: Number of channels of an image.
        patch_size: Patch size (height, width) in pixels.
        num_labels: Number of classes; None without a classifier.
        attention: The attention backend that runs, and why the faster backends do not; one line for each backend.
        stages: One description for each stage.
        quoted: For a preset, the number of parameters that is usually quoted, and whether it includes a classifier.
        labels: Names of the classes; None if they are not known without downloading.
        top1: Published top-1 accuracy on ImageNet-1k in percent.
        licence: Licence of published weights.
        num_frames: Of a video model, frames of a clip.
        tubelet_size: Of a video model, frames of a patch.
        frame_stride: Of a video model, frames of a video from one frame of a clip to the next, in its training.
    """

    name: str
    kind: str
    model_class: str
    parameters: int
    image_size: Pair
    num_channels: int
    patch_size: Pair
    num_labels: int | None
    attention: str
    stages: list[StageDescription]
    quoted: str | None = None
    labels: list[str] | None = None
    top1: float | None = None
    licence: str | None = None
    num_frames: int | None = None
    tubelet_size: int | None = None
    frame_stride: int | None = None


def describe(name: str, image_size: int | Pair | None = None, window_size: Windows | None = None) -> Description:
    """Describes a model.

    Args:
        name: A preset ("tiny" ... "giant-3b"), a folder, or a name on the hub. The presets and the published
            checkpoints need no network connection.
        image_size: Image size in pixels, one length or (height, width); None for the model's own.
        window_size: Window in tokens, one for all stages or one for each stage; None for the model's own.

    Raises:
        UsageError: There is no such model, or the image size or the window is impossible.
    """
    model, facts = _build_with_fields(name, image_size, window_size)
    config = model.config
    encoder = next(module for module in model.modules() if isinstance(module, Encoder))
    return Description(
        name=name,
        model_class=type(model).__name__,
        parameters=_count_parameters(model),
        image_size=as_pair("image_size", config.image_size),
        num_channels=config.num_channels,
        patch_size=as_pair("patch_size", config.patch_size),
        num_labels=config.num_labels if isinstance(model, Swinv2Classifier) else None,
        attention=explain_backend(config._attn_implementation or "eager"),
        stages=[
            StageDescription(
                *(spec.name, spec.depth, spec.dim, spec.num_heads, spec.grid, spec.window, spec.shift),
                pretrained_window=spec.learned_window,
                parameters=_count_parameters(stage),
            )
            for spec, stage in zip(config.stages(), encoder.layers, strict=True)
        ],
        **facts,
    )


def build_on_meta(
    name: str, image_size: int | Pair | None = None, window_size: Windows | None = None
) -> Swinv2PreTrainedModel:
    """Builds the model that `describe` describes, on the meta device; arguments and errors are the same."""
    return _build_with_fields(name, image_size, window_size)[0]


def _build_with_fields(
    name: str, image_size: int | Pair | None, window_size: Windows | None
) -> tuple[Swinv2PreTrainedModel, dict[str, Any]]:
    """Builds the model of a name on the meta device, and returns the fields of its description that no size changes."""
    checkpoint, is_folder = CHECKPOINTS.get(name), Path(name).expanduser().is_dir()
    if not is_folder and "/" not in name and not Path(name).exists():
        try:
            find_preset(name)
        except ValueError as error:
            raise UsageError(f"{error} Or give a model's folder, or a name on the hub such as {EXAMPLE}.") from error
    facts: dict[str, Any]
    if is_folder or (checkpoint is None and name not in PRESETS):
        config = read_config(name, None)
        is_for_videos = isinstance(config, Swinv2VideoConfig)
        default = Swinv2VideoModel if is_for_videos else Swinv2Model
        model_class = _CLASSES.get((config.architectures or [""])[0], default)
        if issubclass(model_class, Swinv2VideoPreTrainedModel) is not is_for_videos:
            model_class = default
        labels = label_names(config) if issubclass(model_class, Swinv2Classifier) else None
        place = "in a folder" if is_folder else "on the hub"
        facts = {"kind": f"{'video ' * is_for_videos}model {place}", "labels": labels}
        if isinstance(config, Swinv2VideoConfig):
            facts |= {name: getattr(config, name) for name in ("num_frames", "tubelet_size", "frame_stride")}
    elif checkpoint is not None:
        config, model_class = Swinv2Config(**checkpoint.config_fields()), Swinv2ForImageClassification
        kind = f"published checkpoint of {PRESETS[checkpoint.size].paper_name}, trained on {checkpoint.training}"
        facts = {"kind": kind, "top1": checkpoint.top1, "licence": checkpoint.licence}
    else:
        preset = PRESETS[name]
        config, model_class = Swinv2Config(**preset.config_fields()), Swinv2Model
        head = "with a classifier of 1000 classes" if preset.stated_with_classifier else "without a head"
        kind = f"size {preset.paper_name} of the papers, without a head"
        facts = {"kind": kind, "quoted": f"{preset.stated_parameters} million, {head}"}
    if image_size is not None or window_size is not None:
        try:
            config = config.resized(config.image_size if image_size is None else image_size, window_size)
        except ValueError as error:
            raise UsageError(f"{name} cannot have these sizes: {error}") from error
    build: Any = model_class
    with torch.device("meta"):
        return build(config), facts


def _count_parameters(module: nn.Module) -> int:
    """Number of parameters, for the description of a model."""
    return sum(parameter.numel() for parameter in module.parameters())
