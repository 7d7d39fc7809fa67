"""The command line: a module for each group of commands, and their shared code."""

import sys

try:
    from swinv2.cli.main import app
except KeyboardInterrupt:
    print("SIGINT: stopped at once", file=sys.stderr)
    sys.exit(130)

__all__ = ["app"]
