"""The command line: a room for each group of commands, and what all of them share."""

from swinv2.cli.main import app

__all__ = ["app"]
