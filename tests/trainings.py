"""Whole trainings of a small model, from flags to files, and what tests read of them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

from colours import MODEL
from swinv2.train.finetune import make_finetuning
from swinv2.train.pretrain import make_pretraining
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
FIXED = ["--choose-settings", "false"]
"""For commands whose runs are compared with those of `make`, which chooses nothing."""
ACCUMULATED = ["--gradient_accumulation_steps", "2", "--per_device_train_batch_size", "4"]
CONFIG: dict[str, Any] = MODEL | {"num_labels": 3}


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


def start(command: str, flags: list[str]) -> "subprocess.Popen[str]":
    """Runs a training in a process of its own, with fixed defaults."""
    flags = [*flags, *FIXED] if command == "finetune" else flags
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
