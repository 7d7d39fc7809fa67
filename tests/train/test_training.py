"""Whole trainings, from flags to files: what they leave behind, and what they survive."""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback, pipeline

import peers
import swinv2
from colours import draw_colours
from swinv2 import console
from swinv2.cli import training
from swinv2.disk import UNFINISHED
from swinv2.errors import UsageError
from swinv2.train import checkpoints
from swinv2.train.finetune import make_finetuning
from swinv2.train.health import DivergedError, TooManyBrokenError
from swinv2.train.optim.muon import MuonAdamW
from swinv2.train.pretrain import make_pretraining, mask_maker
from swinv2.train.running import run_training
from swinv2.train.settings import FinetuneSettings, PretrainSettings, parse_settings
from swinv2.train.trainer import SwinTrainer

MASKS = ["--mask_block", "4", "--norm_targets", "9"]
AUGMENTED = [
    *("--drop_path_rate", "0.2", "--mixup", "0.8", "--cutmix", "1.0", "--dataloader_drop_last", "true"),
    *("--label_smoothing_factor", "0.1", "--auto_augment", "rand-m9-mstd0.5-inc1", "--erase_probability", "0.25"),
    *("--ema_decay", "0.9"),
]

MUON = ["--matrix_learning_rate", "5e-3"]
ACCUMULATED = ["--gradient_accumulation_steps", "2", "--per_device_train_batch_size", "4"]


def make(command: str, flags: list[str]) -> SwinTrainer:
    """A trainer that is ready."""
    if command == "pretrain":
        return make_pretraining(parse_settings(PretrainSettings, [*flags, *MASKS], command))
    return make_finetuning(parse_settings(FinetuneSettings, flags, command))


def train(command: str, flags: list[str], prepare: Callable[[SwinTrainer], None] = lambda trainer: None) -> SwinTrainer:
    """Runs a training in this process."""
    trainer = make(command, flags)
    prepare(trainer)
    run_training(trainer)
    return trainer


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in log(run) if "loss" in entry]


class CrashError(Exception):
    """Stands for the end of a process."""


