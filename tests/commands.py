"""The command line as a user meets it, in the process of the tests."""

from typer.testing import CliRunner, Result

from swinv2.cli import app

LABELS = ["ant", "bee [bold]", "cat", "dog"]
"""Labels of the model in `tests/cli/conftest.py`; one looks like the markup of a console."""


def swinv2_command(*arguments: object) -> Result:
    """Runs the command: its exit status, stdout and stderr."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="swinv2")
