"""The whole way from weights to a model or a folder, with other windows, and what is said of it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import foreign
import peers
import swinv2
from conversions import NAMED, check_tensors, save
from foreign import small_sizes
from swinv2 import Swinv2ForVideoClassification
from swinv2.convert import convert
from swinv2.convert.conversion import Inflation
from swinv2.convert.write import state_dict
from swinv2.errors import UsageError


@pytest.fixture
def source(tmp_path: Path) -> str:
    """An authors' file: 64 pixels, windows of 8, the second stage learned in 6."""
    file = foreign.microsoft_file(small_sizes(window_size=8, pretrained=(0, 6)))
    return save({"model": file}, tmp_path / "swinv2_x_patch4_window8_64.pth")


def test_a_name_on_the_hub(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is fetched as a folder; without a network it is a sentence."""
    convert(source, tmp_path / "fetched")
    asked: list[str] = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        assert "config.json" in allow_patterns
        assert not any("bin" in pattern or pattern == "*" for pattern in allow_patterns)
        return str(tmp_path / "fetched")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    swinv2.load("somebody/a-model")
    assert asked == ["somebody/a-model"]

    def fail(name: str, allow_patterns: list[str]) -> str:
        raise OSError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(UsageError, match="cannot be loaded from the Hugging Face hub: no connection"):
        swinv2.load("somebody/a-model")


def test_a_repository_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickles are not fetched from the hub; the sentence says what to do."""
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *arguments, **named: str(tmp_path))
    with pytest.raises(UsageError, match=r"no safetensors .*; download the \.pth you want and give its path"):
        convert("someone/pickles", None)


def test_every_stage_keeps_the_window_it_learned_in(source: str, tmp_path: Path) -> None:
    report = convert(source, tmp_path / "out", image_size=128, window_size=16)
    windows = [(stage.window, stage.new_window, stage.learned_window) for stage in report.stages]
    assert windows == [((8, 8), (16, 16), (8, 8)), ((8, 8), (16, 16), (6, 6))]
    assert [(stage.grid, stage.new_grid) for stage in report.stages] == [((16, 16), (32, 32)), ((8, 8), (16, 16))]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["image_size"], config["window_size"], config["pretrained_window_sizes"]) == (128, 16, [8, 6])
    said = next(note for note in report.notes if note.startswith("Windows:"))
    assert "stage 1 from 8 x 8 to 16 x 16, stage 2 from 8 x 8 to 16 x 16" in said
    assert "the windows in which it was learned, 8 x 8, 6 x 6; no weight was changed" in said
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
    images = peers.images((128, 128))
    with torch.no_grad():
        ours = model(images).logits
        assert peers.difference(ours, new(images)) < 1e-5
        assert peers.difference(ours, stretched(images)) > 1e-3


def test_twice_is_as_once(source: str, tmp_path: Path) -> None:
    """A converted folder remembers what it learned in, so that going on from it loses nothing."""
    convert(source, tmp_path / "first", image_size=96, window_size=12)
    convert(str(tmp_path / "first"), tmp_path / "second", image_size=128, window_size=16)
    convert(source, tmp_path / "direct", image_size=128, window_size=16)
    assert (tmp_path / "second" / "config.json").read_text() == (tmp_path / "direct" / "config.json").read_text()


def test_only_the_size(source: str) -> None:
    report = convert(source, None, image_size=(128, 64))
    assert report.new_image_size == (128, 64)
    assert [stage.new_window for stage in report.stages] == [(8, 8), (8, 8)]
    assert any(note.startswith("Windows: no stage has another one.") for note in report.notes)


def test_impossible_sizes(source: str, tmp_path: Path) -> None:
    for size in (2, 0, -64):
        with pytest.raises(UsageError, match="these sizes are impossible"):
            convert(source, tmp_path / "out", image_size=size)
    assert not (tmp_path / "out").exists()


def test_position_embeddings_are_resampled(tmp_path: Path) -> None:
    """The authors' may have absolute ones; it is said."""
    file = foreign.microsoft_file(small_sizes(window_size=4))
    file["absolute_pos_embed"] = torch.randn(1, 256, 16)
    report = convert(save(file, tmp_path / NAMED), tmp_path / "out", image_size=96)
    assert any("absolute position embeddings were resampled" in note for note in report.notes)
    assert swinv2.load(tmp_path / "out").swinv2.embeddings.position_embeddings.shape == (1, 576, 16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_types_are_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    """16 and 64 bits go through to the bit, in tables of the same type too."""
    sizes = small_sizes(window_size=8, pretrained=(4, 3))
    file = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in foreign.microsoft_file(sizes).items()
    }
    report = convert(save({"model": file}, tmp_path / "weights.pth"), tmp_path / "out", trained_image_size=64)
    assert report.dtype == str(dtype).removeprefix("torch.")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == report.dtype
    model = swinv2.load(tmp_path / "out")
    back = state_dict(model, "microsoft")
    learned = {name: tensor for name, tensor in file.items() if "relative" not in name and "mask" not in name}
    check_tensors({name: back[name] for name in learned}, learned)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_a_model_keeps_the_type_with_which_it_computes(name: str, tmp_path: Path) -> None:
    """transformers loads weights of 16 bits in the type that config.json says."""
    fields = {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
    model = swinv2.Swinv2ForImageClassification(swinv2.Swinv2Config(**fields))
    model.save_pretrained(tmp_path / "in")
    config = json.loads((tmp_path / "in" / "config.json").read_text())
    config.pop("dtype")
    (tmp_path / "in" / "config.json").write_text(json.dumps({**config, name: "float32"}))
    halves = {key: tensor.half() for key, tensor in model.state_dict().items()}
    save_file(halves, tmp_path / "in" / "model.safetensors", {"format": "pt"})
    report = convert(str(tmp_path / "in"), tmp_path / "out", inflation=Inflation(num_frames=4))
    assert report.dtype == "float32"
    assert "The weights are of float16, and config.json says float32; all were converted to float32." in report.notes
    assert Swinv2ForVideoClassification.from_pretrained(tmp_path / "out").dtype is torch.float32
    # Never to fewer bits.
    (tmp_path / "in" / "config.json").write_text(json.dumps({**config, name: "float16"}))
    model.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "config.json").write_text(json.dumps({**config, name: "float16"}))
    assert convert(str(tmp_path / "whole"), None).dtype == "float32"
    assert convert(str(tmp_path / "in"), None).dtype == "float16"


def test_mixed_types_become_the_widest_with_a_sentence(tmp_path: Path) -> None:
    file = foreign.microsoft_file(small_sizes())
    file["head.weight"] = file["head.weight"].half()
    report = convert(save({"model": file}, tmp_path / NAMED), None)
    assert report.dtype == "float32"
    assert "The weights are of float16 and float32; all were converted to float32." in report.notes


def test_labels_are_written(tmp_path: Path) -> None:
    sizes = foreign.Sizes(**foreign.SMALL, image_size=64, window_size=4, pretrained=(0, 0), num_labels=1000)
    convert(save(foreign.microsoft_file(sizes), tmp_path / NAMED), tmp_path / "out")
    labels = json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]
    assert (len(labels), labels["1"]) == (1000, "goldfish, Carassius auratus")
    # A folder's own names come through, even where there are as many as ImageNet has.
    convert(str(tmp_path / "out"), tmp_path / "timm", "timm")
    names = json.loads((tmp_path / "timm" / "config.json").read_text())["label_names"]
    assert names[1] == "goldfish, Carassius auratus"
