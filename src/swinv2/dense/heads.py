"""The heads of other libraries on a Swin V2 backbone.

In: a backbone, and the names of the classes. Out: a model of transformers or torchvision with this backbone. Losses,
matching and post-processing are those of the library.
"""

import copy
import dataclasses
import difflib
import importlib.util
import inspect
import logging
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
    UperNetConfig,
)

from swinv2.auto import register
from swinv2.dense.backbone import load_backbone
from swinv2.dense.detectors import SwinRCNN, SwinRCNNConfig
from swinv2.dense.saved import DETECTION, INSTANCES, SEGMENTATION
from swinv2.dense.upernet import UperNetForSemanticSegmentation
from swinv2.errors import UsageError
from swinv2.heads import Swinv2Backbone
from swinv2.lengths import Pair, Windows, as_pair

logger = logging.getLogger(__name__)

STAGES = ("stage1", "stage2", "stage3", "stage4")
"""Maps of strides 4, 8, 16 and 32 with patches of 4."""


DECIDED = {"backbone", "backbone_config", "with_masks", "torchvision", "num_classes", "kwargs", "rest"}
"""Arguments of the detectors' classes that are no settings of a head."""

MOST_QUERIES = 300
"""RT-DETR's number of objects in an image; fewer if the maps of images of the configured size have fewer tokens."""


def from_backbone(
    checkpoint: str | os.PathLike[str],
    head: str,
    labels: Sequence[str],
    image_size: int | Pair | None = None,
    window_size: Windows | None = None,
    *,
    norm_feature_maps: bool = True,
    drop_path_rate: float | None = None,
    trained: Mapping[str, Any] | None = None,
    **fields: Any,
) -> nn.Module:
    """Builds a model for a dense task: the backbone of a checkpoint, and a new head.

    A configuration of transformers, such as `UperNetConfig(backbone_config=...)`, builds a backbone with random
    weights, also if `use_pretrained_backbone` is given. Here every tensor of its embedding, blocks and mergings is the
    checkpoint's.

    Args:
        checkpoint, image_size, window_size, norm_feature_maps, drop_path_rate: See `load_backbone`.
        head: One of `HEADS`.
        labels: Names of the classes, without "background" or "void". The first one has number 0; in detectors of
            torchvision 1, because 0 is the background there.
        trained: Facts about the training that the checkpoint does not show, such as `trained_window_size`; see
            `swinv2.load`.
        fields: Settings of the head: of its configuration in transformers, of its model in torchvision, or of
            `SwinRCNNConfig`. Detectors of torchvision resize images by their own `min_size` and `max_size`, 800 and
            1333.

    Returns:
        The model in training mode, on the CPU, in fp32. The classes of transformers keep their names and files;
        torchvision's are a `SwinRCNN`. `load_dense` loads a saved one.

    Raises:
        UsageError: There is no such head or setting, or the checkpoint is not complete.

    Example:

        >>> from swinv2.dense import from_backbone
        >>> from swinv2.predict.shipped import shipped_model
        >>> model = from_backbone(shipped_model(), "upernet", ["road", "sky"], hidden_size=32)
        >>> type(model).__name__, type(model.backbone).__module__
        ('UperNetForSemanticSegmentation', 'swinv2.heads')
    """
    _check_head(head)
    backbone = load_backbone(
        checkpoint,
        image_size,
        window_size,
        out_features=maps_of(head),
        norm_feature_maps=norm_feature_maps,
        drop_path_rate=drop_path_rate,
        **(trained or {}),
    )
    return add_head(backbone, head, labels, **fields)


def add_head(backbone: Swinv2Backbone, head: str, labels: Sequence[str], **fields: Any) -> nn.Module:
    """Builds a model for a dense task around a backbone, which it takes over as it is; see `from_backbone`.

    Raises:
        UsageError: There is no such head, or the backbone has not the maps that it needs.
    """
    _check_head(head)
    is_list = isinstance(labels, Sequence) and not isinstance(labels, str)
    if not is_list or len(set(labels)) < len(labels) or not labels:
        raise UsageError(f"the labels are {labels!r}; expected a list of at least one name, and each once.")
    needed = maps_of(head)
    if tuple(backbone.out_features) != needed:
        raise UsageError(
            f"the head {head!r} needs the maps {', '.join(needed)}, and the backbone returns "
            f"{', '.join(backbone.out_features)}; load it with out_features={list(needed)}."
        )
    model = HEADS[head](backbone, labels, fields)
    new = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in backbone.encoder.parameters())
    new -= sum(p.numel() for p in backbone.embeddings.parameters())
    logger.info(f"new parameters with random weights: {new:,}, of the head {head!r} and the norms of the maps")
    return model.train()


def _check_head(head: str) -> None:
    """Raises an error unless there is such a head."""
    if head not in HEADS:
        raise UsageError(f"there is no head {head!r}; expected one of {', '.join(HEADS)}.")


def _check_scipy() -> None:
    """Raises an error unless SciPy is installed, which matches queries and objects in the loss."""
    if importlib.util.find_spec("scipy") is None:
        raise UsageError("the loss of this head needs SciPy; install it by: pip install 'swinv2[dense]'.")


def _check_fields(fields: Collection[str], known: Collection[str]) -> None:
    """Raises an error unless a head has these settings; the libraries ignore others."""
    for name in fields:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            raise UsageError(f"the head has no setting {name!r}{f'; did you mean {close[0]!r}?' if close else '.'}")


