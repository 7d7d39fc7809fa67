"""The command `swinv2`: describe models, classify images, extract features, train, convert, look inside.

In: what a user types. Out: data on stdout, messages on stderr, and an exit status: 0 when all went well, 1 when files
were skipped, 2 when nothing could be done as asked. Everything is computed in `swinv2.predict`, `swinv2.train`,
`swinv2.inspect` and `swinv2.convert`; this module only asks and shows.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from transformers.utils import logging as transformers_logging

import swinv2
from swinv2.errors import UsageError
from swinv2.images import BrokenImage, find_images
from swinv2.predict import report
from swinv2.predict.describe import build_on_meta, describe
from swinv2.predict.features import check_output, write_features
from swinv2.predict.predictor import POOLED, Classifier, FeatureExtractor
from swinv2.predict.shipped import shipped_model, shipped_samples
from swinv2.zoo import SIZES

SKIPPED, USAGE = 1, 2

Answer = TypeVar("Answer")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Swin Transformer V2: describe models, classify images, extract features, train, convert weights.",
)


class Precision(StrEnum):
    """Types a model can compute in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"

    @property
    def dtype(self) -> torch.dtype:
        """The same for torch."""
        return getattr(torch, self.value)


_Images = Annotated[
    list[str] | None,
    typer.Argument(metavar="IMAGES", help="Files, folders (searched to their depth) and globs.", show_default=False),
]
_BatchSize = Annotated[int, typer.Option("--batch-size", "-b", metavar="N", min=1, help="Images a batch.")]
_Device = Annotated[
    str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1 ... auto: an accelerator if there is one.")
]
_Precision = Annotated[Precision, typer.Option("--dtype", metavar="TYPE", help="float32, bfloat16 or float16.")]
_Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="A model's folder, or its name on the Hugging Face hub.",
        show_default="the shipped one",
    ),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"swinv2 {swinv2.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    # Missing weights are refused by this package itself, in one sentence; a progress bar is shown over images only.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


@contextmanager
def _sentences() -> Iterator[None]:
    """Ends the command with one sentence where the user can mend what went wrong."""
    try:
        yield
    except UsageError as error:
        _refuse(str(error))
    except torch.OutOfMemoryError:
        _refuse("the device has too little memory for a batch; give a smaller --batch-size, or --device cpu.")


def _refuse(sentence: str) -> NoReturn:
    report.message_console().print(Text.assemble(("error: ", "bold red"), sentence))
    raise typer.Exit(USAGE)


@contextmanager
def _progress(total: int, verb: str, is_shown: bool = True) -> Iterator[Progress]:
    console = report.message_console()
    progress = Progress(
        TextColumn(verb),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        disable=not (is_shown and console.is_terminal),
    )
    with progress:
        progress.add_task(verb, total=total)
        yield progress


def _find(images: list[str] | None, example: str) -> tuple[list[Path], list[BrokenImage]]:
    if not images:
        raise UsageError(f"no image was given; for example: {example}")
    paths, missing = find_images(images)
    for image in missing:
        report.print_broken(image, report.message_console())
    return paths, missing


def _watched(
    answers: Iterable[tuple[Path, Answer | BrokenImage]], progress: Progress, skipped: list[BrokenImage]
) -> Iterator[tuple[Path, Answer | BrokenImage]]:
    """Passes answers on and counts them; broken images among them are named and put to the skipped ones."""
    for path, answer in answers:
        progress.advance(progress.task_ids[0])
        if isinstance(answer, BrokenImage):
            report.print_broken(answer, progress.console)
            skipped.append(answer)
        yield path, answer


def _finish(total: int, skipped: list[BrokenImage]) -> None:
    if skipped:
        report.message_console().print(f"{len(skipped)} of {total} images skipped", style="yellow")
        raise typer.Exit(SKIPPED)


def _model_or_shipped(model: str | None) -> str:
    if model is not None:
        return model
    folder = str(shipped_model())
    report.message_console().print(
        "no --model given: using the CIFAR-10 model that ships with the package (10 labels); for ImageNet labels use "
        "--model microsoft/swinv2-tiny-patch4-window8-256",
        style="dim",
    )
    return folder


