"""What the benchmarks' commands ask and print: lists of names as options, and lines of progress on stderr."""

import sys
import time
from collections.abc import Iterable

import typer

STARTED = time.perf_counter()


def select(option: str, given: str, known: Iterable[str], only_when_named: Iterable[str] = ()) -> list[str]:
    """Reads names separated by commas.

    Args:
        option: Name of the option, for errors.
        given: The names; none: all except `only_when_named`.
        known: All names.
        only_when_named: Those that are left out unless they are named.

    Returns:
        Names in the order of `known`.

    Raises:
        typer.BadParameter: A name is not known.
    """
    known = list(known)
    names = [name.strip() for name in given.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"there is no {name!r}; choose from {', '.join(known)}", param_hint=f"--{option}")
    return [name for name in known if (name in names if names else name not in only_when_named)]


def progress(message: str) -> None:
    """Prints a line with the seconds since the start."""
    print(f"[{time.perf_counter() - STARTED:6.0f} s] {message}", file=sys.stderr, flush=True)
