"""Optimisers, averages, checkpoints: and an interrupted run takes the steps that it would have taken."""

import json
import multiprocessing
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from swinv2.disk import UNFINISHED
from swinv2.errors import UsageError
from swinv2.train import checkpoints
from swinv2.train.optim.muon import MuonAdamW
from swinv2.train.trainer import SwinTrainer
from trainings import (
    ACCUMULATED,
    AUGMENTED,
    MUON,
    CrashAt,
    CrashError,
    log,
    losses,
    make,
    start,
    train,
    wait_for,
    weights,
)


def test_the_best_of_an_average_is_an_average(flags: list[str], tmp_path: Path) -> None:
    more = ["--ema_decay", "0.9", "--load_best_model_at_end", "true", "--metric_for_best_model", "eval_loss"]
    more += ["--save_strategy", "epoch", "--greater_is_better", "true"]  # the worst, which is not the last
    trainer = train("finetune", [*flags, *more])
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name == "checkpoint-5"
    means = torch.load(best / "average.pt", weights_only=True)
    for name, value in weights(tmp_path / "run" / "final").items():
        assert torch.equal(value, means[f"module.{name}"]), name


@pytest.mark.parametrize("command", [pytest.param("pretrain", marks=pytest.mark.slow), "finetune"])
def test_muon(command: str, flags: list[str], tmp_path: Path) -> None:
    trainer = train(command, [*flags, *MUON])
    assert isinstance(trainer.optimizer.optimizer, MuonAdamW)
    assert losses(tmp_path / "run")[-1][1] < losses(tmp_path / "run")[0][1]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (MUON, "--matrix-learning-rate and --fsdp do not work together"),
        (["--ema_decay", "0.9"], "ema_decay needs a complete copy of the model"),
        (["--lora", "true"], "--fsdp shards models without LoRA and without --task only"),
    ],
    ids=["muon", "average", "lora"],
)
def test_what_needs_a_whole_model_is_refused_where_it_is_sharded(
    more: list[str], message: str, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    create = SwinTrainer.create_accelerator_and_postprocess

    def shard(trainer: SwinTrainer) -> None:
        create(trainer)
        trainer.is_fsdp_enabled = True

    monkeypatch.setattr(SwinTrainer, "create_accelerator_and_postprocess", shard)
    with pytest.raises(UsageError, match=message):
        make("finetune", [*flags, *more])


class TestGoingOn:
    """A run that was interrupted takes the steps that it would have taken."""

    @pytest.mark.parametrize(
        ("command", "more", "step"),
        [
            pytest.param("pretrain", [], 6, marks=pytest.mark.slow),
            pytest.param("finetune", AUGMENTED, 3, marks=pytest.mark.slow),
            ("finetune", AUGMENTED, 4),
            pytest.param("finetune", AUGMENTED, 11, marks=pytest.mark.slow),
            pytest.param("finetune", [*MUON, *ACCUMULATED], 7, marks=pytest.mark.slow),
        ],
        ids=["pretrain", "before the first save", "between a save and the next step", "in the last epoch", "muon"],
    )
    def test_to_the_bit(self, command: str, more: list[str], step: int, flags: list[str], tmp_path: Path) -> None:
        flags = [*flags, *more]
        train(command, [*flags, "--output_dir", str(tmp_path / "whole")])
        with pytest.raises(CrashError):
            train(command, flags, lambda trainer: trainer.add_callback(CrashAt(step)))
        assert not (tmp_path / "run" / "final").exists()
        # What comes before must not matter.
        torch.manual_seed(step)
        random.seed(step)
        train(command, [*flags, "--resume"])
        assert losses(tmp_path / "run") == losses(tmp_path / "whole")
        one, other = (weights(tmp_path / name / "final") for name in ("run", "whole"))
        assert all(torch.equal(one[name], other[name]) for name in other)

    @pytest.mark.slow
    def test_data_order_does_not_depend_on_workers(self, flags: list[str], tmp_path: Path) -> None:
        train("finetune", flags)
        train("finetune", [*flags, "--dataloader_num_workers", "2", "--output_dir", str(tmp_path / "other")])
        assert losses(tmp_path / "run") == losses(tmp_path / "other")

    @pytest.mark.slow
    def test_a_finished_run_stays_as_it_is(self, flags: list[str], tmp_path: Path) -> None:
        flags = [*flags, "--max_steps", "6", "--eval_strategy", "no"]  # within an epoch
        train("finetune", flags)
        with pytest.raises(UsageError, match="--resume"):
            train("finetune", flags)
        before, curve = weights(tmp_path / "run" / "final"), losses(tmp_path / "run")
        train("finetune", [*flags, "--resume"])
        assert losses(tmp_path / "run") == curve
        after = weights(tmp_path / "run" / "final")
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert json.loads((tmp_path / "run" / "results.json").read_text())["loss"] == curve[-1][1]

    @pytest.mark.slow
    def test_another_learning_rate_is_followed(self, flags: list[str], tmp_path: Path) -> None:
        flags = [*flags, "--lr-scheduler-type", "linear", "--eval_strategy", "no"]
        with pytest.raises(CrashError):
            train("finetune", flags, lambda trainer: trainer.add_callback(CrashAt(6)))
        shutil.copytree(tmp_path / "run", tmp_path / "other")
        train("finetune", [*flags, "--resume"])
        slower = ["--learning_rate", "5e-4", "--weight_decay", "0.01", "--save_steps", "5"]
        trainer = train("finetune", [*flags, "--resume", *slower, "--output_dir", str(tmp_path / "other")])
        steps = {run: [entry for entry in log(tmp_path / run) if "learning_rate" in entry] for run in ("run", "other")}
        old, new = ([entry["learning_rate"] for entry in steps[run][4:15]] for run in steps)
        assert new == pytest.approx([rate / 4 for rate in old])
        assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.0, 0.01}
        assert checkpoints.checkpoints(tmp_path / "other")[1].name == "checkpoint-10"


