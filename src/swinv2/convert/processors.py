"""How images are to be prepared for a model.

In: where a model is from, its size, and what lies beside it. Out: the fields of a `preprocessor_config.json`, and the
same for another image size or another library. This module knows no image and no tensor.

Source: microsoft/Swin-Transformer, data/build.py, configs/swinv2; mmpretrain's configurations, which do the same;
torchvision, models/swin_transformer.py, the transforms of its weights; timm, models/swin_transformer_v2.py and
data/config.py.
"""

from collections.abc import Mapping
from typing import Any

from swinv2.config import Pair
from swinv2.errors import UsageError

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_INTERPOLATIONS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
_COMMON = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
_UNCROPPED = 384
"""From this size on the authors, mmpretrain and timm's settings for their weights resize without cropping."""


def make_processor(dialect: str, image_size: Pair, embed_dim: int, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Prepares images as the source of a model does for its evaluation.

    Args:
        dialect: Name of the dialect.
        image_size: Size of the images that the model takes.
        embed_dim: Channels of the first stage; torchvision resizes in another way for its base model.
        config: timm's `config.json`, if there is one.

    Returns:
        The fields of an image processor of transformers.
    """
    fields: dict[str, Any] = {**_COMMON, "image_mean": MEAN, "image_std": STD, "resample": _INTERPOLATIONS["bicubic"]}
    ratio = 224 / 256 if max(image_size) < _UNCROPPED else 1.0
    if dialect == "timm":
        ratio = 0.9 if max(image_size) < _UNCROPPED else 1.0
        stated = (config or {}).get("pretrained_cfg") or {}
        ratio = stated.get("crop_pct", ratio)
        interpolation = stated.get("interpolation", "bicubic")
        fields["image_mean"], fields["image_std"] = list(stated.get("mean", MEAN)), list(stated.get("std", STD))
        if interpolation not in _INTERPOLATIONS or not isinstance(ratio, (int, float)) or not 0 < ratio <= 1:
            raise UsageError(
                f"config.json beside the weights asks for crop_pct {ratio!r} and interpolation {interpolation!r}; "
                f"expected a share and one of {', '.join(_INTERPOLATIONS)}."
            )
        fields["resample"] = _INTERPOLATIONS[interpolation]
    elif dialect == "torchvision":
        ratio = 256 / 272 if embed_dim == 128 else 256 / 260
    return {**fields, **_sizes(image_size, ratio)}


def resize_processor(fields: Mapping[str, Any], image_size: Pair) -> dict[str, Any]:
    """The same preparation for another image size: the same share of the image is cropped away.

    Args:
        fields: Fields of an image processor.
        image_size: The new size.
    """
    ratio = crop_ratio(fields)
    replaced = ("size", "crop_size", "do_center_crop", "crop_pct", "image_processor_type", "feature_extractor_type")
    kept = {name: value for name, value in fields.items() if name not in replaced}
    return {**kept, **_sizes(image_size, ratio)}


def crop_ratio(fields: Mapping[str, Any]) -> float:
    """Side of the crop over the side of what it is cropped from; 1 without a crop."""
    size, crop = fields.get("size"), fields.get("crop_size")
    share = fields.get("crop_pct")
    if isinstance(share, (int, float)) and 0 < share <= 1 and isinstance(size, Mapping):
        # ConvNeXt's processor, which does not crop from 384 pixels on.
        return float(share) if size.get("shortest_edge", _UNCROPPED) < _UNCROPPED else 1.0
    if not isinstance(size, Mapping) or not isinstance(crop, Mapping) or not fields.get("do_center_crop", True):
        return 1.0
    edge = size.get("shortest_edge")
    return min(crop["height"], crop["width"]) / edge if isinstance(edge, int) and edge else 1.0


def interpolation_name(fields: Mapping[str, Any]) -> str:
    """What the interpolation of a processor is called by timm."""
    names = {number: name for name, number in _INTERPOLATIONS.items()}
    return names.get(int(fields.get("resample", 3)), "bicubic")


def describe_processor(fields: Mapping[str, Any]) -> str:
    """A processor in a few words."""
    size, name = fields.get("size"), interpolation_name(fields)
    if isinstance(size, Mapping) and "shortest_edge" in size:
        crop = fields.get("crop_size") or {}
        return f"shorter side to {size['shortest_edge']} ({name}), middle {crop.get('height')} x {crop.get('width')}"
    if isinstance(size, Mapping) and "height" in size:
        return f"to {size['height']} x {size['width']} ({name}), nothing cropped"
    return "as stored"


def _sizes(image_size: Pair, ratio: float) -> dict[str, Any]:
    height, width = image_size
    # A crop keeps the ratio of the sides, so it is for squares; another shape is resized to as it is.
    if ratio == 1.0 or height != width:
        return {"image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}}
    return {
        "image_processor_type": "BitImageProcessor",
        # Rounded down, as everyone does; a little is added since 256 / (256 / 260) is less than 260.
        "size": {"shortest_edge": int(height / ratio + 1e-6)},
        "crop_size": {"height": height, "width": width},
        "do_center_crop": True,
        "do_convert_rgb": True,
    }
