"""The commands that train a model and measure it: `pretrain`, `finetune`, `evaluate` and `reconstruct`.

Computed in `swinv2.train`, which is imported only when one of them runs.
"""

import json
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.text import Text

from swinv2.cli.options import BatchSize, Device, Dtype, Images, Model, Precision
from swinv2.cli.running import SKIPPED, find_or_refuse, finish, model_or_shipped, quiet_transformers, sentences
from swinv2.console import data_console, message_console, progress_bar, shown
from swinv2.train.signals import StoppedError, stopped_by_signals


def pretrain(context: typer.Context) -> None:
    """Pre-train a model without labels (SimMIM). --help lists all settings; --config FILE reads a recipe of them.

    Exit status 3: the training stopped because it could not go on. 143: SIGTERM came, and a checkpoint was saved.
    """
    _train("pretrain", context.args)


def finetune(context: typer.Context) -> None:
    """Train a classifier, from pre-trained weights or new. --help lists all settings; --config FILE reads a recipe.

    Exit status 3: the training stopped because it could not go on. 143: SIGTERM came, and a checkpoint was saved.
    """
    _train("finetune", context.args)


def _train(command: str, flags: list[str]) -> NoReturn:
    """Runs a training, and ends the command with its exit status; a signal that does not wait for a step too."""
    with sentences():
        try:
            with stopped_by_signals():
                quiet_transformers()
                from swinv2.train import commands

                status = commands.pretrain(flags) if command == "pretrain" else commands.finetune(flags)
        except StoppedError as error:
            message_console().print(
                f"{error}: stopped at once; --resume goes on from the newest checkpoint, if there is one",
                style="yellow",
            )
            status = 128 + error.number
        raise typer.Exit(status)


def evaluate(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A folder of class folders, files, a data set's name.")],
    model: Model = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Which split; evaluation: the first there is.")] = (
        "evaluation"
    ),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Draw the confusion matrix and mistakes.")
    ] = None,
    batch_size: BatchSize = 64,
    workers: Annotated[int, typer.Option(metavar="N", min=0, help="Processes that read pictures.")] = 0,
    device: Device = "auto",
    precision: Dtype = Precision.float32,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Measure a classifier on labelled pictures.

    A picture that cannot be read is named on stderr and left out; the exit status is then 1.
    """
    quiet_transformers()
    from swinv2.predict import report
    from swinv2.train import evaluate as evaluation

    with sentences():
        name = model_or_shipped(model)
        with progress_bar(0, "evaluating") as progress:
            found, dataset = evaluation.evaluate(
                name,
                data,
                split,
                batch_size=batch_size,
                workers=workers,
                device=device,
                dtype=precision.dtype,
                advance=progress.update,
            )
        files = [] if output is None else evaluation.draw_evaluation(found, dataset, output)
    if as_json:
        typer.echo(json.dumps(found.summary(), indent=2))
    else:
        report.print_evaluation(found.summary(), data_console())
    console = message_console()
    for file in files:
        console.print(f"drawn: {shown(file)}")
    for broken in found.unreadable:
        console.print(Text.assemble(("skipped ", "yellow"), broken))
    if found.unreadable:
        raise typer.Exit(SKIPPED)


def reconstruct(
    model: Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help="A model that `swinv2 pretrain` made.")],
    images: Images = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The PNG file to write.")] = Path(
        "reconstruction.png"
    ),
    mask_ratio: Annotated[float, typer.Option(metavar="SHARE", help="Share of the blocks that are hidden.")] = 0.6,
    mask_block: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Side of a block; what one token of the last stage covers unless given."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Other seeds hide other blocks.")] = 0,
    device: Device = "auto",
) -> None:
    """Draw what a pre-trained model sees in place of what is hidden: input, hidden, drawn, a row for each image."""
    with sentences():
        paths, missing = find_or_refuse(images, "swinv2 reconstruct photo.jpg --model runs/pretrain/final.")
        quiet_transformers()
        from swinv2.train import reconstruct as reconstruction

        with progress_bar(0, "reconstructing", is_shown=False):
            loss = reconstruction.reconstruct(
                paths, model, output, mask_ratio=mask_ratio, mask_block=mask_block, seed=seed, device=device
            )
    message_console().print(f"mean error over hidden pixels {loss:.4f}; drawn: {shown(output)}")
    finish(len(paths) + len(missing), list(missing))
