"""Options that several commands have, each with its help.

In: nothing. Out: annotations for the arguments of commands.
"""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch


class Precision(StrEnum):
    """Types a model can compute in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"

    @property
    def dtype(self) -> "torch.dtype":
        """The same for torch."""
        import torch

        return getattr(torch, self.value)


Images = Annotated[
    list[str] | None,
    typer.Argument(metavar="IMAGES", help="Files, folders (searched to their depth) and globs.", show_default=False),
]
BatchSize = Annotated[int, typer.Option("--batch-size", "-b", metavar="N", min=1, help="Images a batch.")]
Device = Annotated[
    str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1 ... auto: an accelerator if there is one.")
]
Dtype = Annotated[Precision, typer.Option("--dtype", metavar="TYPE", help="float32, bfloat16 or float16.")]
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
