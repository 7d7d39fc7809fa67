"""A run of any trainer: it opens the data, trains, evaluates and saves.

In: settings, then a trainer. Out: a folder with the trained model, its image processor and `results.json`; the exit
status. `preview.py` makes the preview of a run.
"""

import json
import logging
import signal
from collections.abc import Callable, Sequence, Sized
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

import torch
from transformers import PrinterCallback, ProgressCallback

from swinv2.console import Lines, message_console
from swinv2.disk import delete_unfinished, whole_file
from swinv2.errors import UsageError
from swinv2.train.checkpoints import checkpoint_to_resume
from swinv2.train.data.augment import Pixels, Transform, for_evaluation, make_processor
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.examples import EvaluationExamples, Masks, SampleTransform, StreamedExamples, TrainingExamples
from swinv2.train.data.masks.names import read_lines
from swinv2.train.data.sources import open_dataset
from swinv2.train.data.tasks import refuse_masks_and_objects
from swinv2.train.settings import RunSettings
from swinv2.train.signals import noting_signals
from swinv2.train.trainer import SwinTrainer
from swinv2.train.watching import ProgressBar, ProgressLines, RunLog

logger = logging.getLogger(__name__)

FINAL, RESULTS_NAME = "final", "results.json"


def prepare_run(settings: RunSettings) -> None:
    """Finds the checkpoint from which the run resumes and makes it the setting; seeds the weights of the model."""
    if not settings.dry_run:
        found = checkpoint_to_resume(settings.run, settings.resume_from_checkpoint, settings.resume)
        settings.resume_from_checkpoint = None if found is None else str(found)
        if settings.resume and found is None:
            logger.warning(f"{settings.run} has no checkpoint to resume from; the training begins with its first step")
    torch.manual_seed(settings.seed)


def read_names(file: str) -> tuple[str, ...]:
    """The names of classes of --label-names-file; none if it is not given.

    Raises:
        UsageError: The file cannot be read.
    """
    return tuple(read_lines(Path(file))) if file else ()


def open_training(
    settings: RunSettings, names: tuple[str, ...] = (), *, needs_labels: bool = True
) -> tuple[ImageDataset, ImageDataset | None]:
    """Opens the images to train on and, if evaluation is wanted, those to evaluate. If the data has no split for
    evaluation, a share of the training images of each class is set aside, whatever --seed is, so that no later run
    trains on them."""
    if needs_labels and Path(settings.data).is_dir():
        refuse_masks_and_objects(Path(settings.data))
    columns: Any = {"image_column": settings.image_column, "label_column": settings.label_column, "names": names}
    columns["needs_labels"] = needs_labels
    train = open_dataset(settings.data, settings.train_split, streaming=settings.streaming, **columns)
    how = f", about {settings.held_out_share:.0%} of each class,"
    return with_evaluation(settings, train, lambda source, split: open_dataset(source, split, **columns), how)


class Divisible(Sized, Protocol):
    """What `with_evaluation` needs of a data set; see `ImageDataset`."""

    things: ClassVar[str]

    @property
    def source(self) -> str: ...
    @property
    def has_evaluation_split(self) -> bool: ...
    def set_aside(self, share: float, /) -> tuple[Self, Self]: ...
    def share(self, fraction: float, seed: int, /) -> Self: ...


Data = TypeVar("Data", bound=Divisible)


def with_evaluation(
    settings: RunSettings, train: Data, open_split: Callable[[str, str], Data], how: str = ""
) -> tuple[Data, Data | None]:
    """The wanted share of the images to train on and, if evaluation is wanted, those to evaluate: of a split, or set
    aside.

    Args:
        settings: The settings.
        train: All images to train on.
        open_split: Opens a split of a source.
        how: What the message says about images that are set aside, behind their number.
    """
    wanted = settings.eval_strategy != "no" or settings.do_eval
    evaluation = None
    lacks_split = settings.eval_split == "evaluation" and not train.has_evaluation_split
    if wanted and (settings.eval_data or not lacks_split):
        evaluation = open_split(settings.eval_data or settings.data, settings.eval_split)
    elif wanted:
        if settings.streaming:
            raise UsageError(
                f"--data {settings.data!r} has no split to evaluate, and none can be set aside from a stream; give "
                "--eval-data, or use --eval-strategy no."
            )
        train, evaluation = train.set_aside(settings.held_out_share)
        if not len(evaluation):
            raise UsageError(
                f"--data {settings.data!r} has no split to evaluate, and its {len(train)} {train.things} are too few "
                f"to set some aside; give --eval-data, a larger --held-out-share, or use --eval-strategy no."
            )
        logger.warning(
            f"{train.source} has no split to evaluate: {len(evaluation):,} of its {train.things}{how} are set aside "
            "for it (--held-out-share)"
        )
    return train.share(settings.train_fraction, settings.seed), evaluation


