"""Where commands write, and how they say how far they are.

In: progress. Out: a bar in a terminal; a line every half minute elsewhere, such as in a log. This module knows
no image and no model, and imports nothing that takes long.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

SECONDS_BETWEEN_LINES = 30.0


def message_console() -> Console:
    """Where messages go."""
    console = Console(stderr=True, highlight=False)
    # In a terminal lines end between words; elsewhere, in a log, a message is one line.
    console.soft_wrap = not console.is_terminal
    return console


def data_console() -> Console:
    """Where tables go."""
    console = Console(highlight=False)
    # Elsewhere than in a terminal there is no edge at which a line would have to be folded.
    return console if console.is_terminal else Console(highlight=False, width=100_000)


def shown(path: Path) -> str:
    """A file's name fit for a terminal and for text files, whatever bytes it is made of."""
    name = os.fsencode(path).decode("utf-8", "replace")
    return name if name.isprintable() else repr(name)


class Progress:
    """How far something is; this one does not say so.

    Args:
        total: How many images, or steps, there are.
        console: Where messages go meanwhile.
    """

    def __init__(self, total: int, console: Console) -> None:
        self.done, self.total, self.console = 0, total, console

    def advance(self) -> None:
        """One more is done."""
        self.update(self.done + 1, self.total)

    def update(self, done: int, total: int) -> None:
        """Reports that `done` of `total` are done."""
        self.done, self.total = done, total


class Bar(Progress):
    """Moves a bar.

    Args:
        total, console: See `Progress`.
        bar: The bar, of one task.
    """

    def __init__(self, total: int, console: Console, bar: RichProgress) -> None:
        super().__init__(total, console)
        self._bar = bar
        self._task = bar.add_task("", total=total)

    def update(self, done: int, total: int) -> None:
        """Moves the bar."""
        super().update(done, total)
        self._bar.update(self._task, completed=done, total=total)


class Lines(Progress):
    """Prints a line every half minute, from a thread of its own: however long a step takes.

    Args:
        total, console: See `Progress`; without a total a line has the elapsed time only.
        verb: What is being done.
    """

    def __init__(self, total: int, console: Console, verb: str) -> None:
        super().__init__(total, console)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._print_lines, name="progress", daemon=True)
        self.begin(verb, 0, total)

    def begin(self, verb: str, done: int, total: int, images: int = 1, facts: Callable[[], str] = str) -> None:
        """Says from now on how far something else is.

        Args:
            verb: What is being done.
            done: How much of it was done before.
            total: How much there is.
            images: Images that one of it takes.
            facts: What a line says beside it, each time.
        """
        self.verb, self._images, self._facts = verb, images, facts
        self._begun = self._marked = (time.monotonic(), done)
        self.update(done, total)

    def line(self) -> str:
        """What there is to say now: how far, the facts, the speed since the line before, and the time left."""
        now, done, total = time.monotonic(), self.done, self.total
        (since, begun), (before, marked) = self._begun, self._marked
        self._marked = now, done
        if not total:
            return f"{self.verb}: {_in_words(now - since)} so far"
        speed = (done - marked) * self._images / max(now - before, 1e-9)
        left = _in_words((now - since) / (done - begun) * (total - done)) if done > begun else "unknown time"
        facts = self._facts()
        return f"{self.verb} {done:,}/{total:,}{facts and f', {facts}'}, {speed:.4g} images/s, {left} left"

    def _print_lines(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_LINES):
            self.console.print(self.line(), soft_wrap=True, markup=False)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        # Not for ever: a line may wait for a device that no longer answers.
        self._thread.join(timeout=1)


def _in_words(seconds: float) -> str:
    """Hours, minutes and seconds.

    Example:

        >>> _in_words(59.6), _in_words(3661), _in_words(100_000)
        ('1:00', '1:01:01', '27:46:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def progress_bar(total: int, verb: str, is_shown: bool = True) -> Iterator[Progress]:
    """Shows how far a command is: a bar in a terminal, elsewhere a line every half minute.

    Args:
        total: How many images there are; 0 if nobody knows.
        verb: What is being done.
        is_shown: Whether a terminal shows a bar at all.
    """
    console = message_console()
    if not console.is_terminal:
        with Lines(total, console, verb) as lines:
            yield lines
    elif not is_shown:
        yield Progress(total, console)
    else:
        columns = TextColumn(verb), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with RichProgress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
            yield Bar(total, console, bar)
