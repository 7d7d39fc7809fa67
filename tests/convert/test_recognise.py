"""What is known of a model without a configuration: asked for where nothing tells it, refused where two disagree."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from transformers import AutoImageProcessor

import foreign
import swinv2
from foreign import small_sizes
from swinv2.convert import convert
from swinv2.convert.labels import label_names
from swinv2.convert.processors import (
    SQUASH,
    Crop,
    _sizes,
    crop_of,
    describe_processor,
    make_processor,
    resize_processor,
)
from swinv2.convert.sizes.metadata import SizeHints, read_name
from swinv2.convert.write import _timm_config
from swinv2.errors import UsageError


def saved(tensors: Any, path: Path) -> str:
    torch.save(tensors, path)
    return str(path)


def test_windows_that_nothing_tells_are_asked_for(tmp_path: Path) -> None:
    """A timm file by itself: the sentence names the options, and that they are not those for another size."""
    source = saved(foreign.timm_network(small_sizes()).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UsageError, match=r"the window that these weights .* give --trained-window-size"):
        convert(source, None)
    with pytest.raises(UsageError, match=r"the window that these weights .* give --trained-window-size"):
        convert(source, None, image_size=64, window_size=4)
    with pytest.raises(UsageError, match=r"the image size .* give --trained-image-size"):
        convert(source, None, trained_window_size=4)
    report = convert(source, None, trained_window_size=4, trained_image_size=64)
    assert report.sources["window"] == "given"
    assert any("if it was not, give --pretrained-window-sizes" in note for note in report.notes)


def test_a_published_name_tells_them(tmp_path: Path) -> None:
    """The file's, or that of the folder around a name that says nothing."""
    sizes = small_sizes(image_size=256, window_size=16)
    tensors = foreign.timm_network(sizes).state_dict()
    folder = tmp_path / "swinv2_x_window12to16_192to256.mine"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    for source in (saved(tensors, tmp_path / "swinv2_x_window12to16_192to256.pth"), str(folder)):
        report = convert(source, None)
        assert (report.image_size, report.window_size) == ((256, 256), 16)
        assert [stage.learned_window for stage in report.stages] == [(12, 12), (12, 12)]
        assert report.sources["window"].startswith("the name 'swinv2_x_window12to16_192to256")


@pytest.mark.parametrize("name", ["swinv2_x_window0_64", "swinv2_x_window8to00_64", "swinv2-x-w0_3rdparty_in1k-64px"])
def test_a_size_of_zero_is_no_published_name(name: str) -> None:
    assert read_name(name, 4) == SizeHints()


def test_an_authors_file_without_masks(tmp_path: Path) -> None:
    """The masks show the image size; where all were left out it is asked for, and not made up."""
    file = foreign.microsoft_file(small_sizes())
    bare = {name: tensor for name, tensor in file.items() if "attn_mask" not in name}
    assert len(bare) == len(file) - 2
    source = saved(bare, tmp_path / "weights.pth")
    with pytest.raises(UsageError, match=r"only the masks of shifted blocks show it.* give --trained-image-size"):
        convert(source, None)
    report = convert(source, None, trained_image_size=64)
    assert (report.image_size, report.window_size) == ((64, 64), 4)
    # Clipped windows show it too.
    file = foreign.microsoft_file(small_sizes(window_size=16))
    assert convert(saved(file, tmp_path / "clipped.pth"), None).image_size == (64, 64)


def test_the_tables_are_believed_more_than_the_name(tmp_path: Path) -> None:
    file = foreign.microsoft_file(small_sizes(window_size=8, pretrained=(4, 3)))
    report = convert(saved(file, tmp_path / "swinv2_tiny_patch4_window16_256.pth"), None)
    assert (report.image_size, report.window_size) == ((64, 64), 8)
    assert any("windows of 16 at 256 x 256 pixels; the file does not agree" in note for note in report.notes)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"trained_window_size": 8}, "tables in the file are of windows of 4 x 4 in stage 1"),
        ({"trained_image_size": 128}, "the mask in the file is of 16 windows in stage 1"),
        ({"pretrained_window_sizes": [6, 6]}, "learned in windows of 3 x 3 in stage 1"),
        ({"pretrained_window_sizes": [6]}, "expected one for each of the 2 stages"),
        ({"trained_window_size": [4, 4, 4]}, r"trained_window_size is \[4, 4, 4\]; .* one for each of the 2 stages"),
        ({"trained_window_size": (4, 8)}, "tables in the file are of windows of 4 x 4 in stage 1"),
        ({"trained_image_size": 0}, "trained_image_size"),
    ],
)
def test_what_is_given_must_agree_with_the_file(given: dict[str, Any], expected: str, tmp_path: Path) -> None:
    file = foreign.microsoft_file(small_sizes(window_size=4, pretrained=(3, 3)))
    with pytest.raises(UsageError, match=expected):
        convert(saved(file, tmp_path / "weights.pth"), None, **given)