def refuse_metric(settings: RunSettings, known: Sequence[str]) -> None:
    """Raises an error if `--metric-for-best-model` is not among the metrics of an evaluation; the Trainer would look
    only after the first one."""
    wanted = settings.metric_for_best_model
    if wanted is not None and wanted.removeprefix("eval_") not in known:
        raise UsageError(f"--metric-for-best-model is {wanted!r}; expected {' or '.join(known)}.")


def data_arguments(
    settings: RunSettings,
    train: ImageDataset,
    evaluation: ImageDataset | None,
    pixels: Pixels,
    augment: Transform,
    masks: Masks | None = None,
    crop_ratio: float | None = None,
) -> dict[str, Any]:
    """The arguments of a run's trainer for its examples and its image processor. Training examples are augmented."""
    transform = SampleTransform(augment, pixels.channels, masks, settings.seed, len(train.names) * train.several)
    plain = replace(transform, image_transform=for_evaluation(pixels, crop_ratio))
    if train.streams:
        place = settings.process_index, settings.world_size
        examples: Any = StreamedExamples(train, transform, *place, settings.shuffle_buffer)
    else:
        examples = TrainingExamples(train, transform)
    return {
        "train_dataset": examples,
        "eval_dataset": evaluation and EvaluationExamples(evaluation, plain),
        "processing_class": make_processor(pixels, crop_ratio),
    }


def run_training(trainer: SwinTrainer) -> tuple[dict[str, Any], int]:
    """Trains, evaluates and saves, and shows the progress with a bar or with lines.

    Args:
        trainer: The trainer; its `processing_class` is the image processor that is saved with the model.

    Returns:
        The results, and the exit status: 0, or 128 + the number of the signal that stopped the run.
    """
    settings, run = trainer.args, trainer.run
    if settings.should_save:
        delete_unfinished(run)
    trainer.pop_callback(ProgressCallback)
    trainer.pop_callback(PrinterCallback)
    lines = None
    if not settings.disable_tqdm:
        trainer.add_callback(ProgressBar(trainer.things))
    elif settings.should_save:
        lines = Lines(0, message_console(), "starting", trainer.things)
        trainer.add_callback(ProgressLines(lines, trainer.describe_step))
    log = RunLog(run)
    trainer.add_callback(log)
    results: dict[str, Any] = {}
    with lines or nullcontext():
        with noting_signals(trainer.note_signal):
            trainer.train(resume_from_checkpoint=settings.resume_from_checkpoint)
        history = trainer.state.log_history
        if log.resumed_from_step is not None:
            results["resumed_from_step"] = log.resumed_from_step
        state = trainer.state
        results["step"] = state.global_step
        # A signal after the last step has stopped nothing.
        if trainer.stopping and trainer.signal is not None:
            return results | {"stopped_by": signal.Signals(trainer.signal).name}, 128 + trainer.signal
        results["loss"] = next((line["loss"] for line in reversed(history) if "loss" in line), None)
        if trainer.eval_dataset is not None:
            results |= trainer.evaluate_final()
        if settings.load_best_model_at_end and state.best_global_step is not None:
            results["kept_step"] = state.best_global_step
        if state.global_step < state.max_steps:
            results["stopped_early_of"] = state.max_steps
        trainer.save_final(run / FINAL)
        if trainer.eval_dataset is not None and settings.should_save:
            results |= trainer.report()
    if settings.should_save:
        with whole_file(run / RESULTS_NAME, alone=True) as partial:
            partial.write_text(json.dumps(results, indent=2) + "\n")
    return results, 0