def maps_of(head: str) -> tuple[str, ...]:
    """The maps that a head needs."""
    return STAGES[1:] if head == "rt_detr" else STAGES


def _upernet(backbone: Swinv2Backbone, labels: Sequence[str], fields: dict[str, Any]) -> nn.Module:
    """UperNet, for semantic segmentation. Source: Xiao et al., Unified Perceptual Parsing, 2018."""
    # The auxiliary head reads the map of the third stage.
    fields = {"auxiliary_in_channels": backbone.channels[2], **fields}
    return _of_transformers(UperNetForSemanticSegmentation, UperNetConfig, backbone, labels, fields)


def _mask2former(backbone: Swinv2Backbone, labels: Sequence[str], fields: dict[str, Any]) -> nn.Module:
    """Mask2Former, for semantic, instance and panoptic segmentation. Source: Cheng et al., 2022."""
    _check_scipy()
    fields = {"feature_strides": _strides(backbone), **fields}
    return _of_transformers(Mask2FormerForUniversalSegmentation, Mask2FormerConfig, backbone, labels, fields)


def _rt_detr(backbone: Swinv2Backbone, labels: Sequence[str], fields: dict[str, Any]) -> nn.Module:
    """RT-DETR v2, for detection. Source: Lv et al., RT-DETRv2, 2024."""
    _check_scipy()
    # Each query begins at a token of the maps, so an image must have at least as many.
    tokens = sum(math.prod(stage.grid) for stage in backbone.config.stages()[1:])
    fields = {
        "encoder_in_channels": list(backbone.channels),
        "feat_strides": _strides(backbone),
        "num_queries": min(MOST_QUERIES, tokens),
        **fields,
    }
    return _of_transformers(RTDetrV2ForObjectDetection, RTDetrV2Config, backbone, labels, fields)


def _faster_rcnn(backbone: Swinv2Backbone, labels: Sequence[str], fields: dict[str, Any]) -> nn.Module:
    """Faster R-CNN with a feature pyramid, for detection."""
    return _of_torchvision(backbone, labels, fields, with_masks=False)


def _mask_rcnn(backbone: Swinv2Backbone, labels: Sequence[str], fields: dict[str, Any]) -> nn.Module:
    """Mask R-CNN with a feature pyramid, for instance segmentation."""
    return _of_torchvision(backbone, labels, fields, with_masks=True)


def _of_torchvision(
    backbone: Swinv2Backbone, labels: Sequence[str], fields: dict[str, Any], *, with_masks: bool
) -> nn.Module:
    """A detector of torchvision around a backbone."""
    theirs = {*inspect.signature(FasterRCNN).parameters, *inspect.signature(MaskRCNN).parameters}
    own = {name: fields[name] for name in fields if name in inspect.signature(SwinRCNNConfig).parameters}
    named: Any = {**own, **_names(labels)}
    _check_fields(fields, {*theirs, *inspect.signature(SwinRCNNConfig).parameters} - DECIDED)
    rest = {name: value for name, value in fields.items() if name not in own}
    config = SwinRCNNConfig(copy.deepcopy(backbone.config), with_masks, torchvision=rest, **named)
    return SwinRCNN(config, backbone)


HEADS: dict[str, Callable[[Swinv2Backbone, Sequence[str], dict[str, Any]], nn.Module]] = {
    "upernet": _upernet,
    "mask2former": _mask2former,
    "rt_detr": _rt_detr,
    "faster_rcnn": _faster_rcnn,
    "mask_rcnn": _mask_rcnn,
}
"""The heads by name; torchvision's R-CNNs count the background as label 0."""


HEADS_OF = {
    SEGMENTATION: ("upernet", "mask2former"),
    INSTANCES: ("mask_rcnn", "mask2former"),
    DETECTION: ("faster_rcnn", "rt_detr"),
}
"""The heads of each task, the usual one first."""


def _strides(backbone: Swinv2Backbone) -> list[int]:
    """The strides in pixels of the backbone's maps."""
    patch = max(as_pair("patch_size", backbone.config.patch_size))
    return [patch << (backbone.stage_names.index(name) - 1) for name in backbone.out_features]


def _names(labels: Sequence[str]) -> dict[str, dict[Any, Any]]:
    """The names of the classes as fields of a configuration."""
    return {"id2label": dict(enumerate(labels)), "label2id": {name: index for index, name in enumerate(labels)}}


def _of_transformers(
    model_class: type[PreTrainedModel],
    config_class: Callable[..., PreTrainedConfig],
    backbone: Swinv2Backbone,
    labels: Sequence[str],
    fields: dict[str, Any],
) -> nn.Module:
    """A model of transformers around a backbone."""
    _check_fields(fields, {each.name for each in dataclasses.fields(config_class)} - {"backbone_config"})  # type: ignore[arg-type]
    register()
    config = config_class(backbone_config=copy.deepcopy(backbone.config), **_names(labels), **fields)
    model = model_class(config)
    # The backbone can, whatever the head says.
    model.supports_gradient_checkpointing = True
    # It has built a backbone of its own, with random weights.
    (path,) = (name for name, module in model.named_modules() if isinstance(module, Swinv2Backbone))
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, backbone)
    return model
