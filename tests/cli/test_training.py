"""The commands that train: the preview, and exit statuses."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from swinv2.cli import app, training
from trainings import MUON, CrashAt, CrashError, train


def test_a_dry_run_prints_and_does_nothing(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert training.train("finetune", [*flags, "--dry-run"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for said in (
        *("36 images, 3 classes", "15 steps of 8 images, 2 of them warm-up", "which is 0.128 for 512 images"),
        *("image size, windows 32, [[4, 4], [4, 4]]", "layer learning rate weight decay tensors parameters"),
        "warmup_steps 2",
    ):
        assert said in printed
    assert training.train("finetune", [*flags, "--dry-run", "--as-json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 15
    assert not list((tmp_path / "run").iterdir())


def test_a_checkpoint_of_other_groups_is_status_2(flags: list[str]) -> None:
    with pytest.raises(CrashError):
        train("finetune", flags, lambda trainer: trainer.add_callback(CrashAt(6)))
    result = CliRunner().invoke(app, ["finetune", *flags, "--resume", "--layer_decay", "0.5"])
    assert result.exit_code == 2
    assert "does not fit these settings" in result.stderr


@pytest.mark.parametrize(
    ("before", "after"), [([], MUON), pytest.param(MUON, [], marks=pytest.mark.slow)], ids=["to Muon", "from Muon"]
)
def test_a_checkpoint_of_another_optimizer_is_status_2(before: list[str], after: list[str], flags: list[str]) -> None:
    with pytest.raises(CrashError):
        train("finetune", [*flags, *before], lambda trainer: trainer.add_callback(CrashAt(6)))
    result = CliRunner().invoke(app, ["finetune", *flags, *after, "--resume"])
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert re.search(r"does not fit these settings: .*group.*--matrix-learning-rate or none", said), said


def test_stopped_by_itself_is_status_3(flags: list[str], colours: Path, tmp_path: Path) -> None:
    for image in (colours / "train").rglob("*.png"):
        copy = tmp_path / "data" / image.relative_to(colours)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(image.read_bytes()[: 300 if image.stem in "012" else None])
    flags = [*flags, "--data", str(tmp_path / "data"), "--max_broken_images", "0", "--eval_strategy", "no"]
    assert training.train("finetune", flags) == training.STOPPED
