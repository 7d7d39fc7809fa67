"""timm's files and folders and back: the same answers, the same tensors, and timm opens what is written."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import foreign
import peers
import swinv2
from conversions import NAMED, WIDE, check_answers, check_tensors, save
from foreign import small_sizes
from swinv2.convert import convert
from swinv2.convert.write import state_dict


@pytest.mark.parametrize("pretrained", [(0, 0), (4, 3)], ids=["same", "pretrained-in-others"])
def test_there_and_back(pretrained: tuple[int, ...], tmp_path: Path) -> None:
    """timm's file says nothing of windows; they are given, or its config.json has them."""
    sizes = small_sizes(window_size=8, pretrained=pretrained)
    network = foreign.timm_network(sizes)
    file = network.state_dict()
    model = swinv2.load(
        save(file, tmp_path / "weights.pth"),
        trained_image_size=64,
        trained_window_size=8,
        pretrained_window_sizes=pretrained,
    )
    check_answers(model, network)
    check_tensors(state_dict(model, "timm"), file)


def test_timm_builds_the_folder_that_is_written(tmp_path: Path) -> None:
    """`local-dir:` of create_model, with no other argument; and the folder comes back."""
    sizes = small_sizes(window_size=8, pretrained=(4, 3))
    network = foreign.timm_network(sizes)
    source = save({"model": foreign.microsoft_file(sizes, network)}, tmp_path / "weights.pth")
    report = convert(source, tmp_path / "timm", "timm", trained_image_size=64)
    assert report.files == ["config.json", "model.safetensors"]
    built = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    images = peers.images((64, 64))
    with torch.no_grad():
        assert torch.equal(built(images), network(images))
    back = convert(str(tmp_path / "timm"), tmp_path / "back")
    assert [stage.learned_window for stage in back.stages] == [(4, 4), (3, 3)]
    assert back.sources["window"] == "config.json"
    check_tensors(state_dict(swinv2.load(tmp_path / "back"), "timm"), network.state_dict())


def test_timm_builds_a_network_without_a_classifier(tmp_path: Path) -> None:
    """It has no classes then, and no names of them."""
    network = foreign.timm_network(small_sizes())
    file = foreign.microsoft_file(small_sizes(), network)
    bare = {name: tensor for name, tensor in file.items() if not name.startswith("head.")}
    convert(save({"model": bare}, tmp_path / NAMED), tmp_path / "timm", "timm")
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert (config["num_classes"], config["pretrained_cfg"]["num_classes"]) == (0, 0)
    assert "label_names" not in config
    built = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    images = peers.images((64, 64))
    with torch.no_grad():
        assert torch.equal(built(images), network.forward_head(network.forward_features(images), pre_logits=True))
    assert type(swinv2.load(tmp_path / "timm")) is swinv2.Swinv2Model


def timm_network(window: Any, pretrained: Any = (0, 0)) -> nn.Module:
    return peers.timm_model(
        "swinv2_tiny_window8_256",
        **foreign.SMALL,
        img_size=WIDE,
        window_size=window,
        pretrained_window_sizes=pretrained,
        num_classes=5,
    )


@pytest.mark.parametrize(
    ("window", "pretrained", "kept"),
    [
        ((4, 8), (0, 0), [4, 8]),
        ((4, 8), ((3, 6), 5), [4, 8]),
        (((8, 4), (4, 8)), (0, 0), [[8, 4], [4, 8]]),
        (((4, 4), (8, 8)), (0, (6, 5)), [[4, 4], [8, 8]]),
    ],
)
def test_rectangles_and_a_window_for_each_stage(window: Any, pretrained: Any, kept: Any, tmp_path: Path) -> None:
    """Given by the caller, then in the config.json that timm itself reads, then read from there again."""
    network = timm_network(window, pretrained)
    known = {"trained_image_size": WIDE, "trained_window_size": window, "pretrained_window_sizes": pretrained}
    source = save(network.state_dict(), tmp_path / "weights.pth")
    report = convert(source, tmp_path / "timm", "timm", **known)
    assert report.window_size == kept
    written = json.loads((tmp_path / "timm" / "config.json").read_text())["model_args"]["window_size"]
    # timm before 1.0.31 reads a list of integers as the height and the width of one window; at pairs it fails.
    assert written == kept
    assert any("only timm 1.0.31 and later can open the folder" in note for note in report.notes) is (kept != [4, 8])
    model = swinv2.load(tmp_path / "timm")
    assert model.config.window_size == kept
    check_answers(model, network, WIDE)
    check_tensors(state_dict(model, "timm"), network.state_dict())
    built = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    images = peers.images(WIDE)
    with torch.no_grad():
        assert torch.equal(built(images), network(images))
