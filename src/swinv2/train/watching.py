"""The progress and the log of a running training.

In: events of the Trainer. Out: `log.jsonl` and `curves.png`; in a terminal a progress bar with the speed,
elsewhere a line every half minute.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerState

from swinv2.console import Lines, message_console
from swinv2.disk import whole_file

LOG_NAME, CURVES_NAME = "log.jsonl", "curves.png"

SECONDS_BETWEEN_CURVES = 20.0
"""Epochs of small data sets take a second or two; drawing takes half a second."""


class ProgressBar(ProgressCallback):
    """transformers' bar, with the loss and the speed at its end instead of on lines above it.

    Args:
        things: What a step trains on: images or videos.
    """

    def __init__(self, things: str) -> None:
        super().__init__()
        self._things = things

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Shows loss, speed and accuracy at the end of the bar."""
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        names = {
            "loss": "loss",
            "images_per_second": f"{self._things}/s",
            "eval_loss": "eval",
            "eval_top1": "top-1",
            "eval_mAP": "mAP",
            "eval_mIoU": "mIoU",
            "eval_AP": "AP",
        }
        shown = {title: f"{logs[name]:.4g}" for name, title in names.items() if name in logs}
        if shown:
            self.training_bar.set_postfix(shown)


@dataclass(eq=False)
class ProgressLines(TrainerCallback):
    """Reports the progress of training and evaluations as lines.

    Attributes:
        lines: Prints the lines.
        describe_step: Returns further text for a line of the training.
    """

    lines: Lines
    describe_step: Callable[[], str]
    _evaluated: int = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Begins the lines of the training."""
        self.lines.begin("training: step", state.global_step, state.max_steps, args.whole_batch, self.describe_step)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Counts a step of the training."""
        self.lines.update(state.global_step, state.max_steps)

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **_: Any) -> None:
        """Counts a batch of an evaluation."""
        if not self._evaluated:
            images = args.eval_batch_size * args.world_size
            self.lines.begin("evaluating: batch", 0, len(eval_dataloader), images)
        self._evaluated += 1
        self.lines.update(self._evaluated, len(eval_dataloader))

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """After an evaluation, the lines report the training again; after the last step, the time since then."""
        self._evaluated = 0
        if state.global_step < state.max_steps:
            self.on_train_begin(args, state, control)
        else:
            self.lines.begin("saving", 0, 0)


@dataclass(eq=False)
class RunLog(TrainerCallback):
    """Writes `log.jsonl` and `curves.png`.

    If a run resumes, the log is cut to the lines before the checkpoint, and gets a line with the step, which a message
    names too; the steps after the checkpoint are logged again.
    """

    run: Path
    resumed_from_step: int | None = None
    _drawn: float = -math.inf

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Begins the log of the run, or notes the step from which it resumes."""
        step = state.global_step
        if step:
            # In all processes: each has its own history.
            self.resumed_from_step = step
            state.log_history.append({"resumed_from_step": step, "epoch": state.epoch, "step": step})
        if not state.is_world_process_zero:
            return
        if step:
            said = f"resuming from step {step:,} of {state.max_steps:,}: {args.resume_from_checkpoint}"
            message_console().print(said)
            if step >= state.max_steps:
                message_console().print("no step is left; for more, give --num-train-epochs or --max-steps")
        self.run.mkdir(parents=True, exist_ok=True)
        with whole_file(self.run / LOG_NAME, alone=True) as partial:
            partial.write_text("".join(json.dumps(entry) + "\n" for entry in state.log_history))

    def on_log(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Adds a line to the log of the run."""
        if state.is_world_process_zero and state.log_history:
            with (self.run / LOG_NAME).open("a") as file:
                file.write(json.dumps(state.log_history[-1]) + "\n")

    def on_save(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Draws the curves of the training so far, unless it was done a short time ago."""
        if time.monotonic() - self._drawn > SECONDS_BETWEEN_CURVES:
            self._draw(state)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Draws the curves of the whole training."""
        self._draw(state)

    def _draw(self, state: TrainerState) -> None:
        """Draws the curves."""
        # matplotlib takes a second to import, and most of this package does not need it.
        from swinv2.train.drawing.curves import draw_curves

        if state.is_world_process_zero and any("loss" in entry for entry in state.log_history):
            draw_curves(state.log_history, self.run / CURVES_NAME, self.run.name)
            self._drawn = time.monotonic()
