"""Images are prepared as the source of the weights prepares them, against the libraries' own transforms."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_transform, resolve_data_config
from transformers import AutoImageProcessor

import swinv2
from swinv2.convert.processors import (
    SQUASH,
    Crop,
    _size_fields,
    crop_of,
    describe_processor,
    make_processor,
    resize_processor,
)
from swinv2.convert.write import _timm_config
from swinv2.errors import UsageError

PROCESSORS = {
    "microsoft": (256, 16, 96, {"shortest_edge": 292}, {"height": 256, "width": 256}),
    "mmpretrain": (384, 24, 96, {"height": 384, "width": 384}, None),
    "timm": (256, 16, 96, {"shortest_edge": 284}, {"height": 256, "width": 256}),
    "timm-large": (384, 24, 96, {"shortest_edge": 384}, {"height": 384, "width": 384}),
    "torchvision": (256, 8, 96, {"shortest_edge": 260}, {"height": 256, "width": 256}),
    "torchvision-base": (256, 8, 128, {"shortest_edge": 272}, {"height": 256, "width": 256}),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_images_are_prepared_as_the_source_does(name: str, tmp_path: Path) -> None:
    """Sizes of the resized image and of the crop, and that transformers opens it and makes such images."""
    size, _, embed_dim, resized, crop = PROCESSORS[name]
    fields = make_processor(name.partition("-")[0], (size, size), embed_dim, None)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert {key: value for key, value in dict(processor.size).items() if value is not None} == resized
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]
    assert list(processor.image_std) == [0.229, 0.224, 0.225]
    assert int(processor.resample) == Image.Resampling.BICUBIC
    assert (dict(processor.crop_size) if crop else None) == crop
    image = Image.new("RGB", (300, 500))
    assert processor(image, return_tensors="pt")["pixel_values"].shape == (1, 3, size, size)


def prepared(fields: dict[str, Any], image: Image.Image, folder: Path) -> torch.Tensor:
    """An image as transformers' processor with these fields prepares it."""
    folder.mkdir(exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(fields))
    return AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"][0]


def picture_of_blots() -> Image.Image:
    """300 wide and 500 high, random, smooth enough that interpolations agree and crops do not."""
    coarse = torch.rand(3, 15, 9, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse[None], (500, 300), mode="bicubic")[0].clamp(0, 1)
    return Image.fromarray((smooth * 255).byte().permute(1, 2, 0).numpy())


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Mean difference of normalised pixels."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().mean())


NEAR, FAR = 0.02, 0.2
"""Of normalised pixels: roundings of two libraries' interpolations; another part of the image."""


@pytest.mark.parametrize(
    ("size", "stated"),
    [
        (256, {"crop_pct": 0.9, "crop_mode": "center"}),
        (384, {"crop_pct": 1.0}),
        (384, {"crop_pct": 1.0, "crop_mode": "center"}),
        (384, {"crop_pct": 1.0, "crop_mode": "squash"}),
        (256, {"crop_pct": 0.8, "crop_mode": "squash"}),
        (384, None),
        (256, None),
    ],
)
def test_images_are_prepared_as_timm_does(size: int, stated: dict[str, Any] | None, tmp_path: Path) -> None:
    """Against timm's own transforms, of its settings or of those of its published weights; and back."""
    image, published = picture_of_blots(), {256: "swinv2_tiny_window8_256", 384: "swinv2_base_window12to24_192to384"}
    theirs = stated or timm.get_pretrained_cfg(published[size]).to_dict()
    settings = resolve_data_config({}, pretrained_cfg={"interpolation": "bicubic", **theirs})
    expected = create_transform(**settings | {"input_size": (3, size, size)})(image)
    fields = make_processor("timm", (size, size), 96, {"pretrained_cfg": stated} if stated else None)
    assert distance(prepared(fields, image, tmp_path), expected) < NEAR
    other = {**fields, **_size_fields((size, size), Crop(crop_of(fields).share, not crop_of(fields).squashes))}
    assert distance(prepared(other, image, tmp_path), expected) > FAR
    back = _timm_config(swinv2.Swinv2Config(image_size=size), 1000, fields)["pretrained_cfg"]
    again = create_transform(**resolve_data_config({}, pretrained_cfg=back))(image)
    assert distance(again, expected) < NEAR
    assert distance(prepared(resize_processor(fields, (size, size)), image, tmp_path), expected) < NEAR


@pytest.mark.parametrize(("name", "embed_dim"), [("T", 96), ("S", 96), ("B", 128)])
def test_images_are_prepared_as_torchvision_does(name: str, embed_dim: int, tmp_path: Path) -> None:
    """Against the transforms of torchvision's weights."""
    image = picture_of_blots()
    expected = getattr(torchvision.models, f"Swin_V2_{name}_Weights").DEFAULT.transforms()(image)
    fields = make_processor("torchvision", (256, 256), embed_dim, None)
    assert distance(prepared(fields, image, tmp_path), expected) < NEAR
    assert distance(prepared({**fields, **_size_fields((256, 256), SQUASH)}, image, tmp_path), expected) > FAR


@pytest.mark.parametrize("source", ["microsoft", "mmpretrain"])
def test_at_384_pixels_the_authors_squash(source: str) -> None:
    """timm is told so: its own way would cut the longer side."""
    fields = make_processor(source, (384, 384), 96, None)
    written = _timm_config(swinv2.Swinv2Config(image_size=384), 1000, fields)["pretrained_cfg"]
    assert (written["crop_pct"], written["crop_mode"]) == (1.0, "squash")
    assert describe_processor(fields) == "to 384 x 384 (bicubic), nothing cropped"


def test_a_crop_that_no_processor_does_is_refused() -> None:
    with pytest.raises(UsageError, match="crop_mode 'border'"):
        make_processor("timm", (384, 384), 96, {"pretrained_cfg": {"crop_mode": "border"}})
    with pytest.raises(UsageError, match=r"crop_pct 1\.2"):
        make_processor("timm", (384, 384), 96, {"pretrained_cfg": {"crop_pct": 1.2}})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"feature_extractor_type": "ViTFeatureExtractor", "size": 256}, {"height": 384, "width": 384}),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, {"shortest_edge": 438}),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, {"height": 384, "width": 384}),
        ({"size": {"shortest_edge": 280}, "crop_size": {"height": 252, "width": 252}}, {"shortest_edge": 426}),
        ({"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}, {"shortest_edge": 384}),
        ({"size": {"height": 256, "width": 256}}, {"height": 384, "width": 384}),
    ],
)
def test_processors_of_others_keep_their_share(fields: dict[str, object], expected: dict[str, int]) -> None:
    """An old one of transformers, ConvNeXt's below and from 384 pixels on, those with a crop, and one that
    squashes."""
    resized = resize_processor({**fields, "image_mean": [0.5] * 3}, (384, 384))
    assert (resized["size"], resized["image_mean"]) == (expected, [0.5] * 3)
    assert not {"feature_extractor_type", "crop_pct"} & set(resized)
