"""The commands that train a model, and `reconstruct`: `pretrain` and `finetune`.

`swinv2.train` computes the results; most of it is imported only if one of these commands runs.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from swinv2.cli.options import Device, Images
from swinv2.cli.running import (
    find_or_refuse,
    finish,
    model_or_shipped,
    print_broken,
    quiet_transformers,
)
from swinv2.console import message_console, progress_bar, shown
from swinv2.errors import UsageError
from swinv2.train.signals import StoppedError, noting_signals

if TYPE_CHECKING:
    from swinv2.train.probe import Probe
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
    """Train a classifier, from pre-trained weights or new; with --task segmentation, instances or detection, a
    segmenter or detector; with --task video, a classifier of videos. --help lists all settings (with --task, its own);
    --config FILE reads a recipe.

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
            ready = _build_trainer(settings)
            from swinv2.train.probe import Probe

            return _run_probe(ready) if isinstance(ready, Probe) else _preview_or_train(ready)
    except StoppedError as error:
        message_console().print(f"{error}: stopped at once; {what_is_kept}", style="yellow")
        return 128 + error.number


def _read_settings(command: str, flags: Sequence[str]) -> "RunSettings":
    """Reads flags. Help and most errors come before the slow imports."""
    from swinv2.train.flags import given_task, read_flags
    from swinv2.train.options import DenseOptions, FinetuneOptions, PretrainOptions, VideoOptions

    is_pretraining = command == "pretrain"
    of_finetuning = {None: FinetuneOptions, "video": VideoOptions}.get(given_task(flags), DenseOptions)
    options, help = (PretrainOptions, pretrain.__doc__) if is_pretraining else (of_finetuning, finetune.__doc__)
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

    if options is DenseOptions:
        from swinv2.train.dense.choices import dense_settings_of

        return dense_settings_of(told)
    if options is VideoOptions:
        from swinv2.train.video.choices import video_settings_of

        return video_settings_of(told)
    return make_settings(PretrainSettings, told) if is_pretraining else settings_of(told)


def _build_trainer(settings: "RunSettings") -> "SwinTrainer | Probe":
    """Builds the trainer of a pre-training, of a fine-tuning, or of another task; or a linear probe that
    makes a fine-tuning needless."""
    from swinv2.train.options import DenseOptions, VideoOptions

    # Not its subclass with the checks, which imports all heads.
    if isinstance(settings, DenseOptions):
        from swinv2.train.dense.settings import DenseSettings
        from swinv2.train.dense.trainer import make_dense_training

        return make_dense_training(cast("DenseSettings", settings))
    if isinstance(settings, VideoOptions):
        from swinv2.train.video.settings import VideoSettings
        from swinv2.train.video.trainer import make_video_training

        return make_video_training(cast("VideoSettings", settings))
    from swinv2.train.finetune import make_trainer, open_finetuning
    from swinv2.train.pretrain import make_pretraining
    from swinv2.train.probe import sufficient_probe
    from swinv2.train.settings import FinetuneSettings

    if isinstance(settings, FinetuneSettings):
        parts = open_finetuning(settings)
        return sufficient_probe(parts) or make_trainer(parts)
    return make_pretraining(cast("PretrainSettings", settings))


def _preview_or_probe(settings: "FinetuneSettings") -> int:
    """Prints the preview of a linear probe, or runs it and prints the results; returns the exit status."""
    from swinv2.train.probe import make_probe

    probe = make_probe(settings)
    if settings.dry_run:
        _show_preview(probe.preview(), settings.as_json)
        return 0
    return _run_probe(probe)


def _run_probe(probe: "Probe") -> int:
    """Runs a linear probe and prints the results; returns the exit status."""
    import torch

    from swinv2.cli.training_report import print_results

    settings = probe.args
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
            print_results(results, args.run, trainer.things)
        return status
    messages.print(Text.assemble(("stopped: ", "bold red"), reason))
    return STOPPED


def _show_preview(preview: dict[str, Any], as_json: bool) -> None:
    """Prints a preview, as JSON or as tables."""
    from swinv2.cli.training_report import print_preview

    print(json.dumps(preview, indent=2)) if as_json else print_preview(preview, Console(highlight=False))


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
