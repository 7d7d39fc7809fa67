"""The program `swinv2`: its commands, in the order of its help.

In: command-line arguments. Out: data on stdout, messages on stderr, and an exit status. `swinv2.predict`,
`swinv2.shards`, `swinv2.train`, `swinv2.inspect` and `swinv2.convert` compute; `swinv2.cli` reads arguments and prints
results.
"""

from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import swinv2
from swinv2.cli.dense import detect, segment
from swinv2.cli.evaluating import evaluate
from swinv2.cli.exporting import export
from swinv2.cli.images import classify, demo, features, inspect
from swinv2.cli.models import convert, info
from swinv2.cli.page import page
from swinv2.cli.predicting import predict
from swinv2.cli.running import sentences
from swinv2.cli.serving import serve
from swinv2.cli.training import finetune, pretrain, reconstruct


class _PlainSwitches:
    """In its help, a command shows no type after a switch, which takes no value."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Removes the type that typer shows after a switch."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params


class _Command(_PlainSwitches, TyperCommand):
    pass


class _Program(_PlainSwitches, TyperGroup):
    pass


app = typer.Typer(
    cls=_Program,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Swin Transformer V2: describe models, classify and segment images, detect objects, extract features, train, "
    "convert and export weights, serve models over HTTP.",
)


def _show_version(wanted: bool) -> None:
    """Prints the version for `--version`, and ends the program."""
    if wanted:
        typer.echo(f"swinv2 {swinv2.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Runs before every command, for `--version`. Has no help text: `app` has it."""


_PASS_ON: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""`swinv2.train.flags` reads the flags of trainings, also `--help`."""

_ON_IMAGES = (info, classify, features, predict, segment, detect)
_TRAININGS = (pretrain, finetune, evaluate, reconstruct)
for command in (*_ON_IMAGES, *_TRAININGS, convert, export, serve, inspect, page, demo):
    passes_on = command in (pretrain, finetune)
    app.command(cls=_Command, context_settings=_PASS_ON if passes_on else None)(sentences()(command))
