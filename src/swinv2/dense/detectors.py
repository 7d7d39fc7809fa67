"""torchvision's detectors with our backbone.

In: a backbone. Out: Faster and Mask R-CNN in which the padding of a batch changes no answer. torchvision pads smaller
images and tells neither the backbone nor the feature pyramid; and a box may begin in the padding. (In training it still
may: the network that proposes boxes then learns that those are background.)
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from swinv2.batches import run_by_size
from swinv2.heads import Swinv2Backbone
from swinv2.lengths import Pair


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


class _Detector(GeneralizedRCNN):
    """What both detectors share: the pyramid knows the sizes of the images in a batch, and in evaluation, images of one
    size run together."""

    labels: tuple[str, ...]

    def forward(self, images: Sequence[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """See torchvision: losses in training, one dictionary for each image in evaluation."""
        if self.training:
            return self._run(images, _checked(targets, len(images), len(self.labels)))
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(tuple(image.shape), []).append(index)
        found: dict[int, dict[str, Tensor]] = {}
        for members in groups.values():
            found |= dict(zip(members, self._run([images[index] for index in members], None), strict=True))
        return [found[index] for index in range(len(images))]

    def _run(self, images: Sequence[Tensor], targets: list[dict[str, Tensor]] | None) -> Any:
        """torchvision's steps, with the sizes of the images for the pyramid."""
        before = [(image.shape[-2], image.shape[-1]) for image in images]
        transform: Any = self.transform
        batch, targets = transform(list(images), targets)
        maps = self.backbone(batch.tensors, batch.image_sizes)
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


class SwinFasterRCNN(_Detector, FasterRCNN):
    """torchvision's Faster R-CNN.

    Args:
        backbone: The backbone with its pyramid.
        labels: Names of the classes; the number of the first one is 1.
        fields: Further arguments of torchvision's class.

    Source:
        Ren et al., Faster R-CNN, 2015.
    """

    def __init__(self, backbone: FeaturePyramid, labels: Sequence[str], **fields: Any) -> None:
        super().__init__(backbone, len(labels) + 1, **fields)
        self.labels = tuple(labels)


class SwinMaskRCNN(_Detector, MaskRCNN):
    """torchvision's Mask R-CNN; the arguments are those of `SwinFasterRCNN`.

    Source:
        He et al., Mask R-CNN, 2017.
    """

    def __init__(self, backbone: FeaturePyramid, labels: Sequence[str], **fields: Any) -> None:
        super().__init__(backbone, len(labels) + 1, **fields)
        self.labels = tuple(labels)
