"""How every command runs: one sentence for what a user can mend, a progress bar, skipped images, an exit status.

In: what a command was given, and its answers as they come. Out: messages on stderr, and 0 when all went well, 1 when
files were skipped, 2 when nothing could be done as asked.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from swinv2.errors import UsageError
from swinv2.images import BrokenImage, find_images
from swinv2.predict import report
from swinv2.predict.shipped import shipped_model

SKIPPED, USAGE = 1, 2
"""Exit statuses."""

Answer = TypeVar("Answer")


@contextmanager
def sentences() -> Iterator[None]:
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
def progress_bar(total: int, verb: str, is_shown: bool = True) -> Iterator[Progress]:
    """Shows a bar in a terminal, of one task.

    Args:
        total: How many steps it has.
        verb: What is going on.
        is_shown: Whether a terminal shows it at all.
    """
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


def find_or_refuse(images: list[str] | None, example: str) -> tuple[list[Path], list[BrokenImage]]:
    """Finds images, and names on stderr what is not there.

    Args:
        images: What the user gave.
        example: A command with an image, ending with a full stop, for one who gave none.

    Returns:
        The images, and what is not there.

    Raises:
        UsageError: None was given.
    """
    if not images:
        raise UsageError(f"no image was given; for example: {example}")
    paths, missing = find_images(images)
    for image in missing:
        report.print_broken(image, report.message_console())
    return paths, missing


def watch(
    answers: Iterable[tuple[Path, Answer | BrokenImage]], progress: Progress, skipped: list[BrokenImage]
) -> Iterator[tuple[Path, Answer | BrokenImage]]:
    """Passes answers on and counts them; broken images among them are named and put to the skipped ones."""
    for path, answer in answers:
        progress.advance(progress.task_ids[0])
        if isinstance(answer, BrokenImage):
            report.print_broken(answer, progress.console)
            skipped.append(answer)
        yield path, answer


def finish(total: int, skipped: list[BrokenImage]) -> None:
    """Ends the command with the status for skipped images, if there are some."""
    if skipped:
        report.message_console().print(f"{len(skipped)} of {total} images skipped", style="yellow")
        raise typer.Exit(SKIPPED)


def model_or_shipped(model: str | None) -> str:
    """The model that was named; else the folder of the shipped one, which is said on stderr."""
    if model is not None:
        return model
    folder = str(shipped_model())
    report.message_console().print(
        "no --model given: using the CIFAR-10 model that ships with the package (10 labels); for ImageNet labels use "
        "--model microsoft/swinv2-tiny-patch4-window8-256",
        style="dim",
    )
    return folder
