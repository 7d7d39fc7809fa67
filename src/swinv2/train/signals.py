"""SIGTERM and Ctrl-C in a training: the training process handles them, after the current step.

Launchers, schedulers and terminals signal all processes of a run. Worker processes that read images must ignore the
signal until the last step has its images; they must still end, with status 0, when the training process ends them. This
module imports nothing slow, so a command handles signals from its first moment on.
"""

import atexit
import ctypes
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.sharedctypes import RawValue
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_is_leaving: Any = RawValue(ctypes.c_bool, False)
"""Shared with the workers: whether the training process is ending, so that a SIGTERM comes from it."""


@atexit.register
def _tell_workers_to_leave() -> None:
    """Tells the workers, at the exit of this process, that SIGTERM now ends them."""
    # Runs before multiprocessing's exit function, which was registered earlier: that one sends SIGTERM and waits.
    _is_leaving.value = True


class StoppedError(KeyboardInterrupt):
    """The signal with this number stops the command at once."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def ignore_signals(loader: Any) -> None:
    """Makes the workers of a `DataLoader` ignore signals, from their start until this process ends."""
    if not loader.num_workers:
        return
    loader.worker_init_fn = partial(_ignore_signals_in_worker, _is_leaving)
    start_workers = loader._get_iterator

    def start_with_blocked_signals() -> Any:
        """Starts the workers, which inherit blocked signals."""
        # Started before signals are blocked, because its start unblocks them.
        resource_tracker.ensure_running()
        with _blocked_signals():
            return start_workers()

    loader._get_iterator = start_with_blocked_signals


def _ignore_signals_in_worker(is_leaving: Any, worker: int) -> None:
    def answer(number: int, frame: FrameType | None) -> None:
        if is_leaving.value:
            # torch's workers also end with 0; their parent reports any other status as a failure.
            os._exit(0)

    for number in SIGNALS:
        signal.signal(number, answer)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Blocks signals; this process handles them afterwards, and a child that starts inside when it unblocks them."""
    noted: list[int] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        # The mask counts for this thread and its children; another thread may still receive a signal for the process.
        with _signals_handled_by(lambda number, frame: noted.append(number)):
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number in noted:
            signal.raise_signal(number)


@contextmanager
def noting_signals(note: Callable[[int], None] | None = None) -> Iterator[None]:
    """Inside, the first SIGTERM or SIGINT calls `note` with its number, and the second raises `StoppedError`. Without
    `note`, the first one raises it."""
    noted: list[int] = []

    def answer(number: int, frame: FrameType | None) -> None:
        """Notes the first signal; raises an error for the second."""
        if noted or note is None:
            raise StoppedError(number)
        noted.append(number)
        note(number)
        logger.warning(f"{signal.Signals(number).name}: saves and stops after this step; a second one stops at once")

    with _signals_handled_by(answer):
        yield


@contextmanager
def _signals_handled_by(answer: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Inside, `answer` handles SIGTERM and SIGINT; afterwards the earlier handlers do."""
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread can set handlers, and Python calls them only there.
        yield
        return
    before = {number: signal.signal(number, answer) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
