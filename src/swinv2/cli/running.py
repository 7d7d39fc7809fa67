"""How every command runs: one sentence for what a user can fix, skipped images, an exit status.

In: what a command was given, and its answers as they come. Out: messages on stderr, and 0 when all went well, 1 when
files were skipped, 2 when nothing could be done as asked. torch and transformers take seconds to import: here and in
the commands they are imported where they are needed, so that help and refusals come at once.
"""

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.text import Text

from swinv2.console import Progress, message_console, shown
from swinv2.errors import UsageError

if TYPE_CHECKING:
    from swinv2.images import BrokenImage

SKIPPED, USAGE = 1, 2
"""Exit statuses."""

Answer = TypeVar("Answer")


@contextmanager
def sentences() -> Iterator[None]:
    """Ends a command, which it decorates, with one sentence where the user can fix what went wrong."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except UsageError as error:
        _refuse(str(error))
    except typer.Exit:
        raise
    # What torch.OutOfMemoryError is: torch is imported already where it comes from.
    except RuntimeError as error:
        from torch import OutOfMemoryError

        if not isinstance(error, OutOfMemoryError):
            raise
        _refuse("the device has too little memory for a batch; give a smaller --batch-size, or --device cpu.")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        # When Python ends, it tries once more to write what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        where = f" for {error.filename}" if error.filename else ""
        _refuse(f"no space is left on the disk{where}; what was written is cut off.")


def _refuse(sentence: str) -> NoReturn:
    message_console().print(Text.assemble(("error: ", "bold red"), sentence))
    raise typer.Exit(USAGE)


def quiet_transformers() -> None:
    """Lets transformers say nothing: missing weights are refused by this package itself, in one sentence; a progress
    bar is shown over images only. It takes seconds to import: called when nothing is left to refuse without it."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def find_or_refuse(images: list[str] | None, example: str) -> tuple[list[Path], "list[BrokenImage]"]:
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
    from swinv2.images import find_images

    paths, missing = find_images(images)
    for image in missing:
        print_broken(image, message_console())
    return paths, missing


def print_broken(image: "BrokenImage", console: Console) -> None:
    """Names a file that was skipped, and why."""
    console.print(Text.assemble(("skipped ", "yellow"), f"{shown(image.path)}: {image.reason}"))


def watch(
    answers: "Iterable[tuple[Path, Answer | BrokenImage]]", progress: Progress, skipped: "list[BrokenImage]"
) -> "Iterator[tuple[Path, Answer | BrokenImage]]":
    """Passes answers on and counts them; broken images among them are named and put to the skipped ones."""
    from swinv2.images import BrokenImage

    for path, answer in answers:
        progress.advance()
        if isinstance(answer, BrokenImage):
            print_broken(answer, progress.console)
            skipped.append(answer)
        yield path, answer


def finish(total: int, skipped: "list[BrokenImage]") -> None:
    """Ends the command with the status for skipped images, if there are some."""
    if skipped:
        message_console().print(f"{len(skipped)} of {total} images skipped", style="yellow")
        raise typer.Exit(SKIPPED)


def model_or_shipped(model: str | None) -> str:
    """The model that was named; else the folder of the shipped one, which is said on stderr."""
    if model is not None:
        return model
    from swinv2.predict.shipped import shipped_model

    folder = str(shipped_model())
    message_console().print(
        "no --model given: using the CIFAR-10 model that ships with the package (10 labels); for ImageNet labels use "
        "--model microsoft/swinv2-tiny-patch4-window8-256",
        style="dim",
    )
    return folder
