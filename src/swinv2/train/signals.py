"""Who answers SIGTERM and Ctrl-C in a training: the process that trains, after the step that is under way.

Launchers, schedulers and terminals signal all processes of a run. Those that read pictures must stay until the last
step has its pictures, and must still end, without a complaint, when the training process ends them. This module imports
nothing that takes long: a signal is answered from the first moment of a command on.
"""

import atexit
import ctypes
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.context import (
    BaseContext,
    ForkContext,
    ForkProcess,
    ForkServerContext,
    ForkServerProcess,
    SpawnContext,
    SpawnProcess,
)
from multiprocessing.sharedctypes import RawValue
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_is_leaving: Any = RawValue(ctypes.c_bool, False)
"""Shared with the processes that read pictures: whether this one is at its end, and a SIGTERM is its own."""


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


def deafen(loader: "DataLoader[Any]") -> None:
    """Has the workers of a loader ignore signals, from their first moment on until this process leaves."""
    if not loader.num_workers:
        return
    loader.worker_init_fn = partial(_begin_worker, _is_leaving)
    loader.multiprocessing_context = _with_held_signals(loader.multiprocessing_context)


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
    """Signals that come meanwhile are answered afterwards; a process that begins meanwhile begins so."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _HeldForkProcess(ForkProcess):
    def start(self) -> None:
        with _held():
            super().start()


class _HeldSpawnProcess(SpawnProcess):
    def start(self) -> None:
        # Needed by such processes; when it is started, it lets signals through.
        resource_tracker.ensure_running()
        with _held():
            super().start()


class _HeldForkServerProcess(ForkServerProcess):
    def start(self) -> None:
        # Needed by such processes; when it is started, it lets signals through.
        resource_tracker.ensure_running()
        with _held():
            super().start()


class _HeldForkContext(ForkContext):
    Process = _HeldForkProcess


class _HeldSpawnContext(SpawnContext):
    Process = _HeldSpawnProcess


class _HeldForkServerContext(ForkServerContext):
    Process = _HeldForkServerProcess


_HELD: dict[str, Callable[[], BaseContext]] = {
    "fork": _HeldForkContext,
    "spawn": _HeldSpawnContext,
    "forkserver": _HeldForkServerContext,
}


def _with_held_signals(context: BaseContext | None) -> BaseContext:
    """The same way to start processes; signals that one gets before `_begin_worker` has run in it wait for that."""
    method = multiprocessing.get_start_method() if context is None else context.get_start_method()
    return _HELD[method]()


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
        note: Is told the number of the signal.
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
    before = {number: signal.signal(number, answer) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
