"""Rectangular windows, and one for each stage: from the libraries that have them, and back."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn
from typer.testing import CliRunner

import foreign
import peers
import swinv2
from foreign import small_sizes
from swinv2.cli import app
from swinv2.convert import convert
from swinv2.convert.dialects.squares import equivalent_square
from swinv2.convert.write import _timm_config, state_dict
from swinv2.errors import UsageError

TOLERANCE = 1e-5
"""Of an answer, in units of the distance between two images' answers."""

WIDE = (64, 128)
"""Pixels; maps of 16 x 32 and 8 x 16 tokens."""


def saved(tensors: Any, path: Path) -> str:
    torch.save(tensors, path)
    return str(path)


def check_answers(ours: nn.Module, theirs: Callable[[Tensor], Tensor], size: tuple[int, int]) -> None:
    pictures = peers.images(size)
    with torch.no_grad():
        assert peers.difference(ours(pictures).logits, theirs(pictures)) < TOLERANCE


def check_tensors(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """The same names with the same numbers, to the bit."""
    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def timm_network(window: Any, pretrained: Any = (0, 0)) -> nn.Module:
    return peers.timm_model(
        "swinv2_tiny_window8_256",
        **foreign.SMALL,
        img_size=WIDE,
        window_size=window,
        pretrained_window_sizes=pretrained,
        num_classes=5,
    )


def torchvision_network(window: tuple[int, int]) -> nn.Module:
    network = peers.torchvision_model(
        embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=list(window), num_classes=5
    )
    for name, parameter in network.named_parameters():
        if name.endswith("qkv.bias"):
            parameter.data.view(3, -1)[1].zero_()
    return network


@pytest.mark.parametrize(
    ("window", "pretrained", "kept"),
    [
        ((4, 8), (0, 0), [4, 8]),
        ((4, 8), ((3, 6), 5), [4, 8]),
        (((8, 4), (4, 8)), (0, 0), [[8, 4], [4, 8]]),
        (((4, 4), (8, 8)), (0, (6, 5)), [[4, 4], [8, 8]]),
    ],
)
def test_timm(window: Any, pretrained: Any, kept: Any, tmp_path: Path) -> None:
    """Given by the caller, then in the config.json that timm itself reads, then read from there again."""
    network = timm_network(window, pretrained)
    known = {"trained_image_size": WIDE, "trained_window_size": window, "pretrained_window_sizes": pretrained}
    source = saved(network.state_dict(), tmp_path / "weights.pth")
    report = convert(source, tmp_path / "timm", "timm", **known)
    assert report.window_size == kept
    written = json.loads((tmp_path / "timm" / "config.json").read_text())["model_args"]["window_size"]
    # timm before 1.0.31 reads a list of integers as the height and the width of one window; at pairs it fails.
    assert written == kept
    assert any("timm opens the folder from 1.0.31 on" in note for note in report.notes) is (kept != [4, 8])
    model = swinv2.load(tmp_path / "timm")
    assert model.config.window_size == kept
    check_answers(model, network, WIDE)
    check_tensors(state_dict(model, "timm"), network.state_dict())
    built = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    pictures = peers.images(WIDE)
    with torch.no_grad():
        assert torch.equal(built(pictures), network(pictures))


def test_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window is in its tables; the call in the README builds the network again."""
    network = torchvision_network((4, 8))
    source = saved(network.state_dict(), tmp_path / "weights.pth")
    model = swinv2.load(source, trained_image_size=WIDE)
    assert model.config.window_size == [4, 8]
    check_answers(model, network, WIDE)
    check_tensors(state_dict(model, "torchvision"), network.state_dict())
    smallest = convert(source, tmp_path / "out", "torchvision")
    assert (smallest.image_size, smallest.sources["window"]) == ((32, 64), "the file's own tables")
    code: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path / "out")
    exec((tmp_path / "out" / "README.md").read_text().partition("```python\n")[2].partition("```")[0], code)
    check_answers(model, code["network"].eval(), WIDE)


def model_with(
    window: Any, image_size: int = 64, depths: Sequence[int] = (1, 1)
) -> swinv2.Swinv2ForImageClassification:
    """At 64 pixels its maps are 16 and 8 tokens wide, and 4 and 2."""
    heads = [2 << index for index in range(len(depths))]
    config = swinv2.Swinv2Config(
        embed_dim=16, depths=depths, num_heads=heads, image_size=image_size, window_size=window, num_labels=5,
        pretrained_window_sizes=[0] * len(depths),
    )  # fmt: skip
    return peers.draw_weights(swinv2.Swinv2ForImageClassification(config).eval())


@pytest.mark.parametrize(
    ("window", "side"),
    [([16, 4, 4, 2], None), ([16, 8, 4, 2], 16), ([[32, 16], 9, 8, 2], 16), ([8, 8, 4, 8], 8), ([(4, 8)] * 4, None)],
)
def test_one_square(window: Any, side: int | None) -> None:
    """What each stage has counts, not how it is written."""
    config = swinv2.Swinv2Config(
        image_size=64, embed_dim=16, depths=[1] * 4, num_heads=[1, 2, 4, 8], window_size=window
    )
    assert equivalent_square(config) == side


def test_timm_is_told_windows_as_pairs() -> None:
    """Integers, one for each stage, would be another network without a sign in timm before 1.0.31."""
    config = swinv2.Swinv2Config(image_size=256, window_size=[16, 16, 8, 8])
    told = _timm_config(config, 1000, {})["model_args"]["window_size"]
    assert told == [[16, 16], [16, 16], [8, 8], [8, 8]]


def test_windows_that_one_square_gives(tmp_path: Path) -> None:
    """The authors, transformers and timm are told the one square; their networks compute the same."""
    model = model_with([[16, 16], [8, 8]])
    model.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["window_size"] == [[16, 16], [8, 8]]
    for format in ("transformers", "timm", "microsoft"):
        report = convert(str(tmp_path / "model"), tmp_path / format, format)
        assert not any("1.0.31" in note for note in report.notes)
    assert "- window size: 16\n" in (tmp_path / "microsoft" / "README.md").read_text()
    assert json.loads((tmp_path / "transformers" / "config.json").read_text())["window_size"] == 16
    assert json.loads((tmp_path / "timm" / "config.json").read_text())["model_args"]["window_size"] == 16
    theirs = transformers.Swinv2ForImageClassification.from_pretrained(tmp_path / "transformers").eval()
    built = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    check_answers(model, lambda pictures: theirs(pictures).logits, (64, 64))
    check_answers(model, built, (64, 64))
    assert swinv2.load(tmp_path / "microsoft").config.window_size == 16


def test_another_form_of_the_same_windows_is_no_contradiction(tmp_path: Path) -> None:
    """Given beside a config.json, and beside a published name."""
    model = model_with(16)
    model.save_pretrained(tmp_path / "model")
    convert(str(tmp_path / "model"), None, trained_window_size=[(16, 16), (8, 8)])
    with pytest.raises(UsageError, match=r"window_size 16\); \[\[16, 16\], \[4, 4\]\] was given"):
        convert(str(tmp_path / "model"), None, trained_window_size=[(16, 16), (4, 4)])
    source = saved(state_dict(model, "timm"), tmp_path / "swinv2_tiny_window16_64.pth")
    for windows, notes in (([(16, 16), (8, 8)], 0), ([(16, 16), (4, 4)], 1)):
        report = convert(source, None, trained_window_size=windows)
        assert sum("the file does not agree" in note for note in report.notes) == notes


def test_the_readme_for_torchvision_has_the_window_of_its_call(tmp_path: Path) -> None:
    """One that small maps clip differs from what was configured; torchvision knows no pre-training windows."""
    model = model_with([[8, 8], [16, 16]])
    model.save_pretrained(tmp_path / "model")
    convert(str(tmp_path / "model"), tmp_path / "out", "torchvision")
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "- window size: [8, 8]\n" in readme
    assert "window_size=[8, 8], " in readme
    assert "pre-training" not in readme


@pytest.mark.parametrize(
    ("windows", "given", "size", "kept"),
    [
        ((8, 4), 64, 64, [[8, 8], [4, 4]]),
        ((4, 8), 64, 64, [[4, 4], [8, 8]]),
        # Nothing contradicts that the second one was clipped, as mmpretrain's published ones are.
        ((8, 4), None, 32, 8),
        # A larger one in a later stage was not clipped before it.
        ((4, 8), None, 64, [[4, 4], [8, 8]]),
    ],
)
def test_mmpretrain(windows: tuple[int, int], given: int | None, size: int, kept: Any, tmp_path: Path) -> None:
    """Its tables show the window of each stage."""
    sizes = small_sizes(image_size=size, window_size=windows)
    network = foreign.timm_network(sizes)
    file = foreign.mmpretrain_file(sizes, network)
    source = saved({"state_dict": file}, tmp_path / "weights.pth")
    model = swinv2.load(source, trained_image_size=given)
    assert (model.config.image_size, model.config.window_size) == (size, kept)
    check_answers(model, network, (size, size))
    check_tensors(state_dict(model, "mmpretrain"), file)


def mmpretrain_weights(path: Path, windows: tuple[int, int]) -> str:
    return saved({"state_dict": foreign.mmpretrain_file(small_sizes(window_size=windows))}, path)


def test_windows_taken_for_clipped_ones_are_named(tmp_path: Path) -> None:
    """Two windows of their own, and one that the second map clips, have the same tables."""
    source = mmpretrain_weights(tmp_path / "weights.pth", (8, 4))
    report = convert(source, None)
    assert report.sources["window"] == "the file's own tables, taken for one clipped window"
    assert report.sources["image size"] == report.sources["window"]
    assert any("Windows 8, 4 are taken for one window of 8, clipped at 32 x 32 pixels" in note for note in report.notes)
    # What is given, or a published name, leaves nothing to take for something.
    given = convert(source, None, trained_image_size=64)
    named = convert(mmpretrain_weights(tmp_path / "swinv2-x-w8_3rdparty_in1k-32px.pth", (8, 4)), None)
    for known in (given, named):
        assert known.sources["window"] == "the file's own tables"
        assert not any("taken for one window" in note for note in known.notes)
    assert given.sources["image size"] == "given"
    assert named.sources["image size"] == "the file's own tables"


@pytest.mark.parametrize(
    ("windows", "size", "source"),
    [
        # Nothing is clipped, so the tables show no size.
        ([(8, 8), (4, 4)], 32, "its windows: the smallest at which none is clipped"),
        (8, 32, "the file's own tables"),
        ([(8, 8), (5, 5)], 32, "the file's own tables"),
    ],
)
def test_given_windows_decide_what_was_clipped(windows: Any, size: int, source: str, tmp_path: Path) -> None:
    report = convert(mmpretrain_weights(tmp_path / "weights.pth", (8, 4)), None, trained_window_size=windows)
    assert (report.image_size, report.sources["image size"]) == ((size, size), source)
    assert report.sources["window"] == "given"
    assert not any("taken for one window" in note for note in report.notes)


def test_mmpretrain_has_no_place_for_the_image_size(tmp_path: Path) -> None:
    """Whoever writes windows of each stage for it is told how they are read back."""
    model = model_with([[8, 8], [4, 4]])
    model.save_pretrained(tmp_path / "model")
    report = convert(str(tmp_path / "model"), tmp_path / "out", "mmpretrain")
    assert any("give --trained-image-size 64x64" in note for note in report.notes)
    again = swinv2.load(tmp_path / "out", trained_image_size=64)
    check_answers(again, lambda pictures: model(pictures).logits, (64, 64))
    report = convert(str(tmp_path / "model"), None, "mmpretrain", window_size=8)
    assert not any("--trained-image-size" in note for note in report.notes)


def test_rectangles_under_the_authors_names(tmp_path: Path) -> None:
    """Their code has none; a file whose tables and masks prove them is read, its image size asked for."""
    config = swinv2.Swinv2Config(
        embed_dim=16, depths=[2, 2], num_heads=[2, 4], image_size=WIDE, window_size=(4, 8), num_labels=5
    )
    model = peers.draw_weights(swinv2.Swinv2ForImageClassification(config).eval())
    file = state_dict(model, "microsoft")
    source = saved({"model": file}, tmp_path / "weights.pth")
    with pytest.raises(UsageError, match="give --trained-image-size"):
        convert(source, None)
    with pytest.raises(UsageError, match="the mask in the file is of 16 windows in stage 1"):
        convert(source, None, trained_image_size=128)
    again = swinv2.load(source, trained_image_size=WIDE)
    assert again.config.window_size == [4, 8]
    pictures = peers.images(WIDE)
    with torch.no_grad():
        assert torch.equal(again(pictures).logits, model(pictures).logits)
    # The table of pairs alone shows the window too, its width and height not confused.
    pairs = {name: tensor for name, tensor in file.items() if not name.endswith("relative_coords_table")}
    source = saved({"model": pairs}, tmp_path / "pairs.pth")
    assert swinv2.load(source, trained_image_size=WIDE).config.window_size == [4, 8]


def test_a_table_of_pairs_that_fits_a_row_and_a_column(tmp_path: Path) -> None:
    """It does not show which, so neither is taken; with coordinates it is read."""
    network = torchvision_network((1, 8))
    file = network.state_dict()
    source = saved(file, tmp_path / "weights.pth")
    assert swinv2.load(source, trained_image_size=WIDE).config.window_size == [1, 8]
    pairs = {name: tensor for name, tensor in file.items() if not name.endswith("relative_coords_table")}
    source = saved(pairs, tmp_path / "pairs.pth")
    with pytest.raises(UsageError, match=r"is the table of pairs of windows of 8 x 1 and of 1 x 8.*relative_coords"):
        swinv2.load(source, trained_image_size=WIDE)


def test_the_command_plans_them(tmp_path: Path) -> None:
    """Each stage keeps the window it learned in, and what was done is said in the words of the options."""
    source = saved(timm_network((4, 8)).state_dict(), tmp_path / "weights.pth")
    known = ["--trained-image-size", "64x128", "--trained-window-size", "4x8"]
    planned = ["--image-size", "64", "--window-size", "8,4x2"]
    result = CliRunner().invoke(app, ["convert", source, str(tmp_path / "out"), *known, *planned])
    assert result.exit_code == 0, result.output
    assert "4x8 -> 8,4x2 (from given)" in result.stdout
    assert "stage 1 from 4 x 8 to 8 x 8, stage 2 from 4 x 8 to 4 x 2" in " ".join(result.stdout.split())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["window_size"] == [[8, 8], [4, 2]]
    assert config["pretrained_window_sizes"] == [[4, 8], [4, 8]]
    # What was given must agree with a config.json, however it is written.
    agreed = ["--trained-window-size", "8x8,4x2", "--pretrained-window-sizes", "4x8,4x8", "--dry-run"]
    assert CliRunner().invoke(app, ["convert", str(tmp_path / "out"), *agreed]).exit_code == 0
    differing = ["--trained-window-size", "4x2", "--dry-run"]
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "out"), *differing])
    assert result.exit_code == 2
    assert "(window_size [[8, 8], [4, 2]]); [4, 2] was given" in " ".join(result.stderr.split())
