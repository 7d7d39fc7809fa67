"""Another image size and window: every stage is planned anew, keeps the window it learned in, and it is said."""

import json
from pathlib import Path

import pytest
import torch

import foreign
import peers
import swinv2
from foreign import small_sizes
from swinv2.convert import convert
from swinv2.convert.processors import resize_processor
from swinv2.errors import UsageError


@pytest.fixture
def source(tmp_path: Path) -> str:
    """An authors' file: 64 pixels, windows of 8, the second stage learned in 6."""
    path = tmp_path / "weights.pth"
    torch.save({"model": foreign.microsoft_file(small_sizes(window_size=8, pretrained=(0, 6)))}, path)
    return str(path)


def test_every_stage_keeps_the_window_it_learned_in(source: str, tmp_path: Path) -> None:
    report = convert(source, tmp_path / "out", image_size=128, window_size=16)
    windows = [(stage.window, stage.new_window, stage.learned_window) for stage in report.stages]
    assert windows == [((8, 8), (16, 16), (8, 8)), ((8, 8), (16, 16), (6, 6))]
    assert [(stage.grid, stage.new_grid) for stage in report.stages] == [((16, 16), (32, 32)), ((8, 8), (16, 16))]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["image_size"], config["window_size"], config["pretrained_window_sizes"]) == (128, 16, [8, 6])
    said = next(note for note in report.notes if note.startswith("Windows:"))
    assert "stage 1 from 8 x 8 to 16 x 16, stage 2 from 8 x 8 to 16 x 16" in said
    assert "the windows it was learned in, 8 x 8, 6 x 6; no weight was changed" in said
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert (processor["size"], processor["crop_size"]) == ({"shortest_edge": 146}, {"height": 128, "width": 128})


def test_the_answers_are_those_of_timm_with_these_windows(source: str) -> None:
    """timm, built with the new size and the learned windows and the same weights: the bias is extrapolated."""
    old = foreign.timm_network(small_sizes(window_size=8, pretrained=(0, 6)))
    new = foreign.timm_network(small_sizes(image_size=128, window_size=16, pretrained=(8, 6)))
    new.load_state_dict(old.state_dict())
    stretched = foreign.timm_network(small_sizes(image_size=128, window_size=16))
    stretched.load_state_dict(old.state_dict())
    model = swinv2.load(source, image_size=128, window_size=16)
    pictures = peers.images((128, 128))
    with torch.no_grad():
        ours = model(pictures).logits
        assert peers.difference(ours, new(pictures)) < 1e-5
        assert peers.difference(ours, stretched(pictures)) > 1e-3


def test_twice_is_as_once(source: str, tmp_path: Path) -> None:
    """A converted folder remembers what it learned in, so that going on from it loses nothing."""
    convert(source, tmp_path / "first", image_size=96, window_size=12)
    convert(str(tmp_path / "first"), tmp_path / "second", image_size=128, window_size=16)
    convert(source, tmp_path / "direct", image_size=128, window_size=16)
    assert (tmp_path / "second" / "config.json").read_text() == (tmp_path / "direct" / "config.json").read_text()


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


def test_only_the_size(source: str) -> None:
    report = convert(source, None, image_size=(128, 64))
    assert report.new_image_size == (128, 64)
    assert [stage.new_window for stage in report.stages] == [(8, 8), (8, 8)]
    assert any(note.startswith("Windows: no stage has another one.") for note in report.notes)


def test_impossible_sizes(source: str, tmp_path: Path) -> None:
    for size in (2, 0, -64):
        with pytest.raises(UsageError, match="the windows cannot be planned so"):
            convert(source, tmp_path / "out", image_size=size)
    assert not (tmp_path / "out").exists()


def test_position_embeddings_are_resampled(tmp_path: Path) -> None:
    """The authors' may have absolute ones; it is said."""
    file = foreign.microsoft_file(small_sizes(window_size=4))
    file["absolute_pos_embed"] = torch.randn(1, 256, 16)
    torch.save(file, tmp_path / "weights.pth")
    report = convert(str(tmp_path / "weights.pth"), tmp_path / "out", image_size=96)
    assert any("absolute position embeddings were resampled" in note for note in report.notes)
    assert swinv2.load(tmp_path / "out").swinv2.embeddings.position_embeddings.shape == (1, 576, 16)
