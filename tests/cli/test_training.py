"""The commands that train: the preview, and exit statuses."""

import json
import re
import sys
from pathlib import Path

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils
from typer.testing import CliRunner

from swinv2.cli import app, training
from swinv2.predict.shipped import shipped_model
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


def test_what_a_library_refuses_is_status_2(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    result = CliRunner().invoke(app, ["finetune", *flags, "--choose-settings", "false", "--optim", "adamw_8bit"])
    assert (result.exit_code, "--optim adamw_8bit cannot be used" in " ".join(result.stderr.split())) == (2, True)
    result = CliRunner().invoke(app, ["finetune", *flags, "--report-to", "wandb"])
    assert result.exit_code == 2
    assert "--report-to cannot be used: WandbCallback requires wandb" in " ".join(result.stderr.split())


def test_a_tracker_that_cannot_start_is_status_2(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class NoNetworkError(Exception):
        """What a tracker may raise."""

    class Tracker(TrainerCallback):
        def on_train_begin(self, *args: object, **rest: object) -> None:
            raise NoNetworkError("The server cannot be reached.")

    Tracker.__module__ = "transformers.integrations.made"
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Tracker)
    result = CliRunner().invoke(app, ["finetune", *flags, "--report-to", "wandb"])
    assert result.exit_code == 2
    assert "--report-to cannot be used: The server cannot be reached. Fix it" in " ".join(result.stderr.split())


def test_a_finetuning_without_a_model_starts_from_the_one_that_ships(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    where = flags.index("--model")
    without = [*flags[:where], *flags[where + 4 :]]
    assert training.train("finetune", [*without, "--dry-run", "--as-json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["settings"]["model"] == str(shipped_model())
    assert "no --model given: using the" in err
    result = CliRunner().invoke(app, ["pretrain", *without])
    assert (result.exit_code, "--model is missing" in result.stderr) == (2, True)


def test_a_training_prints_recalls_and_figures(flags: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["finetune", *flags])
    assert result.exit_code == 0
    assert re.search(r"label +recall", result.stdout)
    assert "drawn:" in result.stderr
    assert (tmp_path / "run" / "confusion.png").is_file()
