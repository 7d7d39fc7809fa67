"""The shared code of all commands: one-sentence errors, skipped images, exit statuses.

In: arguments of a command, and its answers one by one. Out: messages on stderr, and the exit status: 0 for success, 1
if files were skipped, 2 if the user must fix something. Importing torch and transformers takes seconds. Therefore the
commands import them only where they need them, so that help and errors come at once.
"""

import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator
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

_IMPOSSIBLE_PATHS = {errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EACCES, errno.EROFS}
"""Errors of the system about a path that a user gave."""

Answer = TypeVar("Answer")


@contextmanager
def sentences() -> Iterator[None]:
    """Decorates a command: an error that the user can fix becomes one sentence."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except UsageError as error:
        _exit_with_error(str(error))
    except typer.Exit:
        raise
    # torch.OutOfMemoryError is a RuntimeError; importing torch here is quick, as the error comes from torch.
    except RuntimeError as error:
        from torch import OutOfMemoryError

        if not isinstance(error, OutOfMemoryError):
            raise
        _exit_with_error("the device has too little memory for a batch; give a smaller --batch-size, or --device cpu.")
    except OSError as error:
        if error.filename and error.errno in _IMPOSSIBLE_PATHS:
            _exit_with_error(f"{error.filename!r}: {error.strerror}.")
        if error.errno != errno.ENOSPC:
            raise
        # At its end, Python tries again to write the rest of stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        where = f" for {error.filename}" if error.filename else ""
        _exit_with_error(f"no space is left on the disk{where}; the output is incomplete.")


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Turns an error of the system while `--output` is written into a sentence."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"--output {str(output)!r} cannot be written to: {error}.") from error


def _exit_with_error(sentence: str) -> NoReturn:
    """Ends a command: prints the error on stderr and exits with status `USAGE`."""
    message_console().print(Text.assemble(("error: ", "bold red"), sentence))
    raise typer.Exit(USAGE)


def quiet_transformers() -> None:
    """Silences transformers: this package itself reports missing weights, and shows its own progress bar.

    Importing transformers takes seconds, so a command first checks everything that it can check without it."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def find_or_refuse(
    images: list[str] | None, example: str, kind: str = "image", is_named: Callable[[str], bool] | None = None
) -> tuple[list[Path], "list[BrokenImage]"]:
    """Finds images, and names missing ones on stderr.

    Args:
        images: Files, folders and globs from the command line.
        example: An example command that ends with a full stop, for the error message.
        kind: What the files are, in the singular.
        is_named: Whether a file in a folder is wanted, by its name; None for images.

    Returns:
        The images, and the missing ones.

    Raises:
        UsageError: No image was given.
    """
    if not images:
        raise UsageError(f"no {kind} was given; for example: {example}")
    from swinv2.images import find_images, is_image_name

    paths, missing = find_images(images, is_named or is_image_name, kind)
    for image in missing:
        print_broken(image, message_console())
    return paths, missing


def print_broken(image: "BrokenImage", console: Console) -> None:
    """Prints the name of a skipped file, and the reason."""
    console.print(Text.assemble(("skipped ", "yellow"), f"{shown(image.path)}: {image.reason}"))


def watch(
    answers: "Iterable[tuple[Path, Answer | BrokenImage]]", progress: Progress, skipped: "list[BrokenImage]"
) -> "Iterator[tuple[Path, Answer | BrokenImage]]":
    """Yields the answers of a command and counts them. Broken images are named on stderr and added to `skipped`."""
    from swinv2.images import BrokenImage

    for path, answer in answers:
        progress.advance()
        if isinstance(answer, BrokenImage):
            print_broken(answer, progress.console)
            skipped.append(answer)
        yield path, answer


def finish(total: int, skipped: "list[BrokenImage]", kind: str = "image") -> None:
    """Ends a command: exits with status `SKIPPED` if images, or files of another kind, were skipped."""
    if skipped:
        message_console().print(f"{len(skipped)} of {total} {kind}s skipped", style="yellow")
        raise typer.Exit(SKIPPED)


def model_or_shipped(model: str | None, to_train: bool = False) -> str:
    """The given model; if there is none, the folder of the shipped model, with a message on stderr.

    Args:
        model: The value of `--model`.
        to_train: Whether a training starts from it.
    """
    if model is not None:
        return model
    from swinv2.predict.shipped import shipped_model

    folder = str(shipped_model())
    does = "starting from" if to_train else "using"
    wants = "to start from a larger one" if to_train else "for ImageNet-1K labels"
    message_console().print(
        f"no --model given: {does} the Tiny-ImageNet model that ships with the package (200 labels); {wants} use "
        "--model microsoft/swinv2-tiny-patch4-window8-256",
        style="dim",
    )
    return folder
