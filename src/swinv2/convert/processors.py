"""Settings of the image processor of a model.

In: a model's library and image size, and the settings that are stored with it. Out: the fields of a
`preprocessor_config.json`, and the same for another image size or another library. This module knows no image and no
tensor.

Source: microsoft/Swin-Transformer, data/build.py, configs/swinv2; mmpretrain's configurations, which do the same;
torchvision, models/swin_transformer.py, the transforms of its weights; timm, models/swin_transformer_v2.py and
data/config.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swinv2.errors import UsageError
from swinv2.lengths import Pair

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_INTERPOLATIONS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
_COMMON = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
_UNCROPPED = 384
"""From this image size on, the authors and mmpretrain squash the whole image, and timm crops with a share of 1."""


@dataclass(frozen=True)
class Crop:
    """How an image gets the size that a model takes: it is resized, and its centre is cropped.

    Attributes:
        share: Side of the centre crop divided by the side of the resized image.
        squashes: True: height and width are both resized to the same length, whatever the shape of the image. False:
            the shorter side is resized to that length, and the crop removes the rest of the longer side.
    """

    share: float
    squashes: bool


SQUASH = Crop(1.0, True)
"""The whole image, squashed."""


def make_processor(dialect: str, image_size: Pair, embed_dim: int, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Makes the settings of an image processor that prepares images as a model's library does in evaluation.

    Args:
        dialect: Name of the dialect.
        image_size: Size of the images that the model takes.
        embed_dim: Channels of the first stage; torchvision resizes differently for its base model.
        config: timm's `config.json`, if it exists.

    Returns:
        The fields of a transformers image processor.
    """
    fields: dict[str, Any] = {**_COMMON, "image_mean": MEAN, "image_std": STD, "resample": _INTERPOLATIONS["bicubic"]}
    crop = Crop(224 / 256, False) if max(image_size) < _UNCROPPED else SQUASH
    if dialect == "timm":
        stated = (config or {}).get("pretrained_cfg") or {}
        share = stated.get("crop_pct", 0.9 if max(image_size) < _UNCROPPED else 1.0)
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise UsageError(
                f"config.json next to the weights asks for crop_pct {share!r}; expected a share, such as 0.9."
            )
        mode = stated.get("crop_mode", "center")
        if mode not in ("center", "squash"):
            raise UsageError(
                f"config.json next to the weights asks for crop_mode {mode!r}, which no image processor of "
                "transformers has; expected center or squash. To ignore config.json, give the file of weights itself."
            )
        crop = Crop(float(share), mode == "squash")
        interpolation = stated.get("interpolation", "bicubic")
        fields["image_mean"], fields["image_std"] = list(stated.get("mean", MEAN)), list(stated.get("std", STD))
        if interpolation not in _INTERPOLATIONS:
            raise UsageError(
                f"config.json next to the weights asks for the interpolation {interpolation!r}; "
                f"expected one of {', '.join(_INTERPOLATIONS)}."
            )
        fields["resample"] = _INTERPOLATIONS[interpolation]
    elif dialect == "torchvision":
        crop = Crop(256 / 272 if embed_dim == 128 else 256 / 260, False)
    return {**fields, **_size_fields(image_size, crop)}


def resize_processor(fields: Mapping[str, Any], image_size: Pair) -> dict[str, Any]:
    """Changes a processor's image size; the kind and the share of its crop do not change."""
    crop = crop_of(fields)
    replaced = ("size", "crop_size", "do_center_crop", "crop_pct", "image_processor_type", "feature_extractor_type")
    kept = {name: value for name, value in fields.items() if name not in replaced}
    return {**kept, **_size_fields(image_size, crop)}


def crop_of(fields: Mapping[str, Any]) -> Crop:
    """Reads the crop from the fields of an image processor."""
    size, middle = fields.get("size"), fields.get("crop_size")
    share = fields.get("crop_pct")
    if not isinstance(size, Mapping):
        return SQUASH
    edge = size.get("shortest_edge")
    if isinstance(share, (int, float)) and 0 < share <= 1:
        # ConvNeXt's processor squashes from 384 pixels on.
        return Crop(float(share), False) if isinstance(edge, int) and edge < _UNCROPPED else SQUASH
    if not isinstance(middle, Mapping) or not fields.get("do_center_crop", isinstance(edge, int)):
        return SQUASH
    shorter = min(middle["height"], middle["width"])
    if isinstance(edge, int) and edge:
        return Crop(shorter / edge, False)
    smaller = min(size.get("height", 0), size.get("width", 0))
    return Crop(min(shorter / smaller, 1.0), True) if smaller else SQUASH


def interpolation_name(fields: Mapping[str, Any]) -> str:
    """timm's name of a processor's interpolation."""
    names = {number: name for name, number in _INTERPOLATIONS.items()}
    return names.get(int(fields.get("resample", 3)), "bicubic")


def describe_processor(fields: Mapping[str, Any]) -> str:
    """Describes a processor in a few words."""
    size, name = fields.get("size"), interpolation_name(fields)
    if isinstance(size, Mapping) and "shortest_edge" in size:
        crop = fields.get("crop_size") or {}
        return f"shorter side to {size['shortest_edge']} ({name}), middle {crop.get('height')} x {crop.get('width')}"
    if isinstance(size, Mapping) and "height" in size:
        crop = fields.get("crop_size") if crop_of(fields).share < 1 else None
        middle = f"middle {crop['height']} x {crop['width']}" if isinstance(crop, Mapping) else "nothing cropped"
        return f"to {size['height']} x {size['width']} ({name}), {middle}"
    return "as stored"


def _size_fields(image_size: Pair, crop: Crop) -> dict[str, Any]:
    """The sizes among the fields of an image processor, which follow from image size and crop."""
    height, width = image_size
    # Only a square size is cropped from the centre; for a rectangular size the whole image is squashed.
    if crop == SQUASH or height != width:
        return {"image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}}
    # Rounded down, as in all implementations. The small term is needed because 256 / (256 / 260) is less than 260.
    side = int(height / crop.share + 1e-6)
    return {
        "image_processor_type": "BitImageProcessor",
        "size": {"height": side, "width": side} if crop.squashes else {"shortest_edge": side},
        "crop_size": {"height": height, "width": width},
        "do_center_crop": True,
        "do_convert_rgb": True,
    }
