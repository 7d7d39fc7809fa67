"""Folders in the format of each library: read again, whole or not there, and refused where it could not compute."""

import json
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file

import foreign
import swinv2
from conversions import NAMED, File, check_answers, check_tensors, model_with, refused, save
from foreign import small_sizes
from swinv2.convert import convert
from swinv2.convert.write import _timm_config
from swinv2.errors import UsageError


def test_a_masked_image_model_has_no_format_in_timm(tmp_path: Path) -> None:
    sizes = {"image_size": 64, "window_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4]}
    model = swinv2.Swinv2ForMaskedImageModeling(swinv2.Swinv2Config(**sizes, encoder_stride=8))
    model.save_pretrained(tmp_path / "model")
    for format in ("timm", "torchvision", "mmpretrain"):
        with pytest.raises(UsageError, match="no mask token and no decoder"):
            convert(str(tmp_path / "model"), tmp_path / "out", format)


@pytest.mark.parametrize("format", ["swinv2", "transformers", "timm", "torchvision", "microsoft", "mmpretrain"])
def test_every_format_is_read_again(format: str, tmp_path: Path) -> None:
    """What is written in any format, loads again as the same network."""
    sizes = small_sizes()
    network = foreign.timm_network(sizes)
    source = save({"model": foreign.microsoft_file(sizes, network)}, tmp_path / "weights.pth")
    report = convert(source, tmp_path / format, format, trained_image_size=64)
    has_names = format in ("swinv2", "transformers", "timm")
    assert any("names of the classes are not in the folder" in note for note in report.notes) != has_names
    # The masks of the authors' format show the image size.
    has_size = has_names or format == "microsoft"
    assert any("read the folder back, give --trained-image-size 64x64" in note for note in report.notes) != has_size
    sized = {} if has_size else {"trained_image_size": 64}
    check_answers(swinv2.load(tmp_path / format, **sized), network)
    again = convert(str(tmp_path / format), tmp_path / "again", format, **sized)
    for name in again.files:
        first, second = (tmp_path / format / name), (tmp_path / "again" / name)
        if name == "model.safetensors":
            check_tensors(load_file(first), load_file(second))
        elif name == "model.pth":
            loaded = [torch.load(path, weights_only=True) for path in (first, second)]
            inner = {"microsoft": "model", "mmpretrain": "state_dict"}.get(format)
            check_tensors(*(content[inner] if inner else content for content in loaded))
        else:
            assert first.read_text() == second.read_text(), name


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
    check_answers(model, lambda images: theirs(images).logits, (64, 64))
    check_answers(model, built, (64, 64))
    assert swinv2.load(tmp_path / "microsoft", trained_image_size=64).config.window_size == 16


@pytest.mark.parametrize("format", ["swinv2", "timm", "microsoft"])
def test_a_full_disk(format: str, file: File, tmp_path: Path) -> None:
    """The system stops writing after some bytes, as on a full disk: the folder is not there, nor a part of it."""
    path = save({"model": file}, tmp_path / NAMED)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        sentence = refused(path, tmp_path, format=format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "could not be written" in sentence
    assert "Nothing was left behind" in sentence


def test_an_interruption_leaves_nothing(file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stops it while it writes."""
    path = save({"model": file}, tmp_path / NAMED)

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("swinv2.convert.write._write_json_file", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(path, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == [NAMED]


def test_outputs_that_are_there_or_cannot_be(file: File, tmp_path: Path) -> None:
    """A file, a folder, a dangling link; and a place that is none. They are refused before the source is opened."""
    out = tmp_path / "out"
    for make in (out.touch, out.mkdir, lambda: out.symlink_to(tmp_path / "gone")):
        make()
        assert "exists already" in refused("nowhere.pth", tmp_path)
        out.rmdir() if out.is_dir() else out.unlink()
    with pytest.raises(UsageError, match="there is no folder"):
        convert("nowhere.pth", tmp_path / "no" / "out")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="there is no folder"):
        convert("nowhere.pth", tmp_path / "file" / "out")
