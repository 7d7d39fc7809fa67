"""torchvision's detectors with our backbone.

In: a backbone. Out: Faster and Mask R-CNN in which the padding of a batch changes no answer. torchvision pads smaller
images and tells neither the backbone nor the feature pyramid; and a box may begin in the padding.
"""

from collections import OrderedDict
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from swinv2.heads import Swinv2Backbone, run_by_size
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

    def forward(self, images: Float[Tensor, "B channels height width"]) -> dict[str, Tensor]:
        """The levels (B, out_channels, H, W) by the names that torchvision expects: "0", "1", ... and "pool".

        An image in a batch of `SizedTransform` has the levels that it has alone, with zeros beyond them.
        """
        size: Pair = images.shape[2], images.shape[3]
        sizes: list[Pair] = getattr(images, "image_sizes", [size] * len(images))
        grids = [self.body.grids(size)[name] for name in self.body.out_features]
        # The level that is made by pooling.
        grids.append((-(-grids[-1][0] // 2), -(-grids[-1][1] // 2)))
        names = [*map(str, range(len(self.body.out_features))), "pool"]
        return OrderedDict(zip(names, run_by_size(self._levels, images, sizes, grids), strict=True))

    def _levels(self, images: Tensor) -> list[Tensor]:
        """The levels of images of one size."""
        maps = self.body(images, return_dict=True).feature_maps
        return list(self.fpn(OrderedDict((str(level), each) for level, each in enumerate(maps))).values())


class SizedTransform(GeneralizedRCNNTransform):
    """torchvision's transform of images for a detector; its batch also has the sizes of the images."""

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        """Pads images to a batch, whose attribute `image_sizes` has their sizes (height, width)."""
        batch = super().batch_images(images, size_divisible)
        batch.image_sizes = [(image.shape[1], image.shape[2]) for image in images]  # type: ignore[attr-defined]
        return batch


class _Detector(GeneralizedRCNN):
    """What both detectors share: in evaluation, images of one size run together; in training, the transform tells the
    pyramid the sizes."""

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """See torchvision: losses in training, one dictionary for each image in evaluation."""
        sizes = [tuple(image.shape) for image in images]
        if self.training or len(set(sizes)) < 2:
            return super().forward(images, targets)
        found: dict[int, dict[str, Tensor]] = {}
        for size in dict.fromkeys(sizes):
            members = [index for index, each in enumerate(sizes) if each == size]
            answers: Any = super().forward([images[index] for index in members])
            found |= dict(zip(members, answers, strict=True))
        return [found[index] for index in range(len(images))]

    def _tell_sizes(self) -> None:
        """Replaces the transform by one that tells the sizes of the images."""
        old: Any = self.transform
        self.transform = SizedTransform(
            old.min_size,
            old.max_size,
            old.image_mean,
            old.image_std,
            old.size_divisible,
            old.fixed_size,
            _skip_resize=old._skip_resize,
        )


class SwinFasterRCNN(_Detector, FasterRCNN):
    """torchvision's Faster R-CNN; the arguments are torchvision's.

    Source:
        Ren et al., Faster R-CNN, 2015.
    """

    def __init__(self, backbone: FeaturePyramid, num_classes: int, **fields: Any) -> None:
        super().__init__(backbone, num_classes, **fields)
        self._tell_sizes()


class SwinMaskRCNN(_Detector, MaskRCNN):
    """torchvision's Mask R-CNN; the arguments are torchvision's.

    Source:
        He et al., Mask R-CNN, 2017.
    """

    def __init__(self, backbone: FeaturePyramid, num_classes: int, **fields: Any) -> None:
        super().__init__(backbone, num_classes, **fields)
        self._tell_sizes()
