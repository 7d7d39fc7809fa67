"""Who answers SIGTERM and Ctrl-C in a training: the process that trains, after the step that is under way.

Launchers, schedulers and terminals signal all processes of a run. Those that read pictures must stay until the last
step has its pictures, and must still end when the training process ends them.
"""

import atexit
import ctypes
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.sharedctypes import RawValue
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_is_leaving: Any = RawValue(ctypes.c_bool, False)
"""Shared with the processes that read pictures: whether this one is at its end, and a SIGTERM is its own."""


@atexit.register
def _leave() -> None:
    # Before multiprocessing's own, which was registered earlier: it sends SIGTERM and waits.
    _is_leaving.value = True


def deaf_to_signals() -> Callable[[int], None]:
    """What a `DataLoader` takes as its `worker_init_fn`: a worker ignores signals until its parent leaves."""
    return partial(_begin_worker, _is_leaving)


def _begin_worker(is_leaving: Any, worker: int) -> None:
    def answer(number: int, frame: FrameType | None) -> None:
        if is_leaving.value:
            os._exit(128 + number)

    for number in SIGNALS:
        signal.signal(number, answer)


@contextmanager
def noting_signals(note: Callable[[int], None]) -> Iterator[None]:
    """While it lasts, the first SIGTERM or SIGINT is noted, and the second stops at once.

    Args:
        note: Is told the number of the signal.
    """
    noted: list[int] = []

    def answer(number: int, frame: FrameType | None) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)
        note(number)
        logger.warning(f"{signal.Signals(number).name}: saving and stopping after this step; again to stop at once")

    before = {number: signal.signal(number, answer) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
