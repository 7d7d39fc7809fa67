"""`swinv2 convert` as a user meets it: what it prints, what it refuses, and the exit status."""

import json
from pathlib import Path

import pytest
import torch

import foreign
from commands import swinv2_command
from conversions import model_with, save
from foreign import small_sizes
from swinv2 import Swinv2ForImageClassification
from swinv2.convert.write import state_dict


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "swinv2_x_patch4_window8_64.pth"
    torch.save({"model": foreign.microsoft_file(small_sizes(window_size=8, pretrained=(4, 3)))}, path)
    return path


def test_what_was_recognised_is_shown(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = swinv2_command("convert", source, out, "--image-size", "128", "--window-size", 16)
    assert result.exit_code == 0, result.output
    lines = {" ".join(line.split()) for line in result.stdout.splitlines()}
    assert "weights of microsoft" in lines
    assert "image size 64x64 -> 128x128 (from the file's own tables)" in lines
    assert "window 8 -> 16 (from the file's own tables)" in lines
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
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "no output folder was given"),
        (["OUT", "--image-size", "64x64x64"], "--image-size is '64x64x64'; expected pixels such as 256"),
        (["OUT", "--trained-image-size", "big"], "--trained-image-size is 'big'"),
        (["OUT", "--pretrained-window-sizes", "12,x"], "expected a window for each stage, such as 12,12,12,6"),
        (["OUT", "--window-size", "8;8"], "--window-size is '8;8'; expected tokens such as 8"),
        (["OUT", "--trained-window-size", "0"], "--trained-window-size is '0'; expected tokens such as 8"),
        (["OUT", "--to", "keras"], "there is no format 'keras'"),
        (["."], "exists already, and is not replaced"),
    ],
)
def test_refusals(arguments: list[str], expected: str, source: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    result = swinv2_command("convert", source, *(out if argument == "OUT" else argument for argument in arguments))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert expected in " ".join(result.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_the_command_plans_them(tmp_path: Path) -> None:
    """Each stage keeps the window it learned in, and what was done is said in the words of the options."""
    source = save(state_dict(model_with((4, 8), image_size=(64, 128)), "timm"), tmp_path / "weights.pth")
    known = ["--trained-image-size", "64x128", "--trained-window-size", "4x8"]
    planned = ["--image-size", "64", "--window-size", "8,4x2"]
    result = swinv2_command("convert", source, tmp_path / "out", *known, *planned)
    assert result.exit_code == 0, result.output
    assert "4x8 -> 8,4x2 (from given)" in result.stdout
    assert "stage 1 from 4 x 8 to 8 x 8, stage 2 from 4 x 8 to 4 x 2" in " ".join(result.stdout.split())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["window_size"] == [[8, 8], [4, 2]]
    assert config["pretrained_window_sizes"] == [[4, 8], [4, 8]]
    # What was given must agree with a config.json, however it is written.
    agreed = ["--trained-window-size", "8x8,4x2", "--pretrained-window-sizes", "4x8,4x8", "--dry-run"]
    assert swinv2_command("convert", tmp_path / "out", *agreed).exit_code == 0
    differing = ["--trained-window-size", "4x2", "--dry-run"]
    result = swinv2_command("convert", tmp_path / "out", *differing)
    assert result.exit_code == 2
    assert "window_size [[8, 8], [4, 2]], but [4, 2] was given" in " ".join(result.stderr.split())
