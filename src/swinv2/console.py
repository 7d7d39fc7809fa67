"""The consoles of the commands, and their progress.

In: progress. Out: a bar in a terminal; elsewhere, for example in a log, a line every half minute. This module knows
no image and no model, and imports nothing slow.
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
    """The console for messages: stderr."""
    console = Console(stderr=True, highlight=False)
    # A terminal wraps messages between words; in a log a message is one line.
    console.soft_wrap = not console.is_terminal
    return console


def data_console() -> Console:
    """The console for tables: stdout."""
    console = Console(highlight=False)
    # Only a terminal has a width at which lines must be folded.
    return console if console.is_terminal else Console(highlight=False, width=100_000)


def shown(path: Path) -> str:
    """The name of a file as messages print it; its bytes may be no valid text."""
    name = os.fsencode(path).decode("utf-8", "replace")
    return name if name.isprintable() else repr(name)


class Progress:
    """Counts progress, and moves a bar if there is one.

    Args:
        total: Number of images or steps.
        console: The console for messages.
        bar: The bar; it gets one task.
    """

    def __init__(self, total: int, console: Console, bar: RichProgress | None = None) -> None:
        self.done, self.total, self.console, self._bar = 0, total, console, bar
        self.fact = ""
        if bar is not None:
            self._task = bar.add_task("", total=total)

    def advance(self) -> None:
        """Adds one to the number done."""
        self.update(self.done + 1, self.total)

    def update(self, done: int, total: int) -> None:
        """Sets the number done and the total."""
        self.done, self.total = done, total
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)

    def tell(self, fact: str) -> None:
        """Sets a text that is shown beside the number done."""
        self.fact = fact
        if self._bar is not None:
            self._bar.update(self._task, description=fact)


class Lines(Progress):
    """Prints a line every half minute. Its own thread prints it, so a long step delays no line.

    Args:
        total, console: See `Progress`; if the total is 0, a line has only the elapsed time.
        verb: The activity, for example "classifying".
        unit: What is counted.
    """

    def __init__(self, total: int, console: Console, verb: str, unit: str = "images") -> None:
        super().__init__(total, console)
        self._unit = unit
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._print_lines, name="progress", daemon=True)
        self.begin(verb, 0, total)

    def begin(self, verb: str, done: int, total: int, images: int = 1, facts: Callable[[], str] = str) -> None:
        """Starts to report another activity.

        Args:
            verb: The activity.
            done: The number already done.
            total: The number to do.
            images: Images of each step or batch.
            facts: Called for each line; returns further text for it.
        """
        self.verb, self._images, self._facts = verb, images, facts
        self._begun = self._marked = (time.monotonic(), done)
        self.update(done, total)

    def line(self) -> str:
        """The next line: progress, facts, speed since the previous line, remaining time."""
        now, done, total = time.monotonic(), self.done, self.total
        (since, begun), (before, marked) = self._begun, self._marked
        self._marked = now, done
        if not total:
            return f"{self.verb}: {_time_in_words(now - since)} so far"
        # If nothing was done since the last line, the mean since the beginning.
        step, seconds = (done - marked, now - before) if done > marked else (done - begun, now - since)
        speed = f", {step * self._images / max(seconds, 1e-9):.4g} {self._unit}/s" if step else ""
        left = _time_in_words((now - since) / (done - begun) * (total - done)) if done > begun else "unknown time"
        facts = self._facts() or self.fact
        return f"{self.verb} {done:,}/{total:,}{facts and f', {facts}'}{speed}, {left} left"

    def _print_lines(self) -> None:
        """Runs in a thread: prints a line of progress every half minute."""
        while not self._ended.wait(SECONDS_BETWEEN_LINES):
            self.console.print(self.line(), soft_wrap=True, markup=False)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        # With a limit: a line may wait for a device that no longer answers.
        self._thread.join(timeout=1)


def _time_in_words(seconds: float) -> str:
    """Hours, minutes and seconds.

    Example:

        >>> _time_in_words(59.6), _time_in_words(3661), _time_in_words(100_000)
        ('1:00', '1:01:01', '27:46:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def progress_bar(total: int, verb: str, is_shown: bool = True, unit: str = "images") -> Iterator[Progress]:
    """Shows the progress of a command: a bar in a terminal, elsewhere a line every half minute.

    Args:
        total: Number of images; 0 if unknown.
        verb: The activity.
        is_shown: Whether a terminal shows the bar.
        unit: What is counted, if not images.
    """
    console = message_console()
    if not console.is_terminal:
        with Lines(total, console, verb, unit) as lines:
            yield lines
        return
    columns = (
        TextColumn(verb),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    bar = RichProgress(*columns, console=console, transient=True, redirect_stdout=False, disable=not is_shown)
    with bar:
        yield Progress(total, console, bar)
