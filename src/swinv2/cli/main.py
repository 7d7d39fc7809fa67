"""The program `swinv2`: its commands, in the order of its help.

In: command-line arguments. Out: data on stdout, messages on stderr, and an exit status. `swinv2.predict`,
`swinv2.train`, `swinv2.inspect` and `swinv2.convert` compute; `swinv2.cli` reads arguments and prints results.
"""

from typing import Annotated, Any

import typer

import swinv2
from swinv2.cli.images import classify, demo, features, inspect
from swinv2.cli.models import convert, info
from swinv2.cli.running import sentences
from swinv2.cli.training import evaluate, finetune, pretrain, reconstruct

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Swin Transformer V2: describe models, classify images, extract features, train, convert weights.",
)


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
    """Has no help text: `app` has it."""


_PASS_ON: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""`swinv2.train.flags` reads the flags of trainings, also `--help`."""

for command in (info, classify, features, pretrain, finetune, evaluate, reconstruct, convert, inspect, demo):
    app.command(context_settings=_PASS_ON if command in (pretrain, finetune) else None)(sentences()(command))