def test_a_full_disk(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.save

    def full(obj: Any, path: Any, *rest: Any, **options: Any) -> None:
        if "checkpoint-8" in str(path) and Path(path).name == "optimizer.pt":
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        plain(obj, path, *rest, **options)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(checkpoints.SaveError, match=r"No space left.*checkpoint-4 is complete"):
        train("finetune", flags)
    monkeypatch.undo()
    assert not list((tmp_path / "run").glob(f"{UNFINISHED}*"))
    assert checkpoints.newest_valid(tmp_path / "run")[0] == tmp_path / "run" / "checkpoint-4"


@pytest.mark.parametrize("persistent", ["false", "true"])
def test_no_more_processes_read_than_were_asked_for(persistent: str, flags: list[str], tmp_path: Path) -> None:
    """Nor is one left at the end, although something may keep the frames in which a checkpoint was saved."""
    kept: list[Any] = []
    counts: list[int] = []

    class Keep(TrainerCallback):
        def on_save(self, *args: Any, **rest: Any) -> None:
            kept.append(sys._getframe())

        def on_epoch_end(self, *args: Any, **rest: Any) -> None:
            counts.append(len(multiprocessing.active_children()))

    flags = [*flags, "--eval_strategy", "no", "--dataloader_num_workers", "2", "--save_steps", "2"]
    flags += ["--dataloader_persistent_workers", persistent]
    with pytest.raises(CrashError):
        train("finetune", flags, lambda trainer: trainer.add_callback(CrashAt(3)))
    assert not multiprocessing.active_children()
    train("finetune", [*flags, "--resume"], lambda trainer: trainer.add_callback(Keep()))
    assert kept
    assert counts == [2, 2, 2]
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_twenty_times_at_random_moments(flags: list[str], tmp_path: Path) -> None:
    """SIGKILL, while saving too: the run ends with the weights of one that was left alone, to the bit."""
    flags = [*flags, "--num_train_epochs", "12", "--save_steps", "1", *AUGMENTED]
    whole = start("finetune", [*flags, "--output_dir", str(tmp_path / "whole")])
    _, errors = whole.communicate(timeout=300)
    assert whole.returncode == 0, errors
    draw = random.Random(0)
    run = tmp_path / "run"
    kills = 0
    while kills < 20:
        process = start("finetune", [*flags, "--resume"])
        good, _ = checkpoints.newest_valid(run) if run.exists() else (None, [])
        begun = 0 if good is None else int(good.name.split("-")[1])
        # From the first saves on, at any moment of a step or a save.
        wait_for(lambda begun=begun: (run / f"checkpoint-{begun + 1}").exists() or (run / "final").exists(), process)
        time.sleep(draw.uniform(0, 0.15))
        if (run / "results.json").exists():
            process.communicate()
            break
        process.kill()
        process.communicate()
        kills += 1
        newest, _ = checkpoints.newest_valid(run)
        assert newest is not None
    assert kills >= 15
    last = start("finetune", [*flags, "--resume"])
    _, errors = last.communicate(timeout=300)
    assert last.returncode == 0, errors
    one, other = weights(run / "final"), weights(tmp_path / "whole" / "final")
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert losses(run) == losses(tmp_path / "whole")
