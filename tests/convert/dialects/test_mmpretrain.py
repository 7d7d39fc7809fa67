"""mmpretrain's files and back: the same answers, and the same file to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import foreign
import swinv2
from conversions import check_answers, check_tensors, model_with, save
from foreign import small_sizes
from swinv2.convert import convert
from swinv2.convert.write import state_dict
from swinv2.errors import UsageError


@pytest.mark.parametrize("bare", [False, True], ids=["classifier", "bare-backbone"])
def test_there_and_back(bare: bool, tmp_path: Path) -> None:
    """The order of torch's Unfold is undone and done again; the last norm bears its stage's number."""
    sizes = small_sizes(window_size=8, pretrained=(4, 3))
    network = foreign.timm_network(sizes)
    file = foreign.mmpretrain_file(sizes, network)
    assert "backbone.norm1.weight" in file
    stored = {name.removeprefix("backbone."): tensor for name, tensor in file.items()} if bare else file
    model = swinv2.load(save({"meta": {}, "state_dict": stored}, tmp_path / "weights.pth"), trained_image_size=64)
    check_answers(model, network)
    check_tensors(state_dict(model, "mmpretrain"), file)


def test_the_unfold_order_is_torchs() -> None:
    """mmpretrain's merging, with torch's own Unfold, is ours."""
    sizes = small_sizes()
    file = foreign.mmpretrain_file(sizes)
    ours = foreign.microsoft_file(sizes)["layers.0.downsample.reduction.weight"]
    feature_map = torch.randn(1, 16, 6, 8)
    unfolded = nn.Unfold(kernel_size=2, stride=2)(feature_map).transpose(1, 2)
    theirs = unfolded @ file["backbone.stages.1.downsample.reduction.weight"].T
    parts = [feature_map[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
    joined = torch.cat(parts, dim=1).flatten(2).transpose(1, 2)
    torch.testing.assert_close(theirs, joined @ ours.T)


@pytest.mark.parametrize(
    ("windows", "given", "size", "kept"),
    [
        ((8, 4), 64, 64, [[8, 8], [4, 4]]),
        ((4, 8), 64, 64, [[4, 4], [8, 8]]),
        # At the smallest image the second one is what its map leaves of the first.
        ((8, 4), None, 32, 8),
        ((4, 8), None, 64, [[4, 4], [8, 8]]),
    ],
)
def test_a_window_for_each_stage(
    windows: tuple[int, int], given: int | None, size: int, kept: Any, tmp_path: Path
) -> None:
    """Its tables show the window of each stage."""
    sizes = small_sizes(image_size=size, window_size=windows)
    network = foreign.timm_network(sizes)
    file = foreign.mmpretrain_file(sizes, network)
    source = save({"state_dict": file}, tmp_path / "weights.pth")
    model = swinv2.load(source, trained_image_size=given)
    assert (model.config.image_size, model.config.window_size) == (size, kept)
    check_answers(model, network, (size, size))
    check_tensors(state_dict(model, "mmpretrain"), file)


def mmpretrain_weights(path: Path, windows: tuple[int, int]) -> str:
    return save({"state_dict": foreign.mmpretrain_file(small_sizes(window_size=windows))}, path)


SMALLEST = "its windows: the smallest size that clips no window"


@pytest.mark.parametrize(
    ("name", "given", "size", "source"),
    [
        ("weights", {}, 32, SMALLEST),
        ("weights", {"trained_image_size": 64}, 64, "given"),
        ("weights", {"trained_window_size": [(8, 8), (4, 4)]}, 32, SMALLEST),
        # What was given is clipped to what the tables show.
        ("weights", {"trained_window_size": 8}, 32, SMALLEST),
        ("weights", {"trained_window_size": [(8, 8), (5, 5)]}, 32, SMALLEST),
        ("swinv2-x-w8_3rdparty_in1k-32px", {}, 32, "the name 'swinv2-x-w8_3rdparty_in1k-32px'"),
        # The tables do not fit this one, which so tells no size either.
        ("swinv2-x-w8_3rdparty_in1k-128px", {}, 32, SMALLEST),
    ],
)
def test_where_the_image_size_is_from(name: str, given: dict[str, Any], size: int, source: str, tmp_path: Path) -> None:
    """Windows of 8 and 4: of two stages, or one that the second map clips; the tables are the same."""
    weights = mmpretrain_weights(tmp_path / f"{name}.pth", (8, 4))
    report = convert(weights, None, **given)
    assert (report.image_size, report.sources["image size"]) == ((size, size), source)
    assert any("the smallest size at which no stage clips" in note for note in report.notes) is (source == SMALLEST)
    assert any("The file does not agree" in note for note in report.notes) is ("128px" in name)


def test_it_has_no_place_for_the_image_size(tmp_path: Path) -> None:
    """Whoever writes for it is told how the folder is read back."""
    model = model_with([[8, 8], [4, 4]])
    model.save_pretrained(tmp_path / "model")
    report = convert(str(tmp_path / "model"), tmp_path / "out", "mmpretrain")
    assert any("give --trained-image-size 64x64" in note for note in report.notes)
    again = swinv2.load(tmp_path / "out", trained_image_size=64)
    check_answers(again, lambda images: model(images).logits, (64, 64))


def test_extra_norms_are_counted(tmp_path: Path) -> None:
    """mmpretrain's largest models have them; the authors' code and timm do not, and say so."""
    sizes = small_sizes()
    file = foreign.mmpretrain_file(sizes)
    norms = {
        f"backbone.stages.{stage}.blocks.1.norm3.{part}": torch.ones(16 << stage)
        for stage in range(2)
        for part in ("weight", "bias")
    }
    source = save({"state_dict": file | norms}, tmp_path / "weights.pth")
    model = swinv2.load(source, trained_image_size=64)
    assert model.config.extra_norm_period == 2
    convert(source, tmp_path / "back", "mmpretrain", trained_image_size=64)
    for format in ("transformers", "timm", "microsoft", "torchvision"):
        with pytest.raises(UsageError, match="no extra norms on the main path"):
            convert(source, tmp_path / "out", format, trained_image_size=64)
    del norms["backbone.stages.0.blocks.1.norm3.weight"], norms["backbone.stages.0.blocks.1.norm3.bias"]
    with pytest.raises(UsageError, match="at a fixed period in every stage"):
        swinv2.load(save(file | norms, tmp_path / "odd.pth"), trained_image_size=64)
