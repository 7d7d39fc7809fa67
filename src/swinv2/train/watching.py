"""What people and programs see of a training while it runs.

In: what the Trainer tells its callbacks. Out: a progress bar with images per second, `log.jsonl`, `curves.png`.
"""

import json
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from swinv2.disk import whole_file

LOG_NAME, CURVES_NAME = "log.jsonl", "curves.png"


class Bar(ProgressCallback):
    """transformers' bar, with the loss and the images per second at its end instead of lines above it."""

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


class Log(TrainerCallback):
    """Keeps `log.jsonl` and `curves.png` in step with what was learned.

    A run that goes on from a checkpoint begins with the lines up to it: what was logged after it is logged again.

    Args:
        run: Folder of the run.
    """

    def __init__(self, run: Path) -> None:
        self.run = run

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        if state.is_world_process_zero:
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
        # The drawing library takes a second to import, and most of this package does without.
        from swinv2.train.drawing.curves import draw_curves

        if state.is_world_process_zero and any("loss" in entry for entry in state.log_history):
            draw_curves(state.log_history, self.run / CURVES_NAME, self.run.name)
