"""torchvision's detectors with our backbone.

In: a backbone. Out: Faster and Mask R-CNN in which the padding of a batch changes no answer, with the files of
transformers. torchvision pads smaller images and tells neither the backbone nor the feature pyramid; and a box may
begin in the padding. (In training it still may: the network that proposes boxes then learns that those are background.)
"""

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from transformers import PreTrainedConfig, PreTrainedModel

from swinv2.batches import run_by_size
from swinv2.config import Swinv2Config
from swinv2.heads import Swinv2Backbone
from swinv2.lengths import Pair
from swinv2.loading import label_names

MODEL_TYPE = "swinv2_rcnn"
"""The name of `SwinRCNN` in the configurations of saved models."""

ROI_SIDE = 7
"""Side of the features of a box, as in torchvision."""


class FeaturePyramid(nn.Module):
    """A backbone with torchvision's feature pyramid network, as the backbone of torchvision's detectors.

    Args:
        backbone: Its maps become levels of the pyramid; one more level is made by pooling.
        out_channels: Channels of each level.

    Source:
        Lin et al., Feature Pyramid Networks for Object Detection, 2017.
    """

    def __init__(self, backbone: Swinv2Backbone, out_channels: int = 256) -> None:
        super().__init__()
        self.body = backbone
        self.fpn = FeaturePyramidNetwork(list(backbone.channels), out_channels, LastLevelMaxPool())
        self.out_channels = out_channels

    def forward(
        self, images: Float[Tensor, "B channels height width"], sizes: Sequence[Pair] | None = None
    ) -> dict[str, Tensor]:
        """The levels (B, out_channels, H, W) by the names that torchvision expects: "0", "1", ... and "pool".

        Args:
            images: A batch.
            sizes: The size (height, width) of each image without its padding; None if there is none. Each image has the
                levels that it has alone, with zeros beyond them.
        """
        size: Pair = images.shape[2], images.shape[3]
        if sizes is None:
            sizes = [size] * len(images)
        grids = [self.body.grids(size)[name] for name in self.body.out_features]
        # The level that is made by pooling.
        grids.append((-(-grids[-1][0] // 2), -(-grids[-1][1] // 2)))
        names = [*map(str, range(len(self.body.out_features))), "pool"]
        return OrderedDict(zip(names, run_by_size(self._levels, images, sizes, grids), strict=True))

    def _levels(self, images: Tensor) -> list[Tensor]:
        """The levels of images of one size."""
        maps = self.body(images, interpolate_pos_encoding=True, return_dict=True).feature_maps
        return list(self.fpn(OrderedDict((str(level), each) for level, each in enumerate(maps))).values())


class _NotRounded(nn.Module):
    """A layer that answers in at least 32 bits, also under autocast. Otherwise torchvision would compute with boxes of
    16 bits: corners would be rounded, and a small box would have no area."""

    def forward(self, x: Any) -> Any:
        """See torchvision."""
        return _in_32_bits(super().forward(x))


def _in_32_bits(answer: Any) -> Any:
    """A tensor in at least 32 bits, or a list or a tuple of such answers."""
    if isinstance(answer, Tensor):
        return answer.to(torch.promote_types(answer.dtype, torch.float32))
    return type(answer)(map(_in_32_bits, answer))


class _ProposalHead(_NotRounded, RPNHead):
    pass


class _BoxPredictor(_NotRounded, FastRCNNPredictor):
    pass


class _MaskPredictor(_NotRounded, MaskRCNNPredictor):
    pass


def heads_of_boxes(channels: int, box_channels: int, classes: int, anchors: int) -> dict[str, nn.Module]:
    """torchvision's heads for proposals and boxes, as arguments of its R-CNNs. They are safe under autocast.

    Args:
        channels: Channels of each level of the pyramid.
        box_channels: Channels of the two hidden layers.
        classes: Number of classes, with the background.
        anchors: Number of anchors at a position.
    """
    return {
        "rpn_head": _ProposalHead(channels, anchors),
        "box_head": TwoMLPHead(channels * ROI_SIDE**2, box_channels),
        "box_predictor": _BoxPredictor(box_channels, classes),
    }


class _Detector(GeneralizedRCNN):
    """What both detectors share: the pyramid knows the sizes of the images in a batch, and in evaluation, images of one
    size run together."""

    def forward(self, images: Sequence[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """See torchvision: losses in training, one dictionary for each image in evaluation."""
        if self.training:
            head: Any = self.roi_heads.box_predictor
            # One more class is the background.
            return self._run(images, _checked(targets, len(images), head.cls_score.out_features - 1))
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(tuple(image.shape), []).append(index)
        found: dict[int, dict[str, Tensor]] = {}
        for members in groups.values():
            found |= dict(zip(members, self._run([images[index] for index in members], None), strict=True))
        return [found[index] for index in range(len(images))]

    def _run(self, images: Sequence[Tensor], targets: list[dict[str, Tensor]] | None) -> Any:
        """torchvision's steps, with the sizes of the images for the pyramid. Anchors and boxes have the precision of
        the maps; it is that of the images."""
        before = [(image.shape[-2], image.shape[-1]) for image in images]
        transform: Any = self.transform
        batch, targets = transform(list(images), targets)
        pixels = batch.tensors
        maps = {name: each.to(pixels.dtype) for name, each in self.backbone(pixels, batch.image_sizes).items()}
        proposals, proposal_losses = self.rpn(batch, maps, targets)
        found, losses = self.roi_heads(maps, proposals, batch.image_sizes, targets)
        if self.training:
            return {**losses, **proposal_losses}
        return transform.postprocess(found, batch.image_sizes, before)


def _checked(targets: list[dict[str, Tensor]] | None, count: int, classes: int) -> list[dict[str, Tensor]]:
    """The targets of a detector's training.

    Args:
        targets: For each image its boxes, labels and so on.
        count: Number of images.
        classes: Number of classes, without the background.

    Raises:
        ValueError: There is none for an image, or a box or a label is impossible.
    """
    if targets is None or len(targets) != count:
        raise ValueError(f"targets are missing: training needs one dictionary for each of the {count} images.")
    for index, target in enumerate(targets):
        boxes = target["boxes"]
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"the boxes of image {index} have shape {tuple(boxes.shape)}; expected (boxes, 4).")
        labels = target["labels"]
        if len(labels) and not 1 <= int(labels.min()) <= int(labels.max()) <= classes:
            raise ValueError(
                f"the labels of image {index} are {labels.unique().tolist()}; expected 1 to {classes}: 0 is the "
                "background."
            )
        wrong = (boxes[:, 2:] <= boxes[:, :2]).any(1)
        if wrong.any():
            raise ValueError(
                f"the box {boxes[wrong][0].tolist()} of image {index} has no area; expected left, top, right, bottom."
            )
    return targets


class _FasterRCNN(_Detector, FasterRCNN):
    """torchvision's Faster R-CNN. Source: Ren et al., 2015."""


class _MaskRCNN(_Detector, MaskRCNN):
    """torchvision's Mask R-CNN. Source: He et al., 2017."""


class SwinRCNNConfig(PreTrainedConfig):
    """The configuration of a `SwinRCNN`.

    Args:
        backbone_config: That of the backbone, or its fields.
        with_masks: Whether it is a Mask R-CNN.
        pyramid_channels: Channels of each level of the feature pyramid, and of the head of the masks.
        box_channels: Channels of the two hidden layers of the head of the boxes.
        anchor_sizes: Side in pixels of the square anchor of each of the five levels.
        aspect_ratios: Height / width of the anchors.
        torchvision: Further arguments of torchvision's class, such as `min_size` and `image_mean`.
        rest: See `PreTrainedConfig`; `id2label` has the classes, from 0.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        backbone_config: Swinv2Config | dict[str, Any] | None = None,
        with_masks: bool = False,
        pyramid_channels: int = 256,
        box_channels: int = 1024,
        anchor_sizes: Sequence[int] = (32, 64, 128, 256, 512),
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        torchvision: Mapping[str, Any] | None = None,
        **rest: Any,
    ) -> None:
        if not isinstance(backbone_config, Swinv2Config):
            backbone_config = Swinv2Config(**(backbone_config or {}))
        self.backbone_config = backbone_config
        self.with_masks, self.pyramid_channels, self.box_channels = with_masks, pyramid_channels, box_channels
        self.anchor_sizes, self.aspect_ratios = list(anchor_sizes), list(aspect_ratios)
        self.torchvision = dict(torchvision or {})
        super().__init__(**rest)


class SwinRCNN(PreTrainedModel):
    """torchvision's Faster or Mask R-CNN with our backbone. `save_pretrained` and `from_pretrained` are transformers'.

    Args:
        config: Its configuration.
        backbone: The backbone; None builds a new one.

    Attributes:
        labels: Names of the classes; the number of the first one is 1.
    """

    config_class = SwinRCNNConfig
    base_model_prefix = "detector"
    main_input_name = "images"
    supports_gradient_checkpointing = True

    def __init__(self, config: SwinRCNNConfig, backbone: Swinv2Backbone | None = None) -> None:
        super().__init__(config)
        backbone = backbone or Swinv2Backbone(copy.deepcopy(config.backbone_config))
        self.labels: tuple[str, ...] = tuple(label_names(config))
        channels, classes = config.pyramid_channels, len(self.labels) + 1
        # Not on the device "meta", where `from_pretrained` builds models: anchors are no weights.
        with torch.device("cpu"):
            sizes = tuple((size,) for size in config.anchor_sizes)
            anchors = AnchorGenerator(sizes, (tuple(config.aspect_ratios),) * len(sizes))
        fields: dict[str, Any] = {
            "rpn_anchor_generator": anchors,
            **heads_of_boxes(channels, config.box_channels, classes, anchors.num_anchors_per_location()[0]),
        }
        if config.with_masks:
            fields["mask_head"] = MaskRCNNHeads(channels, (channels,) * 4, 1)
            fields["mask_predictor"] = _MaskPredictor(channels, channels, classes)
        kind = _MaskRCNN if config.with_masks else _FasterRCNN
        self.detector = kind(FeaturePyramid(backbone, channels), **{**fields, **config.torchvision})
        self.post_init()

    def keeps_pixels_of(self, image: Tensor) -> bool:
        """Whether an image still has pixels after torchvision has resized it; a line of a few pixels has not."""
        transform: Any = self.detector.transform
        height, width = image.shape[-2:]
        scale = min(transform.min_size[-1] / min(height, width), transform.max_size / max(height, width))
        return min(height, width) * scale >= 1.0

    def set_images(
        self, min_size: int | Sequence[int], max_size: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        """Sets how images are resized and normalised, also in the configuration.

        Args:
            min_size: The shorter side in pixels, or several to draw from in training.
            max_size: The longest side in pixels.
            mean, std: Mean and standard deviation of each channel, for values from 0 to 1.
        """
        transform: Any = self.detector.transform
        sizes = (min_size,) if isinstance(min_size, int) else tuple(min_size)
        transform.min_size, transform.max_size = sizes, max_size
        transform.image_mean, transform.image_std = list(mean), list(std)
        numbers = {"min_size": list(sizes), "max_size": max_size, "image_mean": list(mean), "image_std": list(std)}
        self.config.torchvision = {**self.config.torchvision, **numbers}

    def _init_weights(self, module: nn.Module) -> None:
        """torchvision's modules and the backbone have their initial values already."""

    def forward(self, images: Sequence[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """The losses by name in training; otherwise, for each image, its boxes, labels and scores, and masks.

        Args:
            images: (channels, height, width) each, from 0 to 1, of any size; it resizes and normalises them itself.
            targets: In training, for each image `boxes` (objects, 4), in pixels: left, top, right, bottom; `labels`
                (objects,) from 1; for Mask R-CNN `masks` (objects, height, width), 0 or 1.
        """
        return self.detector(images, targets)
