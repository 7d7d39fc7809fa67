"""The checkpoint from which a run resumes."""

import json
import logging
from pathlib import Path

import pytest

from swinv2.cli import training
from swinv2.errors import UsageError
from trainings import CrashAt, CrashError, log, losses, make, train


@pytest.mark.parametrize("where", ["nowhere", "."])
def test_a_checkpoint_that_is_none(where: str, flags: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--resume-from-checkpoint"):
        train("finetune", [*flags, "--resume_from_checkpoint", str(tmp_path / where)])


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_folder_with_checkpoints_is_refused_before_a_model_is_built(
    command: str, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run" / "checkpoint-4").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"no checkpoint of .* is valid"):
        make(command, [*flags, "--resume"])
    monkeypatch.setattr(f"swinv2.train.{command}.model_to_{command}", None)
    with pytest.raises(UsageError, match="has checkpoints of an earlier run; add --resume"):
        make(command, flags)
    # A preview writes nothing.
    monkeypatch.undo()
    make(command, [*flags, "--dry-run"])


@pytest.mark.slow
def test_a_corrupt_checkpoint_is_passed_over(
    flags: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train("finetune", [*flags, "--output_dir", str(tmp_path / "whole")])
    with pytest.raises(CrashError):
        train("finetune", flags, lambda trainer: trainer.add_callback(CrashAt(9)))
    with (tmp_path / "run" / "checkpoint-8" / "optimizer.pt").open("r+b") as file:
        file.truncate(200)
    train("finetune", [*flags, "--resume"])
    assert "optimizer.pt has 200 bytes" in caplog.text
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_run_that_resumes_says_from_where(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CrashError):
        train("finetune", flags, lambda trainer: trainer.add_callback(CrashAt(6)))
    assert "resuming" not in capsys.readouterr().err
    assert training.train("finetune", [*flags, "--choose-settings", "false", "--resume", "--as_json", "true"]) == 0
    out, err = capsys.readouterr()
    run = tmp_path / "run"
    assert f"resuming from step 4 of 15: {run / 'checkpoint-4'}\n" in err
    assert json.loads(out)["resumed_from_step"] == 4
    marks = [(entry["step"], entry["resumed_from_step"]) for entry in log(run) if "resumed_from_step" in entry]
    assert marks == [(4, 4)]
    assert "no step is left" not in err
    # Once more: the run has ended.
    assert training.train("finetune", [*flags, "--choose-settings", "false", "--resume", "--as_json", "true"]) == 0
    assert "no step is left; for more, give --num-train-epochs or --max-steps" in capsys.readouterr().err


def test_nothing_to_resume_is_said(
    flags: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("swinv2"), "propagate", True)
    make("finetune", [*flags, "--resume"])
    assert "has no checkpoint to resume from; the training begins with its first step" in caplog.text
