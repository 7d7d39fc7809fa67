"""The commands that train a model or evaluate it: `pretrain`, `finetune`, `evaluate` and `reconstruct`.

`swinv2.train` computes the results; most of it is imported only if one of these commands runs.
"""

import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from swinv2.cli.options import BatchSize, Device, Dtype, Images, Model, read_dtype
from swinv2.cli.running import (
    SKIPPED,
    find_or_refuse,
    finish,
    model_or_shipped,
    print_broken,
    quiet_transformers,
    writing,
)
from swinv2.console import data_console, message_console, progress_bar, shown
from swinv2.errors import UsageError
from swinv2.train.signals import StoppedError, noting_signals

if TYPE_CHECKING:
    from swinv2.train.settings import FinetuneSettings, PretrainSettings, RunSettings
    from swinv2.train.trainer import SwinTrainer

STOPPED = 3
"""Exit status of a training that failed after its start."""


def pretrain(context: typer.Context) -> None:
    """Pre-train a model without labels (SimMIM). --help lists all settings; --config FILE reads a recipe.

    Exit status 3: the training failed after its start. 143: stopped by SIGTERM, after saving a checkpoint.
    """
    raise typer.Exit(train("pretrain", context.args))


def finetune(context: typer.Context) -> None:
    """Train a classifier, from pre-trained weights or new. --help lists all settings; --config FILE reads a recipe.

    Exit status 3: the training failed after its start. 143: stopped by SIGTERM, after saving a checkpoint.
    """
    raise typer.Exit(train("finetune", context.args))


def train(command: str, flags: Sequence[str]) -> int:
    """Runs a training; returns its exit status. A second signal, or one outside the training loop, ends it at once."""
    what_is_kept = "--resume resumes from the newest checkpoint, if there is one"
    try:
        with noting_signals():
            settings = _read_settings(command, flags)
            if getattr(settings, "linear_probe", False):
                what_is_kept = "the same command reuses the features that are stored"
                return _preview_or_probe(cast("FinetuneSettings", settings))
            return _preview_or_train(_build_trainer(settings))
    except StoppedError as error:
        message_console().print(f"{error}: stopped at once; {what_is_kept}", style="yellow")
        return 128 + error.number


def _read_settings(command: str, flags: Sequence[str]) -> "RunSettings":
    """Reads flags. Help and most errors come before the slow imports."""
    from swinv2.train.flags import read_flags
    from swinv2.train.options import FinetuneOptions, PretrainOptions

    is_pretraining = command == "pretrain"
    options, help = (PretrainOptions, pretrain.__doc__) if is_pretraining else (FinetuneOptions, finetune.__doc__)
    chosen = {} if is_pretraining else {"choose_settings": True}
    told = read_flags(options, flags, f"swinv2 {command}", help, without_recipe=chosen)
    if not is_pretraining:
        told["model"] = model_or_shipped(told.get("model"), to_train=True)
    quiet_transformers()
    logger = logging.getLogger("swinv2")
    if not logger.handlers:
        logger.addHandler(RichHandler(console=message_console(), show_time=False, show_path=False, markup=False))
        logger.propagate = False
    from swinv2.train.choices import settings_of
    from swinv2.train.settings import PretrainSettings, make_settings

    return make_settings(PretrainSettings, told) if is_pretraining else settings_of(told)


def _build_trainer(settings: "RunSettings") -> "SwinTrainer":
    """Builds the trainer of a pre-training or a fine-tuning."""
    from swinv2.train.finetune import make_finetuning
    from swinv2.train.pretrain import make_pretraining
    from swinv2.train.settings import FinetuneSettings

    if isinstance(settings, FinetuneSettings):
        return make_finetuning(settings)
    return make_pretraining(cast("PretrainSettings", settings))


def _preview_or_probe(settings: "FinetuneSettings") -> int:
    """Prints the preview of a linear probe, or runs it and prints the results; returns the exit status."""
    import torch

    from swinv2.cli.training_report import print_results
    from swinv2.train.probe import make_probe

    probe = make_probe(settings)
    if settings.dry_run:
        _show_preview(probe.preview(), settings.as_json)
        return 0
    try:
        results = probe.run()
    except torch.OutOfMemoryError as error:
        raise UsageError(
            "the device has too little memory; give a smaller --per-device-eval-batch-size, or --use-cpu."
        ) from error
    print(json.dumps(results)) if settings.as_json else print_results(results, settings.run)
    return 0