@app.command()
def info(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help=f"A size ({', '.join(SIZES)}), a model's folder, or its name on the hub."),
    ],
    image_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Describe it for this size: 384, or 384x256 (height first).")
    ] = None,
    window_size: Annotated[int | None, typer.Option(metavar="N", min=1, help="And for these windows.")] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Also what training takes on each process.")] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", metavar="N", min=1, help="Images, for it.")] = 1,
    world_size: Annotated[
        int, typer.Option(metavar="N", min=1, help="Processes that share a model by FSDP2, for --memory.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Describe a model: parameters, stages, windows, attention, labels, memory. Weights are not loaded.

    The memory is worked out for a training in 16 bits with AdamW, whose weights stay in fp32.
    """
    from swinv2.train.memory import ways_to_train

    with _sentences():
        if not memory and (batch_size, world_size) != (1, 1):
            raise UsageError("--batch-size and --world-size have no effect without --memory; leave them out.")
        size = _read_size(image_size, "--image-size")
        description = describe(model, size, window_size)
        ways = ways_to_train(build_on_meta(model, size, window_size), batch_size, world_size) if memory else []
    if as_json:
        typer.echo(json.dumps(asdict(description) | ({"memory_mib": ways} if memory else {}), indent=2))
        return
    report.print_description(description, report.data_console())
    if memory:
        report.print_memory(ways, batch_size, world_size, report.data_console())


@app.command()
def classify(
    images: _Images = None,
    model: _Model = None,
    top_k: Annotated[
        int,
        typer.Option("--top-k", "-k", metavar="N", min=1, help="Labels an image; all of them if the model has fewer."),
    ] = 3,
    batch_size: _BatchSize = 16,
    device: _Device = "auto",
    precision: _Precision = Precision.float32,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON Lines: an object for each image, a skipped one with its error.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV: image, rank, label, index, probability.")] = False,
) -> None:
    """Classify images and print their best labels.

    An image that cannot be read is named on stderr and skipped; the exit status is then 1.
    """
    with _sentences():
        if as_json and as_csv:
            raise UsageError("--json and --csv were both given; choose one.")
        paths, missing = _find(images, "swinv2 classify photo.jpg. To see it at work: swinv2 demo.")
        classifier = Classifier.load(_model_or_shipped(model), device, precision.dtype)
        skipped = list(missing)
        # Lines of data in a terminal would run through the bar.
        has_bar = not ((as_json or as_csv) and sys.stdout.isatty())
        with _progress(len(paths), "classifying", has_bar) as progress:
            answers = _watched(classifier.classify(paths, top_k, batch_size), progress, skipped)
            if as_json:
                report.print_json_lines(chain(((image.path, image) for image in missing), answers))
            elif as_csv:
                report.print_csv(answers)
            else:
                answers = list(answers)
        if not (as_json or as_csv):
            report.print_labels(answers, report.data_console())
    _finish(len(paths) + len(missing), skipped)


@app.command()
def features(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write: .safetensors or .parquet.")
    ],
    images: _Images = None,
    model: _Model = None,
    stage: Annotated[
        str,
        typer.Option(metavar="NAME", help="pooled: one vector an image. stem, stage1 ...: that map, before merging."),
    ] = POOLED,
    batch_size: _BatchSize = 16,
    device: _Device = "auto",
    precision: _Precision = Precision.float32,
) -> None:
    """Write the features of images to a file.

    The file appears whole or not at all; an old one of that name is replaced.

    An image that cannot be read is named on stderr and left out; the exit status is then 1.
    """
    with _sentences():
        check_output(output)
        paths, missing = _find(images, "swinv2 features photos -o photos.safetensors.")
        name = _model_or_shipped(model)
        extractor = FeatureExtractor.load(name, stage, device, precision.dtype)
        skipped = list(missing)
        with _progress(len(paths), "extracting") as progress:
            answers = _watched(extractor.extract(paths, batch_size), progress, skipped)
            sound = ((path, answer) for path, answer in answers if not isinstance(answer, BrokenImage))
            try:
                written = write_features(sound, output, {"model": name, "stage": stage})
            except OSError as error:
                raise UsageError(f"--output {str(output)!r} cannot be written: {error}.") from error
    if written:
        report.message_console().print(f"features of {written} images written to {report.shown(output)}")
    _finish(len(paths) + len(missing), skipped)


_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": ["-h"]}


@app.command(context_settings=_PASS_ON)
def pretrain(context: typer.Context) -> None:
    """Pre-train a model without labels (SimMIM). --help lists all settings; --config FILE reads a recipe of them.

    Exit status 3: the training stopped because it could not go on. 143: SIGTERM came, and a checkpoint was saved.
    """
    from swinv2.train import commands

    with _sentences():
        raise typer.Exit(commands.pretrain(context.args))


@app.command(context_settings=_PASS_ON)
def finetune(context: typer.Context) -> None:
    """Train a classifier, from pre-trained weights or new. --help lists all settings; --config FILE reads a recipe.

    Exit status 3: the training stopped because it could not go on. 143: SIGTERM came, and a checkpoint was saved.
    """
    from swinv2.train import commands

    with _sentences():
        raise typer.Exit(commands.finetune(context.args))


@app.command()
def evaluate(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A folder of class folders, files, a data set's name.")],
    model: _Model = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Which split; evaluation: the first there is.")] = (
        "evaluation"
    ),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Draw the confusion matrix and mistakes.")
    ] = None,
    batch_size: _BatchSize = 64,
    workers: Annotated[int, typer.Option(metavar="N", min=0, help="Processes that read pictures.")] = 0,
    device: _Device = "auto",
    precision: _Precision = Precision.float32,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Measure a classifier on labelled pictures.

    A picture that cannot be read is named on stderr and left out; the exit status is then 1.
    """
    from swinv2.train import evaluate as evaluation

    with _sentences():
        name = _model_or_shipped(model)
        with _progress(1, "evaluating") as progress:

            def advance(done: int, total: int) -> None:
                progress.update(progress.task_ids[0], completed=done, total=total)

            found, pictures = evaluation.evaluate(
                name,
                data,
                split,
                batch_size=batch_size,
                workers=workers,
                device=device,
                dtype=precision.dtype,
                advance=advance,
            )
        files = [] if output is None else evaluation.draw_evaluation(found, pictures, output)
    if as_json:
        typer.echo(json.dumps(found.summary(), indent=2))
    else:
        report.print_evaluation(found.summary(), report.data_console())
    console = report.message_console()
    for file in files:
        console.print(f"drawn: {report.shown(file)}")
    for broken in found.unreadable:
        console.print(Text.assemble(("skipped ", "yellow"), broken))
    if found.unreadable:
        raise typer.Exit(SKIPPED)


@app.command()
def reconstruct(
    model: Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help="A model that `swinv2 pretrain` made.")],
    images: _Images = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The PNG file to write.")] = Path(
        "reconstruction.png"
    ),
    mask_ratio: Annotated[float, typer.Option(metavar="SHARE", help="Share of the blocks that are hidden.")] = 0.6,
    mask_block: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Side of a block; what one token of the last stage covers unless given."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Other seeds hide other blocks.")] = 0,
    device: _Device = "auto",
) -> None:
    """Draw what a pre-trained model sees in place of what is hidden: input, hidden, drawn, a row for each image."""
    from swinv2.train import reconstruct as reconstruction

    with _sentences():
        paths, missing = _find(images, "swinv2 reconstruct photo.jpg --model runs/pretrain/final.")
        loss = reconstruction.reconstruct(
            paths, model, output, mask_ratio=mask_ratio, mask_block=mask_block, seed=seed, device=device
        )
    report.message_console().print(f"mean error over hidden pixels {loss:.4f}; drawn: {report.shown(output)}")
    _finish(len(paths) + len(missing), list(missing))