def test_what_is_given_must_agree_with_the_configuration(tmp_path: Path) -> None:
    """A folder of this package knows what it was trained with; the options for that change nothing."""
    file = foreign.microsoft_file(small_sizes())
    convert(saved(file, tmp_path / "weights.pth"), tmp_path / "model")
    convert(str(tmp_path / "model"), None, trained_window_size=4, trained_image_size=64)
    with pytest.raises(UsageError, match=r"says what it was trained with .*--image-size and --window-size change"):
        convert(str(tmp_path / "model"), None, trained_window_size=8)


def test_a_network_without_a_head(tmp_path: Path) -> None:
    """timm's and the authors' are told apart by where they merge."""
    sizes = small_sizes()
    network = foreign.timm_network(sizes)
    theirs = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("head.")}
    authors = foreign.microsoft_file(sizes, network)
    authors = {name: tensor for name, tensor in authors.items() if not name.startswith("head.")}
    given = {"trained_image_size": 64, "trained_window_size": 4}
    first = swinv2.load(saved(theirs, tmp_path / "timm.pth"), **given)
    second = swinv2.load(saved(authors, tmp_path / "authors.pth"))
    assert type(first) is type(second) is swinv2.Swinv2Model
    assert convert(str(tmp_path / "timm.pth"), None, **given).dialect == "timm"
    assert convert(str(tmp_path / "authors.pth"), None).dialect == "microsoft"
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    convert(str(tmp_path / "authors.pth"), tmp_path / "out")
    swinv2.Swinv2Model.from_pretrained(tmp_path / "out")


def test_what_training_scripts_put_around_a_network(tmp_path: Path) -> None:
    """DistributedDataParallel's and torch.compile's prefixes, and averages beside the model: said, and not mixed up."""
    file = foreign.microsoft_file(small_sizes())
    wrapped = {"model": {f"module._orig_mod.{name}": tensor for name, tensor in file.items()}, "model_ema": file}
    report = convert(saved(wrapped, tmp_path / "weights.pth"), None)
    assert any("only 'model' was read; beside it there is 'model_ema'" in note for note in report.notes)
    assert sum("which was taken off" in note for note in report.notes) == 2


def test_extra_norms_are_counted(tmp_path: Path) -> None:
    """mmpretrain's largest models have them; the authors' code and timm do not, and say so."""
    sizes = small_sizes()
    file = foreign.mmpretrain_file(sizes)
    norms = {
        f"backbone.stages.{stage}.blocks.1.norm3.{part}": torch.ones(16 << stage)
        for stage in range(2)
        for part in ("weight", "bias")
    }
    source = saved({"state_dict": file | norms}, tmp_path / "weights.pth")
    model = swinv2.load(source, trained_image_size=64)
    assert model.config.extra_norm_period == 2
    convert(source, tmp_path / "back", "mmpretrain", trained_image_size=64)
    for format in ("transformers", "timm", "microsoft", "torchvision"):
        with pytest.raises(UsageError, match="no additional norms on the main branch"):
            convert(source, tmp_path / "out", format, trained_image_size=64)
    del norms["backbone.stages.0.blocks.1.norm3.weight"], norms["backbone.stages.0.blocks.1.norm3.bias"]
    with pytest.raises(UsageError, match="not every so many blocks"):
        swinv2.load(saved(file | norms, tmp_path / "odd.pth"), trained_image_size=64)


