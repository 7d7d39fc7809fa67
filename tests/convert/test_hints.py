"""What a published name and a config.json say of sizes, and which of them are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import foreign
import swinv2
from conversions import File, refused, timm_name
from foreign import small_sizes
from swinv2.convert import convert
from swinv2.convert.hints import SizeHints, read_name
from swinv2.errors import UsageError
from swinv2.zoo import CHECKPOINTS


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param("{", "config.json' cannot be read", id="cut-off"),
        pytest.param("[1]", "contains list", id="a-list"),
        pytest.param('{"model_type": "vit"}', "has the model type 'vit'", id="another-model"),
        pytest.param(
            '{"model_type": "swinv2", "depths": []}',
            "the model in the config.json next to the weights is impossible",
            id="impossible",
        ),
        pytest.param('{"model_type": "swinv2", "embed_dim": 96}', "embed_dim is 96 there and 16", id="another-size"),
    ],
)
def test_a_configuration_beside_the_weights(config: str, expected: str, file: File, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(file, folder / "model.safetensors")
    (folder / "config.json").write_text(config)
    assert expected in refused(folder, tmp_path)


@pytest.mark.parametrize("name", ["swinv2_x_window0_64", "swinv2_x_window8to00_64", "swinv2-x-w0_3rdparty_in1k-64px"])
def test_a_size_of_zero_is_no_published_name(name: str) -> None:
    assert read_name(name, 4) == SizeHints()


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
    with pytest.raises(UsageError, match="and one of them is 0 on one axis only"):
        convert(str(folder), None)
    config["model_args"]["window_size"] = [4, 4, 8]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"is timm's, but window_size is \[4, 4, 8\]"):
        convert(str(folder), None)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_published_names_tell_sizes(name: str) -> None:
    """The hub's, the authors' and timm's names of every checkpoint."""
    checkpoint = CHECKPOINTS[name]
    expected = SizeHints(checkpoint.image_size, checkpoint.window_size, checkpoint.pretrained_window_sizes)
    stem = checkpoint.source.rpartition("/")[2].removesuffix(".pth")
    assert [read_name(text, 4) for text in (name, stem, timm_name(checkpoint))] == [expected] * 3


def test_names_of_one_published_file_of_each_library() -> None:
    """Names of files as they are on the libraries' own pages."""
    assert read_name("swin_v2_t-b137f0e2", 4) == SizeHints(256, 8, (0, 0, 0, 0))
    assert read_name("swinv2-tiny-w8_3rdparty_in1k-256px_20220803-e318968f", 4) == SizeHints(256, 8, (0,) * 4)
    assert read_name("swinv2-base-w24_in21k-pre_3rdparty_in1k-384px_20220803-44eb70f8", 4) == SizeHints(384, 24)
    assert read_name("swinv2_base_22k_500k", 4) == read_name("model", 4) == SizeHints()


@pytest.mark.parametrize(
    "name",
    [
        "run7_window8_256_finetuned_384",
        "swinv2_tiny_window8_256_finetuned_384",
        "my_swinv2_tiny_patch4_window8_256",
        "swinv2_tiny_patch4_window8_256_epoch3",
        "swinv2_tiny_window8_2560000",
        "window8_256",
        "swinv2_tiny_w8_mine_at_384px",
        "swinv2-tiny-w8_in1k-256px-then-384px",
    ],
)
def test_somebodys_own_name_tells_nothing(name: str) -> None:
    """Not even if there is a published name in it: what follows may say that it is no longer so."""
    assert read_name(name, 4) == SizeHints()


def test_older_names_of_timm_and_the_configurations_of_mmpretrain() -> None:
    learned = SizeHints(256, 16, (12, 12, 12, 6))
    assert read_name("swinv2_base_window12to16_192to256_22kft1k", 4) == learned
    assert read_name("swinv2-tiny-w8_16xb64_in1k-256px", 4) == SizeHints(256, 8, (0,) * 4)
    assert read_name("swinv2-base-w16_in21k-pre_16xb64_in1k-256px", 4) == SizeHints(256, 16)
