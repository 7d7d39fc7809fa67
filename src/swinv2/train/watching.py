"""The progress and the log of a running training.

In: events of the Trainer. Out: `log.jsonl` and `curves.png`; in a terminal a progress bar with images per second,
elsewhere a line every half minute.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from swinv2.console import Lines
from swinv2.disk import whole_file

LOG_NAME, CURVES_NAME = "log.jsonl", "curves.png"


class ProgressBar(ProgressCallback):
    """transformers' bar, with the loss and the images per second at its end instead of on lines above it."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **rest: Any,
    ) -> None:
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        names = {"loss": "loss", "images_per_second": "images/s", "eval_loss": "eval", "eval_top1": "top-1"}
        shown = {title: f"{logs[name]:.4g}" for name, title in names.items() if name in logs}
        if shown:
            self.training_bar.set_postfix(shown)


class ProgressLines(TrainerCallback):
    """Reports the progress of training and evaluations as lines.

    Args:
        lines: Prints the lines.
        images: Images of a step, on all processes together.
        facts: Returns further text for a line of the training.
    """

    def __init__(self, lines: Lines, images: int, facts: Callable[[], str]) -> None:
        self.lines, self.images, self.facts = lines, images, facts
        self._evaluated = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        self._train(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        self.lines.update(state.global_step, state.max_steps)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        batches = len(rest["eval_dataloader"])
        if not self._evaluated:
            self.lines.begin("evaluating: batch", 0, batches, args.eval_batch_size * args.world_size)
        self._evaluated += 1
        self.lines.update(self._evaluated, batches)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        self._evaluated = 0
        self._train(state)

    def _train(self, state: TrainerState) -> None:
        self.lines.begin("training: step", state.global_step, state.max_steps, self.images, self.facts)


class RunLog(TrainerCallback):
    """Writes `log.jsonl` and `curves.png`.

    If a run resumes, the log is cut to the lines before the checkpoint, and gets a line with the step; the steps after
    the checkpoint are logged again.

    Args:
        run: Folder of the run.
        begun_at: Called if the run resumes, with its step and the total number of steps.
    """

    def __init__(self, run: Path, begun_at: Callable[[int, int], None]) -> None:
        self.run, self.begun_at = run, begun_at

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        if state.is_world_process_zero:
            if state.global_step:
                state.log_history.append(
                    {"resumed_from_step": state.global_step, "epoch": state.epoch, "step": state.global_step}
                )
                self.begun_at(state.global_step, state.max_steps)
            self.run.mkdir(parents=True, exist_ok=True)
            with whole_file(self.run / LOG_NAME, alone=True) as partial:
                partial.write_text("".join(json.dumps(entry) + "\n" for entry in state.log_history))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        if state.is_world_process_zero and state.log_history:
            with (self.run / LOG_NAME).open("a") as file:
                file.write(json.dumps(state.log_history[-1]) + "\n")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        self._draw(state)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        self._draw(state)

    def _draw(self, state: TrainerState) -> None:
        # matplotlib takes a second to import, and most of this package does not need it.
        from swinv2.train.drawing.curves import draw_curves

        if state.is_world_process_zero and any("loss" in entry for entry in state.log_history):
            draw_curves(state.log_history, self.run / CURVES_NAME, self.run.name)