@pytest.mark.parametrize(
    ("fields", "format", "expected"),
    [
        ({"use_absolute_embeddings": True}, "timm", "no absolute position embeddings"),
        ({"mask_padding": True}, "transformers", "cannot hide filling tokens"),
        ({"layer_norm_eps": 1e-6}, "timm", "epsilon of its norms is 1e-05"),
        ({"hidden_act": "relu"}, "torchvision", "its activation is gelu"),
        ({"image_size": (64, 32)}, "transformers", "chooses other windows for a rectangular image_size"),
        ({"image_size": 40}, "microsoft", "does not fill maps up as this package does"),
        ({"pretrained_window_sizes": [3, 3]}, "torchvision", "knows no pre-training windows"),
        ({"window_size": 16}, "torchvision", "windows have one size in all stages"),
        (
            {"window_size": [[4, 4], [8, 8]]},
            "torchvision",
            "here 4 x 4 .stage 2: its map or window_size makes it 8 x 8",
        ),
        ({"window_size": (4, 8)}, "transformers", r"windows are square, and of one size .*window_size is \[4, 8\]"),
        ({"window_size": [[8, 8], [4, 4]]}, "microsoft", "windows are square, and of one size in all stages"),
        ({"window_size": (4, 8)}, "mmpretrain", "windows are square .stage 1: 4 x 8; stage 2: 4 x 8"),
        ({"qkv_bias": False}, "torchvision", "queries and values always have a bias"),
        ({"num_channels": 1}, "torchvision", "takes three channels"),
        ({"image_size": 8, "window_size": 2}, "microsoft", "in a window of one token"),
        ({}, "nonsense", "there is no format 'nonsense'; expected one of swinv2, transformers, timm"),
    ],
)
def test_what_a_library_cannot_compute_is_refused(
    fields: dict[str, Any], format: str, expected: str, tmp_path: Path
) -> None:
    """Never left out in silence; and nothing is written."""
    sizes = {"image_size": 64, "window_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4]}
    model = swinv2.Swinv2ForImageClassification(swinv2.Swinv2Config(**sizes | fields))
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match=expected):
        convert(str(tmp_path / "model"), tmp_path / "out", format)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_masked_image_model_has_no_form_in_timm(tmp_path: Path) -> None:
    sizes = {"image_size": 64, "window_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4]}
    model = swinv2.Swinv2ForMaskedImageModeling(swinv2.Swinv2Config(**sizes, encoder_stride=8))
    model.save_pretrained(tmp_path / "model")
    for format in ("timm", "torchvision", "mmpretrain"):
        with pytest.raises(UsageError, match="no mask token and no decoder"):
            convert(str(tmp_path / "model"), tmp_path / "out", format)


# --- labels and processors --------------------------------------------------------------------------------------------


def test_names_of_imagenet() -> None:
    """Of 22k in the authors' order: rows of their own map from 22k to 1k, data/map22kto1k.txt."""
    one, _ = label_names(1000)
    many, note = label_names(21841)
    assert one is not None
    assert many is not None
    assert (len(one), len(many)) == (1000, 21841)
    assert (one[0], one[388]) == (
        "tench, Tinca tinca",
        "giant panda, panda, panda bear, coon bear, Ailuropoda melanoleuca",
    )
    # Line of the map, counted from 0, and what is in it: before and after the classes that other lists do not have.
    for line, index in {717: 9204, 718: 9212, 719: 9221, 729: 9322, 999: 21817}.items():
        assert many[index] == one[line], line
    assert "the last 23 names may be off by two" in note
    assert label_names(10) == (None, "The names of its 10 classes are not known; they are numbered.")


def test_without_timm_classes_are_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert label_names(1000)[0] is None
    assert "not installed" in label_names(1000)[1]


def test_labels_are_written(tmp_path: Path) -> None:
    sizes = foreign.Sizes(**foreign.SMALL, image_size=64, window_size=4, pretrained=(0, 0), num_labels=1000)
    convert(saved(foreign.microsoft_file(sizes), tmp_path / "weights.pth"), tmp_path / "out")
    labels = json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]
    assert (len(labels), labels["1"]) == (1000, "goldfish, Carassius auratus")
    # A folder's own names come through, even where there are as many as ImageNet has.
    convert(str(tmp_path / "out"), tmp_path / "timm", "timm")
    names = json.loads((tmp_path / "timm" / "config.json").read_text())["label_names"]
    assert names[1] == "goldfish, Carassius auratus"


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
    picture = Image.new("RGB", (300, 500))
    assert processor(picture, return_tensors="pt")["pixel_values"].shape == (1, 3, size, size)


