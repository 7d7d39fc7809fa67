"""Options that several commands share, each with its help.

In: nothing. Out: annotations for the arguments of commands.
"""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from swinv2.errors import UsageError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


def check_dtype(name: str) -> None:
    """Checks `--dtype`, without importing torch.

    Raises:
        UsageError: The name is not in `DTYPES`.
    """
    if name not in DTYPES:
        raise UsageError(f"--dtype is {name!r}; expected {', '.join(DTYPES)}.")


def read_dtype(name: str) -> "torch.dtype":
    """Reads `--dtype`; see `check_dtype` for errors."""
    check_dtype(name)
    import torch

    return getattr(torch, name)


def read_point(text: str | None) -> tuple[int, int] | None:
    """Reads `--token`: a point "X,Y"; None if the option was not given.

    Raises:
        UsageError: The text is not such a pair.
    """
    if text is None:
        return None
    found = re.fullmatch(r"\s*([0-9]+)\s*,\s*([0-9]+)\s*", text)
    if not found:
        raise UsageError(
            f"--token is {text!r}; expected X,Y: pixels from the left and from the top of the image, as in 120,80."
        )
    return int(found[1]), int(found[2])


def read_scales(text: str) -> tuple[float, ...]:
    """Reads `--scales`.

    Raises:
        UsageError: The text is no list of factors.
    """
    try:
        scales = tuple(float(part) for part in text.split(","))
    except ValueError:
        scales = ()
    if not scales or not all(0 < scale < 100 for scale in scales):
        raise UsageError(f"--scales is {text!r}; expected factors above 0 with commas between them, as in 0.5,0.75,1.")
    return scales


Images = Annotated[
    list[str] | None,
    typer.Argument(metavar="IMAGES", help="Files, folders (with all their subfolders) and globs.", show_default=False),
]
BatchSize = Annotated[int, typer.Option("--batch-size", "-b", metavar="N", min=1, help="Images of a batch.")]
Device = Annotated[
    str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1 ... auto: an accelerator if there is one.")
]
Dtype = Annotated[str, typer.Option("--dtype", metavar="TYPE", help="float32, bfloat16 or float16.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="A model's folder, or its name on the Hugging Face hub.",
        show_default="the shipped one",
    ),
]
Window = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Segment by windows of this size: 512, or 512x768 (height first).",
        show_default="768 above one megapixel, else none",
    ),
]
Stride = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Distance of the windows.", show_default="two thirds of the window")
]
Scales = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Segment with the mean over these sizes of the image, such as 0.5,0.75,1.",
        show_default="1",
    ),
]
Flip = Annotated[bool, typer.Option("--flip", help="Segment with the mean over the mirror image.")]
