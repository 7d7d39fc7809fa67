"""Runs that are stopped before they save NaN, or when too many images are unreadable."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from colours import draw_colours
from swinv2.train import checkpoints
from swinv2.train.health import DivergedError, TooManyBrokenError
from swinv2.train.trainer import SwinTrainer
from trainings import train


def test_a_loss_that_is_no_number(flags: list[str], tmp_path: Path) -> None:
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


def test_weights_that_are_no_numbers_are_not_saved(flags: list[str], tmp_path: Path) -> None:
    """A finite loss may have a gradient that is not, and the step after it may be a save."""

    class Poison(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **rest: Any) -> None:
            if state.global_step == 8:
                with torch.no_grad():
                    next(model.parameters()).view(-1)[3] = float("inf")

    with pytest.raises(DivergedError, match=r"checkpoint-4 is valid"):
        train("finetune", flags, lambda trainer: trainer.add_callback(Poison()))
    assert [path.name for path in checkpoints.checkpoints(tmp_path / "run")] == ["checkpoint-4"]


def test_unreadable_images_are_skipped_up_to_a_number(flags: list[str], tmp_path: Path) -> None:
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
