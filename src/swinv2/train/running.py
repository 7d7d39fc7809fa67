"""A run of any trainer: it trains, evaluates and saves.

In: a trainer, ready to run. Out: a folder with the trained model, its image processor and `results.json`; the exit
status. `plan.py` makes the plan of a run.
"""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PrinterCallback, ProgressCallback

from swinv2.config import Swinv2Config
from swinv2.console import Lines, message_console
from swinv2.disk import delete_unfinished, whole_file
from swinv2.errors import UsageError
from swinv2.lengths import as_pair
from swinv2.train.checkpoints import checkpoint_to_resume
from swinv2.train.data.augment import Pixels
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.examples import SampleTransform, StreamedExamples, TrainingExamples
from swinv2.train.data.sources import open_dataset
from swinv2.train.settings import RunSettings
from swinv2.train.signals import noting_signals
from swinv2.train.trainer import SwinTrainer
from swinv2.train.watching import ProgressBar, ProgressLines, RunLog

FINAL, RESULTS_NAME = "final", "results.json"


def pixels_of(config: Swinv2Config, mean: list[float], std: list[float]) -> Pixels:
    """The pixels that a model takes."""
    return Pixels(as_pair("image_size", config.image_size), tuple(mean), tuple(std))


def open_training(settings: RunSettings, names: tuple[str, ...] = ()) -> tuple[ImageDataset, ImageDataset | None]:
    """Opens the images to train on and, if evaluation is wanted, those to evaluate."""
    columns: dict[str, Any] = {
        "image_column": settings.image_column,
        "label_column": settings.label_column,
        "names": names,
    }
    train = open_dataset(settings.data, settings.train_split, streaming=settings.streaming, **columns)
    train = train.share(settings.train_fraction, settings.seed)
    if settings.eval_strategy == "no" and not settings.do_eval:
        return train, None
    evaluation = open_dataset(settings.eval_data or settings.data, settings.eval_split, **columns)
    if not settings.eval_data and evaluation.split is None:
        raise UsageError(
            f"--data {settings.data!r} has only one split, so training and evaluation would use the same images; give "
            "--eval-data, or use --eval-strategy no."
        )
    return train, evaluation


def examples_to_train(
    settings: RunSettings, dataset: ImageDataset, transform: SampleTransform
) -> TrainingExamples | StreamedExamples:
    """The training examples of this process."""
    if dataset.streams:
        return StreamedExamples(
            dataset, transform, settings.process_index, settings.world_size, settings.shuffle_buffer
        )
    return TrainingExamples(dataset, transform)


@contextmanager
def _watched(trainer: SwinTrainer) -> Iterator[None]:
    """Shows the progress of a training, with a bar or with lines."""
    trainer.pop_callback(ProgressCallback)
    trainer.pop_callback(PrinterCallback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(ProgressBar())
        yield
    elif not trainer.args.should_save:
        yield
    else:
        with Lines(0, message_console(), "starting") as lines:
            trainer.add_callback(ProgressLines(lines, trainer.args.whole_batch, trainer.facts))
            yield


def run_training(trainer: SwinTrainer) -> tuple[dict[str, Any], int]:
    """Trains, evaluates and saves.

    Args:
        trainer: The trainer; its `processing_class` is the image processor that is saved with the model.

    Returns:
        The results, and the exit status: 0, or 128 + the number of the signal that stopped the run.
    """
    with _watched(trainer):
        return _run(trainer)


def _run(trainer: SwinTrainer) -> tuple[dict[str, Any], int]:
    settings = trainer.args
    if settings.should_save:
        delete_unfinished(trainer.run)
    start = checkpoint_to_resume(trainer.run, settings.resume_from_checkpoint, settings.resume)
    results: dict[str, Any] = {}

    def begin_at(step: int, steps: int) -> None:
        message_console().print(f"resuming from step {step:,} of {steps:,}: {start}")
        results["resumed_from_step"] = step

    trainer.add_callback(RunLog(trainer.run, begin_at))
    with noting_signals(trainer.note_signal):
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
    results["step"] = trainer.state.global_step
    # A signal after the last step has stopped nothing.
    if trainer.stopping and trainer.signal is not None:
        return results | {"stopped_by": signal.Signals(trainer.signal).name}, 128 + trainer.signal
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    results["loss"] = losses[-1] if losses else None
    if trainer.eval_dataset is not None:
        results |= trainer.evaluate()
    trainer.save_final(trainer.run / FINAL)
    if settings.should_save:
        with whole_file(trainer.run / RESULTS_NAME, alone=True) as partial:
            partial.write_text(json.dumps(results, indent=2) + "\n")
    return results, 0
