"""`swinv2 convert` as a user meets it: what it prints, what it refuses, and the exit status."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import foreign
from foreign import small_sizes
from swinv2 import Swinv2ForImageClassification, load
from swinv2.cli import app
from swinv2.errors import UsageError


def swinv2_command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="swinv2")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth"
    torch.save({"model": foreign.microsoft_file(small_sizes(window_size=8, pretrained=(4, 3)))}, path)
    return path


def test_what_was_recognised_is_shown(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = swinv2_command("convert", source, out, "--image-size", "128", "--window-size", 16)
    assert result.exit_code == 0, result.output
    lines = {" ".join(line.split()) for line in result.stdout.splitlines()}
    assert "weights of microsoft" in lines
    assert "image size 64x64 -> 128x128 (from the file's own tables)" in lines
    assert "stage1 2 16 2 16x16 -> 32x32 8x8 -> 16x16 4x4 -> 8x8 4x4" in lines
    assert "stage2 2 32 4 8x8 -> 16x16 8x8 -> 16x16 0x0 3x3" in lines
    assert result.stderr.strip() == f"written: {out}"
    Swinv2ForImageClassification.from_pretrained(out)


def test_json(source: Path, tmp_path: Path) -> None:
    result = swinv2_command("convert", source, tmp_path / "out", "--to", "timm", "--json")
    report = json.loads(result.stdout)
    assert (report["dialect"], report["format"], report["files"]) == (
        "microsoft",
        "timm",
        ["config.json", "model.safetensors"],
    )
    assert [stage["learned_window"] for stage in report["stages"]] == [[4, 4], [3, 3]]


def test_dry_run(source: Path, tmp_path: Path) -> None:
    """Nothing is written, with and without a folder."""
    for arguments in ([], [tmp_path / "out"]):
        result = swinv2_command("convert", source, *arguments, "--dry-run")
        assert result.exit_code == 0, result.output
        assert "nothing was written" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "no folder to make was given"),
        (["OUT", "--image-size", "64x64x64"], "--image-size is '64x64x64'; expected pixels such as 256"),
        (["OUT", "--trained-image-size", "big"], "--trained-image-size is 'big'"),
        (["OUT", "--pretrained-window-sizes", "12,x"], "expected a window for each stage, such as 12,12,12,6"),
        (["OUT", "--window-size", "8;8"], "--window-size is '8;8'; expected tokens such as 8"),
        (["OUT", "--trained-window-size", "0"], "--trained-window-size is '0'; expected tokens such as 8"),
        (["OUT", "--to", "keras"], "there is no format 'keras'"),
        (["."], "is there already, and is not replaced"),
    ],
)
def test_refusals(arguments: list[str], expected: str, source: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    result = swinv2_command("convert", source, *(out if argument == "OUT" else argument for argument in arguments))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert expected in " ".join(result.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]


def test_a_name_on_the_hub(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is fetched as a folder; without a network it is a sentence."""
    swinv2_command("convert", source, tmp_path / "fetched")
    asked: list[str] = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        assert "config.json" in allow_patterns
        assert not any("bin" in pattern or pattern == "*" for pattern in allow_patterns)
        return str(tmp_path / "fetched")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    load("somebody/a-model")
    assert asked == ["somebody/a-model"]

    def fail(name: str, allow_patterns: list[str]) -> str:
        raise OSError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(UsageError, match="did not give it: no connection"):
        load("somebody/a-model")
