"""Who answers SIGTERM and Ctrl-C in a training: the process that trains, after the step that is under way.

Launchers, schedulers and terminals signal all processes of a run. Those that read images must stay until the last
step has its images, and must still end, without a complaint, when the training process ends them. This module imports
nothing that takes long: a signal is answered from the first moment of a command on.
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
"""Shared with the processes that read images: whether this one is at its end, and a SIGTERM is its own."""


@atexit.register
def _leave() -> None:
    # Before multiprocessing's own, which was registered earlier: it sends SIGTERM and waits.
    _is_leaving.value = True


class StoppedError(KeyboardInterrupt):
    """A signal stops the command at once.

    Args:
        number: The signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def ignore_signals(loader: Any) -> None:
    """Has the workers of a `DataLoader` ignore signals, from their first moment on until this process leaves."""
    if not loader.num_workers:
        return
    loader.worker_init_fn = partial(_begin_worker, _is_leaving)
    start_workers = loader._get_iterator

    def start_with_signals_held() -> Any:
        # Started first, where it is needed at all: when it starts, it lets signals through.
        resource_tracker.ensure_running()
        with _held():
            return start_workers()

    loader._get_iterator = start_with_signals_held


def _begin_worker(is_leaving: Any, worker: int) -> None:
    def answer(number: int, frame: FrameType | None) -> None:
        if is_leaving.value:
            # As torch's own workers leave when their parent tells them to: any other status is reported as a failure.
            os._exit(0)

    for number in SIGNALS:
        signal.signal(number, answer)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextmanager
def _held() -> Iterator[None]:
    """Signals that come meanwhile are answered afterwards; a process that begins meanwhile gets them when it lets them
    through."""
    noted: list[int] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        # The mask is this thread's and its children's; another thread may still take a signal for the process.
        with _answering(lambda number, frame: noted.append(number)):
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number in noted:
            signal.raise_signal(number)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """While it lasts, SIGTERM and SIGINT raise `StoppedError`."""

    def answer(number: int, frame: FrameType | None) -> None:
        raise StoppedError(number)

    with _answering(answer):
        yield


@contextmanager
def noting_signals(note: Callable[[int], None]) -> Iterator[None]:
    """While it lasts, the first SIGTERM or SIGINT is noted, and the second stops at once.

    Args:
        note: Called with the number of the signal.
    """
    noted: list[int] = []

    def answer(number: int, frame: FrameType | None) -> None:
        if noted:
            raise StoppedError(number)
        noted.append(number)
        note(number)
        logger.warning(f"{signal.Signals(number).name}: saving and stopping after this step; again to stop at once")

    with _answering(answer):
        yield


@contextmanager
def _answering(answer: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread sets handlers, and only there they are called.
        yield
        return
    before = {number: signal.signal(number, answer) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