def _preview_or_train(trainer: "SwinTrainer") -> int:
    """Prints the preview, or trains and prints the results; returns the exit status."""
    import torch

    from swinv2.cli.training_report import print_results, print_start
    from swinv2.train.checkpoints import SaveError, newest_valid
    from swinv2.train.health import DivergedError
    from swinv2.train.preview import make_preview
    from swinv2.train.running import run_training

    args = trainer.args
    preview = make_preview(trainer)
    if args.dry_run:
        _show_preview(preview, args.as_json)
        return 0
    messages = message_console()
    if args.should_save:
        print_start(preview, args.run)
    try:
        results, status = run_training(trainer)
    except UsageError as error:
        if not trainer.has_begun and not isinstance(error, (DivergedError, SaveError)):
            raise
        reason = str(error).strip()
        if "Original Traceback" in reason:
            # torch adds the traceback of a worker process, whose last line is the message.
            reason = reason.splitlines()[-1].partition(": ")[2]
    except torch.OutOfMemoryError:
        reason = (
            "the device has too little memory; give a smaller --per-device-train-batch-size with more "
            "--gradient-accumulation-steps, or --activation-checkpointing."
        )
    except OSError as error:
        kept = newest_valid(trainer.run)[0] or "there is none yet"
        reason = f"a file of the run could not be written or read: {error}. The newest checkpoint: {kept}."
    else:
        if not args.should_save:
            return status
        if args.as_json:
            print(json.dumps(results))
        elif status:
            said = f"{results['stopped_by']}: saved at step {results['step']}; --resume resumes it"
            messages.print(said, style="yellow")
        else:
            print_results(results, args.run)
        return status
    messages.print(Text.assemble(("stopped: ", "bold red"), reason))
    return STOPPED


def _show_preview(preview: dict[str, Any], as_json: bool) -> None:
    """Prints a preview, as JSON or as tables."""
    from swinv2.cli.training_report import print_preview

    print(json.dumps(preview, indent=2)) if as_json else print_preview(preview, Console(highlight=False))


def evaluate(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A folder of class folders, files, a data set's name.")],
    model: Model = None,
    split: Annotated[
        str, typer.Option(metavar="NAME", help="The split; evaluation: the first of validation, val, valid, test.")
    ] = "evaluation",
    knn: Annotated[
        bool, typer.Option("--knn", help="By nearest neighbours in the split train, without a classifier.")
    ] = False,
    neighbours: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Neighbours that vote, with --knn.", show_default="20")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Draw the confusion matrix and mistakes.")
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of the images, if it cannot be found automatically.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of the labels, if it cannot be found automatically.")
    ] = None,
    batch_size: BatchSize = 64,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Processes that read images.", show_default="by number of images"),
    ] = None,
    device: Device = "auto",
    precision: Dtype = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Evaluate a classifier on labelled images; with --knn any model, by its features.

    Unreadable images are skipped and named on stderr; the exit status is then 1.
    """
    if neighbours is not None and not knn:
        raise UsageError("--neighbours has no effect without --knn; give both.")
    quiet_transformers()
    from swinv2.cli import printing
    from swinv2.train import evaluate as evaluation
    from swinv2.train.neighbours import NEIGHBOURS, evaluate_neighbours

    name = model_or_shipped(model)
    by_neighbours = partial(evaluate_neighbours, neighbours=neighbours or NEIGHBOURS)
    with progress_bar(0, "evaluating") as progress:
        found, dataset = (by_neighbours if knn else evaluation.evaluate)(
            name,
            data,
            split,
            batch_size=batch_size,
            workers=workers,
            device=device,
            dtype=read_dtype(precision),
            image_column=image_column,
            label_column=label_column,
            advance=progress.update,
        )
    of_split = "" if dataset.split is None else f", split {dataset.split!r}"
    message_console().print(Text(f"evaluated: {found.images:,} images of {dataset.source}{of_split}", "dim"))
    files: list[Path] = []
    if output is not None:
        with writing(output):
            files = found.draw(dataset, output)
    if as_json:
        typer.echo(json.dumps(found.summary() | {"mistakes": found.mistakes(dataset)}, indent=2))
    else:
        printing.print_evaluation(found.summary(), data_console())
    for file in files:
        message_console().print(f"drawn: {shown(file)}")
    for broken in found.unreadable:
        message_console().print(Text.assemble(("skipped ", "yellow"), broken))
    if found.unreadable:
        raise typer.Exit(SKIPPED)


def reconstruct(
    model: Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help="A model that `swinv2 pretrain` made.")],
    images: Images = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The PNG file to write.")] = Path(
        "reconstruction.png"
    ),
    mask_ratio: Annotated[float, typer.Option(metavar="SHARE", help="Share of the blocks that are masked.")] = 0.6,
    mask_block: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Side of a block; default: the side of a token of the last stage."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Other seeds mask other blocks.")] = 0,
    device: Device = "auto",
) -> None:
    """Draw the reconstructions of a pre-trained model: input, masked input, reconstruction, a row for each image."""
    paths, missing = find_or_refuse(images, "swinv2 reconstruct photo.jpg --model runs/pretrain/final.")
    quiet_transformers()
    from swinv2.train import reconstruct as reconstruction

    with progress_bar(0, "reconstructing", is_shown=False):
        loss, broken = reconstruction.reconstruct(
            paths, model, output, mask_ratio=mask_ratio, mask_block=mask_block, seed=seed, device=device
        )
    for image in broken:
        print_broken(image, message_console())
    message_console().print(f"mean error over masked pixels {loss:.4f}; drawn: {shown(output)}")
    finish(len(paths) + len(missing), [*missing, *broken])