class CrashAt(TrainerCallback):
    """Ends the training after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == self.step:
            raise CrashError


class TestPretraining:
    def test_what_it_leaves_behind(self, flags: list[str], tmp_path: Path) -> None:
        trainer = train("pretrain", flags)
        run = tmp_path / "run"
        names = {path.name for path in run.iterdir()}
        assert names == {
            *("checkpoint-12", "checkpoint-15", "final", "log.jsonl", "curves.png", "reconstructions.png"),
            "results.json",
        }
        entries = log(run)
        assert [step for step, _ in losses(run)] == list(range(1, 16))
        assert all(entry["images_per_second"] > 0 and entry["avg_distance"] > 1 for entry in entries if "loss" in entry)
        assert sum("eval_loss" in entry for entry in entries) == 4
        first, last = (entry["eval_loss"] for entry in [e for e in entries if "eval_loss" in e][::3])
        assert last < first
        assert json.loads((run / "results.json").read_text())["step"] == 15
        with Image.open(run / "reconstructions.png") as image:
            assert image.size[0] > 4 * 32
        model = swinv2.Swinv2ForMaskedImageModeling.from_pretrained(run / "final")
        assert model.config.norm_targets == 9
        for name, value in trainer.model.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name

    def test_the_encoder_goes_on_into_a_classifier(self, flags: list[str], tmp_path: Path) -> None:
        train("pretrain", flags)
        final = tmp_path / "run" / "final"
        more = ["--model", str(final), "--model_fields", "{}", "--output_dir", str(tmp_path / "fine")]
        trainer = make("finetune", flags + more)
        before = weights(final)
        shared = [name for name in trainer.model.state_dict() if not name.startswith("classifier")]
        assert shared
        assert all(torch.equal(trainer.model.state_dict()[name], before[name]) for name in shared)


@pytest.mark.parametrize(
    ("block", "ratio", "sentence"),
    [
        (3, 0.6, "a multiple of the patch size"),
        (0, 0.6, "a multiple of the patch size"),
        (8, 1.0, "expected above 0 and below 1"),
        (8, 0.0, "expected above 0 and below 1"),
        (32, 0.6, "mask the whole image"),  # one block
        (16, 0.8, "mask the whole image"),  # 4 of 4 blocks
    ],
)
def test_masks_that_are_none(block: int, ratio: float, sentence: str) -> None:
    config = swinv2.Swinv2Config(**CONFIG)
    with pytest.raises(UsageError, match=sentence):
        mask_maker(config, block, ratio)
    assert mask_maker(config, 16, 0.7)().float().mean() == 0.75


class TestFinetuning:
    def test_it_learns_and_serves(self, flags: list[str], colours: Path, tmp_path: Path) -> None:
        train("finetune", flags)
        run = tmp_path / "run"
        results = json.loads((run / "results.json").read_text())
        assert results["eval_top1"] == 1.0
        assert results["eval_images"] == 15
        swinv2.register()
        classify = pipeline("image-classification", str(run / "final"))
        answers = classify(str(colours / "validation" / "red" / "0.png"))
        assert answers[0]["label"] == "red"

    def test_everything_at_once(self, flags: list[str], tmp_path: Path) -> None:
        trainer = train("finetune", [*flags, *AUGMENTED, "--layer_decay", "0.8", "--lr-scheduler-type", "cosine"])
        assert len(trainer.optimizer.param_groups) > 4
        assert trainer.average is not None
        # What is kept is the average, which differs from the last weights.
        kept, last = weights(tmp_path / "run" / "final"), trainer.model.state_dict()
        means = dict(trainer.average.module.named_parameters())
        assert all(torch.equal(kept[name], mean) for name, mean in means.items())
        assert any(not torch.equal(kept[name], last[name]) for name in means)

    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers
    def test_lora_learns_little(self, flags: list[str], tmp_path: Path) -> None:
        # A fresh model's post-norms are zero: nothing before them would ever learn beside frozen norms.
        base = peers.draw_weights(swinv2.Swinv2ForImageClassification(swinv2.Swinv2Config(**CONFIG)))
        base.save_pretrained(tmp_path / "base")
        more = ["--model", str(tmp_path / "base"), "--model_fields", "{}", "--lora", "true", "--lora_rank", "2"]
        trainer = make("finetune", flags + more)
        learning = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
        assert all("lora_" in name or "classifier" in name for name in learning)
        run_training(trainer)
        final = tmp_path / "run" / "final"
        assert (final / "adapter" / "adapter_model.safetensors").is_file()
        merged, plain = weights(final), base.state_dict()
        changed = {name for name, value in plain.items() if not torch.equal(merged[name], value)}
        assert {name.split(".")[-2] for name in changed} == {"query", "value", "classifier"}

    def test_the_best_of_an_average_is_an_average(self, flags: list[str], tmp_path: Path) -> None:
        more = ["--ema_decay", "0.9", "--load_best_model_at_end", "true", "--metric_for_best_model", "eval_loss"]
        more += ["--save_strategy", "epoch", "--greater_is_better", "true"]  # the worst, which is not the last
        trainer = train("finetune", [*flags, *more])
        best = Path(trainer.state.best_model_checkpoint)
        assert best.name == "checkpoint-5"
        means = torch.load(best / "average.pt", weights_only=True)
        for name, value in weights(tmp_path / "run" / "final").items():
            assert torch.equal(value, means[f"module.{name}"]), name

    def test_labels_without_a_class(self, flags: list[str], tmp_path: Path) -> None:
        rows = {"image": [np.zeros((8, 8, 3), np.uint8)] * 3, "label": [0, 1, 2]}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
        (tmp_path / "names.txt").write_text("cat\ndog\n\n")
        secret = datasets.Dataset.from_dict(rows | {"label": [0, -1, 1]}, features=features)
        secret.to_parquet(tmp_path / "secret.parquet")
        names = ["--label_names_file", str(tmp_path / "names.txt")]
        with pytest.raises(UsageError, match="has a label -1, but there are 2 classes"):
            make("finetune", [*flags, *names, "--data", str(tmp_path / "secret.parquet"), "--eval_strategy", "no"])
        more = ["--data", str(tmp_path / "train.parquet"), *names]
        with pytest.raises(UsageError, match="has a label 2, but there are 2 classes"):
            make("finetune", [*flags, *more, "--eval_strategy", "no"])

    @pytest.mark.parametrize("command", [pytest.param("pretrain", marks=pytest.mark.slow), "finetune"])
    def test_muon(self, command: str, flags: list[str], tmp_path: Path) -> None:
        trainer = train(command, [*flags, *MUON])
        assert isinstance(trainer.optimizer.optimizer, MuonAdamW)
        assert losses(tmp_path / "run")[-1][1] < losses(tmp_path / "run")[0][1]

    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers
    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (MUON, "--matrix-learning-rate and --fsdp do not work together"),
            (["--ema_decay", "0.9"], "ema_decay needs a complete copy of the model"),
            (["--lora", "true"], "--lora and --fsdp do not work together"),
        ],
        ids=["muon", "average", "lora"],
    )
    def test_what_needs_a_whole_model_is_refused_where_it_is_sharded(
        self, more: list[str], message: str, flags: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        create = SwinTrainer.create_accelerator_and_postprocess

        def shard(trainer: SwinTrainer) -> None:
            create(trainer)
            trainer.is_fsdp_enabled = True

        monkeypatch.setattr(SwinTrainer, "create_accelerator_and_postprocess", shard)
        with pytest.raises(UsageError, match=message):
            make("finetune", [*flags, *more])


CONFIG: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 2,
    "window_size": 4,
    "embed_dim": 16,
    "depths": [1, 2],
    "num_heads": [1, 2],
    "num_labels": 3,
}


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

    @pytest.mark.parametrize("where", ["nowhere", "."])
    def test_a_checkpoint_that_is_none(self, where: str, flags: list[str], tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="--resume-from-checkpoint"):
            train("finetune", [*flags, "--resume_from_checkpoint", str(tmp_path / where)])

    @pytest.mark.slow
    def test_a_corrupt_checkpoint_is_passed_over(
        self, flags: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        train("finetune", [*flags, "--output_dir", str(tmp_path / "whole")])
        with pytest.raises(CrashError):
            train("finetune", flags, lambda trainer: trainer.add_callback(CrashAt(9)))
        with (tmp_path / "run" / "checkpoint-8" / "optimizer.pt").open("r+b") as file:
            file.truncate(200)
        train("finetune", [*flags, "--resume"])
        assert "optimizer.pt has 200 bytes" in caplog.text
        assert losses(tmp_path / "run") == losses(tmp_path / "whole")


class TestTrouble:
    def test_a_loss_that_is_no_number(self, flags: list[str], tmp_path: Path) -> None:
        def poison(trainer: SwinTrainer) -> None:
            class Poison(TrainerCallback):
                def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
                    if state.global_step == 6:
                        with torch.no_grad():
                            next(trainer.model.parameters()).fill_(float("nan"))

            trainer.add_callback(Poison())

        with pytest.raises(DivergedError, match=r"at step 6 the loss.*checkpoint-4 is valid"):
            train("finetune", flags, poison)
        assert [path.name for path in checkpoints.checkpoints(tmp_path / "run")] == ["checkpoint-4"]

    def test_weights_that_are_no_numbers_are_not_saved(self, flags: list[str], tmp_path: Path) -> None:
        """A finite loss may have a gradient that is not, and the step after it may be a save."""

        class Poison(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **rest: Any) -> None:
                if state.global_step == 8:
                    with torch.no_grad():
                        next(model.parameters()).view(-1)[3] = float("inf")

        with pytest.raises(DivergedError, match=r"checkpoint-4 is valid"):
            train("finetune", flags, lambda trainer: trainer.add_callback(Poison()))
        assert [path.name for path in checkpoints.checkpoints(tmp_path / "run")] == ["checkpoint-4"]

    def test_a_full_disk(self, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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

    def test_unreadable_images_are_skipped_up_to_a_number(self, flags: list[str], tmp_path: Path) -> None:
        draw_colours(tmp_path / "data" / "train", 12)
        draw_colours(tmp_path / "data" / "validation", 5)
        for split, index in (("train", 3), ("train", 7), ("validation", 2)):
            (tmp_path / "data" / split / "red" / f"{index}.png").write_bytes(b"not an image")
        flags = [*flags, "--data", str(tmp_path / "data")]
        # Each counts once, in however many epochs it is met.
        train("finetune", [*flags, "--max_broken_images", "2"])
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        assert (results["eval_images"], results["eval_unreadable"]) == (14, 1)
        with pytest.raises(TooManyBrokenError, match="more than --max-broken-images 1"):
            train("finetune", [*flags, "--max_broken_images", "1", "--output_dir", str(tmp_path / "other")])

    def test_sigterm_saves_and_says_so(self, flags: list[str], tmp_path: Path) -> None:
        # To all processes, as launchers, timeout and terminals do: those that read images must not leave.
        flags = [*flags, "--num_train_epochs", "2000", "--save_strategy", "epoch", "--dataloader_num_workers", "2"]
        process = start("finetune", flags)
        wait_for(lambda: (tmp_path / "run" / "log.jsonl").exists() and len(losses(tmp_path / "run")) > 2, process)
        os.killpg(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGTERM, errors
        newest, unusable = checkpoints.newest_valid(tmp_path / "run")
        assert newest is not None
        assert not unusable
        # What ends an epoch is not done for one that was left.
        evaluated = [entry["step"] for entry in log(tmp_path / "run") if "eval_loss" in entry]
        assert all(step % 5 == 0 for step in evaluated)

    @pytest.mark.parametrize("persistent", ["false", "true"])
    def test_no_more_processes_read_than_were_asked_for(
        self, persistent: str, flags: list[str], tmp_path: Path
    ) -> None:
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

    def test_lines_of_progress_where_there_is_no_terminal(
        self, flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.02)
        train("finetune", [*flags, "--num_train_epochs", "6", "--per_device_eval_batch_size", "1"])
        said = capsys.readouterr().err
        number = "[0-9.e+-]+"
        step = rf"training: step [0-9]+/30, loss {number}, rate {number}, {number} images/s, 0:[0-9]+ left\n"
        assert re.search(step, said), said
        assert re.search(rf"evaluating: batch [0-9]+/15, {number} images/s, 0:[0-9]+ left\n", said), said

    def test_a_run_that_resumes_says_from_where(
        self, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(CrashError):
            train("finetune", flags, lambda trainer: trainer.add_callback(CrashAt(6)))
        assert "going on" not in capsys.readouterr().err
        assert training.train("finetune", [*flags, "--resume", "--as_json", "true"]) == 0
        out, err = capsys.readouterr()
        run = tmp_path / "run"
        assert f"resuming from step 4 of 15: {run / 'checkpoint-4'}\n" in err
        assert json.loads(out)["resumed_from_step"] == 4
        marks = [(entry["step"], entry["resumed_from_step"]) for entry in log(run) if "resumed_from_step" in entry]
        assert marks == [(4, 4)]

    @pytest.mark.slow
    def test_a_signal_during_an_evaluation(self, flags: list[str], tmp_path: Path) -> None:
        """The processes that read images for it must stay, and the step that follows is the last."""
        draw_colours(tmp_path / "more", 200)
        flags = [
            *flags,
            "--eval_data",
            str(tmp_path / "more"),
            "--eval_split",
            "train",
            "--dataloader_num_workers",
            "2",
        ]
        flags += ["--num_train_epochs", "2000", "--eval_strategy", "steps", "--eval_steps", "1"]
        process = start("finetune", [*flags, "--per_device_eval_batch_size", "2"])
        wait_for(lambda: (tmp_path / "run" / "log.jsonl").exists() and len(losses(tmp_path / "run")) > 1, process)
        # The line of a loss is written just before its evaluation.
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=90)
        assert process.returncode == 128 + signal.SIGTERM, errors
        assert checkpoints.newest_valid(tmp_path / "run")[0] is not None

    def test_a_dry_run_prints_and_does_nothing(
        self, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
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

    def test_a_checkpoint_of_other_groups_is_status_2(
        self, flags: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(CrashError):
            train("finetune", flags, lambda trainer: trainer.add_callback(CrashAt(6)))
        with pytest.raises(typer.Exit) as end:
            training.train("finetune", [*flags, "--resume", "--layer_decay", "0.5"])
        assert end.value.exit_code == 2
        assert "does not fit these settings" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("before", "after"), [([], MUON), pytest.param(MUON, [], marks=pytest.mark.slow)], ids=["to Muon", "from Muon"]
    )
    def test_a_checkpoint_of_another_optimizer_is_status_2(
        self, before: list[str], after: list[str], flags: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(CrashError):
            train("finetune", [*flags, *before], lambda trainer: trainer.add_callback(CrashAt(6)))
        with pytest.raises(typer.Exit) as end:
            training.train("finetune", [*flags, *after, "--resume"])
        assert end.value.exit_code == 2
        said = " ".join(capsys.readouterr().err.split())
        assert re.search(r"does not fit these settings: .*group.*--matrix-learning-rate or none", said), said

    def test_stopped_by_itself_is_status_3(self, flags: list[str], colours: Path, tmp_path: Path) -> None:
        for image in (colours / "train").rglob("*.png"):
            copy = tmp_path / "data" / image.relative_to(colours)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(image.read_bytes()[: 300 if image.stem in "012" else None])
        flags = [*flags, "--data", str(tmp_path / "data"), "--max_broken_images", "0", "--eval_strategy", "no"]
        assert training.train("finetune", flags) == training.STOPPED


def start(command: str, flags: list[str]) -> "subprocess.Popen[str]":
    """Runs a training in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", "from swinv2.cli import app; app()", command, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]", seconds: float = 90) -> None:
    """Waits until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


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