def _read_size(text: str | None, option: str) -> int | tuple[int, int] | None:
    if text is None:
        return None
    lengths = text.lower().split("x")
    if len(lengths) > 2 or not all(length.isascii() and length.isdigit() and int(length) for length in lengths):
        raise UsageError(f"{option} is {text!r}; expected pixels such as 256, or height x width such as 384x256.")
    return int(lengths[0]) if len(lengths) == 1 else (int(lengths[0]), int(lengths[1]))


def _read_windows(text: str | None) -> list[int] | None:
    if text is None:
        return None
    lengths = text.split(",")
    if not all(length.strip().isascii() and length.strip().isdigit() for length in lengths):
        raise UsageError(f"--pretrained-window-sizes is {text!r}; expected a number for each stage: 12,12,12,6.")
    return [int(length) for length in lengths]


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A file, a folder, or a name on the hub.")],
    output: Annotated[Path | None, typer.Argument(metavar="OUT", help="The folder to make.")] = None,
    form: Annotated[
        str,
        typer.Option("--to", metavar="FORM", help="swinv2, transformers, timm, torchvision, microsoft, mmpretrain."),
    ] = "swinv2",
    image_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Plan the windows for this size: 384, or 384x256 (height first).")
    ] = None,
    window_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Plan these windows; the position bias is extrapolated.")
    ] = None,
    trained_image_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Size it was trained with, where nothing else tells.")
    ] = None,
    trained_window_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Window it was trained with, where nothing else tells.")
    ] = None,
    pretrained_window_sizes: Annotated[
        str | None,
        typer.Option(metavar="N,N,..", help="Each stage's window in which its position bias was learned, 0: its own."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Convert weights of transformers, timm, torchvision, mmpretrain or the authors; plan them for another size.

    The folder appears whole or not at all.
    """
    from swinv2.convert import convert as convert_weights
    from swinv2.convert.report import print_account

    with _sentences():
        if output is None and not dry_run:
            raise UsageError(
                "no folder to make was given; for example: swinv2 convert weights.pth my-model, or --dry-run."
            )
        account = convert_weights(
            source,
            None if dry_run else output,
            form,
            _read_size(image_size, "--image-size"),
            window_size,
            trained_image_size=_read_size(trained_image_size, "--trained-image-size"),
            trained_window_size=trained_window_size,
            pretrained_window_sizes=_read_windows(pretrained_window_sizes),
        )
    if as_json:
        typer.echo(json.dumps(asdict(account), indent=2))
    else:
        print_account(account, report.data_console())
    done = (
        f"written: {report.shown(output)}" if output is not None and not dry_run else "nothing was written (--dry-run)"
    )
    report.message_console().print(done)


@app.command()
def inspect(
    images: _Images = None,
    model: _Model = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the pictures go.")] = Path(
        "inspection"
    ),
    token: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y",
            help="The token whose attention is drawn: the one that shows this pixel of the image, from its top left.",
            show_default="the centre",
        ),
    ] = None,
    stage: Annotated[
        str | None, typer.Option(metavar="NAME", help="stage1, stage2 ...: only this one.", show_default="all")
    ] = None,
    device: _Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: the pictures and their numbers.")] = False,
) -> None:
    """Look inside a model: draw what a token attends to, feature maps, the position bias, amplitudes by block.

    An image that cannot be read is named on stderr and left out; the exit status is then 1.
    """
    with _sentences():
        try:
            from swinv2.inspect import gallery
        except ModuleNotFoundError as error:
            raise UsageError(
                f"inspect draws with {error.name}, which is not installed; install swinv2[train], which brings it."
            ) from error
        point = gallery.parse_token(token)
        paths, missing = _find(images, "swinv2 inspect photo.jpg --token 120,80.")
        name = _model_or_shipped(model)
        inspector = gallery.Inspector.load(name, stage, device)
        skipped = list(missing)
        with _progress(len(paths), "inspecting") as progress:
            answers = [answer for _, answer in _watched(inspector.inspect(paths, output, point), progress, skipped)]
        drawn = [answer for answer in answers if not isinstance(answer, BrokenImage)]
        measured, bias, files = inspector.draw_model(output) if drawn else ([], [], [])
    if as_json:
        typer.echo(json.dumps(gallery.summary(name, [*missing, *answers], measured, bias, files), indent=2))
    for file in [*(file for each in drawn for file in each.files), *files]:
        report.message_console().print(f"drawn: {report.shown(Path(file))}")
    _finish(len(paths) + len(missing), skipped)


@app.command()
def demo() -> None:
    """Classify the twenty sample images with the model that both ship with the package."""
    with _sentences():
        samples = shipped_samples()
        classifier = Classifier.load(str(shipped_model()), "cpu")
        predictions = []
        for path, answer in classifier.classify([sample.path for sample in samples], top_k=1):
            if isinstance(answer, BrokenImage):
                raise UsageError(f"the shipped image {path} is {answer.reason}; install the package again.")
            predictions += answer
    report.print_demo(samples, predictions, report.data_console())
