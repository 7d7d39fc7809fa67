"""The command line: a module for each group of commands, and their shared code."""

from swinv2.cli.main import app

__all__ = ["app"]