def prepared(fields: dict[str, Any], picture: Image.Image, folder: Path) -> torch.Tensor:
    """A picture as transformers' processor with these fields prepares it."""
    folder.mkdir(exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(fields))
    return AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")["pixel_values"][0]


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
"""Of normalised pixels: roundings of two libraries' interpolations; another part of the picture."""


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
def test_pictures_are_prepared_as_timm_does(size: int, stated: dict[str, Any] | None, tmp_path: Path) -> None:
    """Against timm's own transforms, of its settings or of those of its published weights; and back."""
    picture, published = picture_of_blots(), {256: "swinv2_tiny_window8_256", 384: "swinv2_base_window12to24_192to384"}
    theirs = stated or timm.get_pretrained_cfg(published[size]).to_dict()
    settings = resolve_data_config({}, pretrained_cfg={"interpolation": "bicubic", **theirs})
    expected = create_transform(**settings | {"input_size": (3, size, size)})(picture)
    fields = make_processor("timm", (size, size), 96, {"pretrained_cfg": stated} if stated else None)
    assert distance(prepared(fields, picture, tmp_path), expected) < NEAR
    other = {**fields, **_sizes((size, size), Crop(crop_of(fields).share, not crop_of(fields).squashes))}
    assert distance(prepared(other, picture, tmp_path), expected) > FAR
    back = _timm_config(swinv2.Swinv2Config(image_size=size), 1000, fields)["pretrained_cfg"]
    again = create_transform(**resolve_data_config({}, pretrained_cfg=back))(picture)
    assert distance(again, expected) < NEAR
    assert distance(prepared(resize_processor(fields, (size, size)), picture, tmp_path), expected) < NEAR


@pytest.mark.parametrize(("name", "embed_dim"), [("T", 96), ("S", 96), ("B", 128)])
def test_pictures_are_prepared_as_torchvision_does(name: str, embed_dim: int, tmp_path: Path) -> None:
    """Against the transforms of torchvision's weights."""
    picture = picture_of_blots()
    expected = getattr(torchvision.models, f"Swin_V2_{name}_Weights").DEFAULT.transforms()(picture)
    fields = make_processor("torchvision", (256, 256), embed_dim, None)
    assert distance(prepared(fields, picture, tmp_path), expected) < NEAR
    assert distance(prepared({**fields, **_sizes((256, 256), SQUASH)}, picture, tmp_path), expected) > FAR


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
    ("arguments", "top", "expected"),
    [
        ({"global_pool": "max"}, {}, "'global_pool' is 'max', expected 'avg'"),
        ({}, {"global_pool": ""}, "'global_pool' is '', expected 'avg'"),
        ({"act_layer": "relu"}, {}, "'act_layer' is 'relu', expected 'gelu'"),
        ({"always_partition": True}, {}, "'always_partition' is True, expected False"),
        ({"dynamic_img_size": True, "dynamic_img_pad": True}, {}, "'dynamic_img_size' is True.*'dynamic_img_pad' is"),
        ({"norm_layer": "rmsnorm", "window_ratio": 8}, {}, "'norm_layer' is 'rmsnorm'; 'window_ratio' is 8"),
        (
            {
                "global_pool": "avg",
                "act_layer": "gelu",
                "always_partition": False,
                "drop_path_rate": 0.2,
                "embed_dim": 16,
                "depths": [2, 2],
                "num_heads": [2, 4],
                "qkv_bias": True,
                "strict_img_size": True,
            },
            {"global_pool": "avg", "num_classes": 5},
            "",
        ),
    ],
)
def test_timms_arguments_that_change_the_answers_are_refused(
    arguments: dict[str, Any], top: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    """By name; those that shapes show and those of training are not."""
    save_file(foreign.timm_network(small_sizes()).state_dict(), tmp_path / "model.safetensors")
    sized = {"img_size": 64, "window_size": 4, "pretrained_window_sizes": [0, 0]}
    config = {"architecture": "swinv2_tiny_window8_256", "model_args": sized | arguments, **top}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if expected:
        with pytest.raises(UsageError, match=expected):
            convert(str(tmp_path), None)
    else:
        assert convert(str(tmp_path), None).image_size == (64, 64)


def test_timms_own_settings_are_kept(tmp_path: Path) -> None:
    """crop, interpolation, mean and deviation of its config.json."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(foreign.timm_network(small_sizes()).state_dict(), folder / "model.safetensors")
    config: dict[str, Any] = {
        "architecture": "swinv2_tiny_window8_256",
        "model_args": {"img_size": 64, "window_size": [4, 4]},
        "pretrained_cfg": {
            "input_size": [3, 64, 64],
            "crop_pct": 0.8,
            "interpolation": "bilinear",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
        },
        "label_names": ["a", "b", "c", "d", "e"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    convert(str(folder), tmp_path / "out")
    fields = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert (fields["size"], fields["resample"]) == ({"shortest_edge": 80}, 2)
    assert (fields["image_mean"], fields["image_std"]) == ([0.5] * 3, [0.25] * 3)
    assert swinv2.load(tmp_path / "out").config.id2label[4] == "e"
    config["model_args"]["pretrained_window_sizes"] = [0, [0, 4]]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="of which one is 0 on one axis only"):
        convert(str(folder), None)
    config["model_args"]["window_size"] = [4, 4, 8]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"is timm's, but window_size is \[4, 4, 8\]"):
        convert(str(folder), None)
