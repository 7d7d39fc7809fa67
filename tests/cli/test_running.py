"""What all commands share: one-sentence errors, the exit status, the shipped model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from commands import swinv2_command
from swinv2 import Swinv2ForImageClassification
from swinv2.predict import shipped


def test_classify_takes_the_shipped_model_and_says_so(
    model: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "FOLDER", model)
    result = swinv2_command("classify", images / "photo 2.png")
    assert result.exit_code == 0
    assert "no --model given: using the Tiny-ImageNet model that ships with the package (200 labels)" in result.stderr
    assert "--model microsoft/" in result.stderr
    monkeypatch.setattr(shipped, "FOLDER", model / "gone")
    result = swinv2_command("classify", images / "photo 2.png")
    assert result.exit_code == 2
    assert "reinstall the package" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify"], "no image was given"),
        (["classify", "gone"], "no such file or folder"),
        (["classify", "IMAGES", "--json", "--csv"], "choose one"),
        (["classify", "IMAGES", "-m", "./gone"], "there is no folder './gone'"),
        (["classify", "IMAGES", "-m", "IMAGES"], "it has no config.json"),
        (["classify", "IMAGES", "-m", "microsoft/swinv2-tiny-patch4-window8-256"], "Without --model"),
        (["classify", "IMAGES", "-m", "MODEL", "--device", "gpu"], "device 'gpu'"),
        (["classify", "IMAGES", "-m", "MODEL", "--dtype", "int8"], "--dtype is 'int8'; expected float32, bfloat16"),
        (["classify", "IMAGES", "-m", "MODEL", "--top-k", "0"], "--top-k"),
        (["classify", "IMAGES", "-m", "MODEL", "--batch-size", "0"], "--batch-size"),
        (["features", "IMAGES", "-m", "MODEL"], "--output"),
        (["features", "-o", "a.parquet", "-m", "MODEL"], "no image was given"),
        (["features", "IMAGES", "-m", "MODEL", "-o", "a.npy"], ".safetensors or .parquet"),
        (["features", "IMAGES", "-m", "MODEL", "-o", "a.parquet", "--stage", "stage9"], "pooled, stem, stage1, stage2"),
        (["info", "giant"], "giant-1b or giant-3b"),
        (["info", "IMAGES"], "it has no config.json"),
        (["info"], "MODEL"),
        (["info", "tiny", "--batch-size", "2"], "no effect without --memory"),
        (["info", "tiny", "--image-size", "wide"], "pixels such as 256"),
        (["info", "MODEL", "--image-size", "0"], "--image-size"),
        (["info", "tiny", "--window-size", "0"], "--window-size is '0'; expected tokens such as 8"),
        (["info", "tiny", "--window-size", "8,8,4"], "one for each of the 4 stages"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"IMAGES": images, "MODEL": model}
    result = swinv2_command(*(names.get(argument, argument) for argument in arguments))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    if result.stderr.startswith("error: "):
        assert result.stderr.count("\n") == 1


def test_too_little_memory_is_a_sentence(model: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Swinv2ForImageClassification, "forward", fail)
    result = swinv2_command("classify", images / "photo 2.png", "-m", model)
    assert result.exit_code == 2
    assert "--batch-size" in result.stderr


def test_an_output_that_cannot_be_made_is_a_sentence(model: Path, images: Path, tmp_path: Path) -> None:
    """Its name, and why."""
    (tmp_path / "taken").write_text("a file")
    for output in (tmp_path / "taken", tmp_path / "taken" / "folder"):
        result = swinv2_command("evaluate", images, "--model", model, "--output", output)
        assert result.exit_code == 2
        assert "Traceback" not in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments", [["info", "tiny"], ["classify", "--csv"]])
def test_a_full_disk_is_a_sentence(model: Path, images: Path, arguments: list[str]) -> None:
    """Of a command that ends well, and of one that skips a file and ends with a status of its own."""
    given = [str(images), "-m", str(model)] if arguments[0] == "classify" else []
    script = "from swinv2.cli import app; app()"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments, *given],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: no space is left on the disk; the output is incomplete."
    assert "Traceback" not in done.stderr
