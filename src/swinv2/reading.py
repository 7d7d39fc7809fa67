"""Batches of examples; worker processes read them if there are many.

In: indexable examples, or a stream of items and a function. Out: lists of examples, or the function's values, in order.
This module knows no image and no model.
"""

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch.utils.data import DataLoader, Dataset

from swinv2.errors import UsageError

FEW = 64
"""With fewer examples, worker processes cost more time than they save."""

MOST_WORKERS = 8


class Examples(Sized, Protocol):
    """Examples made of numpy arrays: tensors would need shared memory, and containers have little of it."""

    def __getitem__(self, index: int, /) -> Any: ...


def read_batches(examples: Examples, batch_size: int, workers: int | None = None) -> Iterator[list[Any]]:
    """Reads examples in batches.

    Args:
        examples: The examples. If one raises `UsageError`, it is raised here.
        batch_size: Examples of a batch.
        workers: Number of worker processes; 0 reads in this process. None: 0 for fewer than `FEW` examples, otherwise
            see `usual_workers`.
    """
    if workers is None:
        workers = usual_workers() if len(examples) >= FEW else 0
    # `list` does not change the examples.
    for batch in DataLoader(_Readable(examples), batch_size, num_workers=workers, collate_fn=list):
        for example in batch:
            if isinstance(example, UsageError):
                raise example
        yield batch


def usual_workers() -> int:
    """The number of processes to read many examples with: one for each core, at most `MOST_WORKERS`; 0 where this
    process cannot fork."""
    return min(usable_cores(), MOST_WORKERS) if may_fork() else 0


def usable_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def may_fork() -> bool:
    """Whether this process may start others by forking."""
    # Without fork, a script would have to be importable; a daemonic process may not start processes.
    # (`get_start_method()` alone would fix the method for the whole program.)
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    return method == "fork" and not multiprocessing.current_process().daemon


@dataclass(eq=False)
class _Readable(Dataset[Any]):
    examples: Examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.examples[index]
        except UsageError as error:
            # If a worker raised it, its message would be a whole traceback.
            return error


class ReaderKilledError(RuntimeError):
    """A worker process ended before its work was done, for example because the system had too little memory."""


class Passed:
    """An item that `Readers.map` returns as it is. Derive a class from it."""


class Readers:
    """Worker processes that apply a function to a stream of items. They live from the first use until they are closed,
    and end with the process that made them, also if it is killed.

    Args:
        apply: The function. The processes are forked, so it need not be one that can be pickled; items and values must.
        workers: Number of processes; 0 applies the function in this process. None: see `usual_workers`.
    """

    def __init__(self, apply: Callable[[Any], Any], workers: int | None = None) -> None:
        self.apply, self.workers = apply, usual_workers() if workers is None else workers
        self._pool: ProcessPoolExecutor | None = None

    def map(self, items: Iterable[Any]) -> Iterator[Any]:
        """The values for the items, in order. A thread takes the items, at most two for each process ahead of the
        values. A `Passed` item takes its place among the values.

        Raises:
            ReaderKilledError: A process was killed. The next call starts new ones.
            BaseException: What taking an item, or the function, raised.
        """
        if not self.workers:
            for item in items:
                yield item if isinstance(item, Passed) else self.apply(item)
            return
        pool = self._start()
        ahead: queue.Queue[Any] = queue.Queue(2 * self.workers)
        stopped = threading.Event()
        feeder = threading.Thread(target=_feed, args=(items, pool, ahead, stopped), name="reading", daemon=True)
        feeder.start()
        try:
            while True:
                found = ahead.get()
                if isinstance(found, _Ended):
                    if found.error is not None:
                        raise found.error
                    return
                yield found.result() if isinstance(found, Future) else found
        except BrokenProcessPool as error:
            self.close()
            raise ReaderKilledError("a process that reads images was killed") from error
        finally:
            stopped.set()
            feeder.join()

    def _start(self) -> ProcessPoolExecutor:
        """Starts the processes, unless they run."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.workers,
                multiprocessing.get_context("fork"),
                initializer=_begin_worker,
                initargs=(self.apply, os.getpid()),
            )
            # All are forked by the first job, here and not in the thread that takes the items.
            self._pool.submit(os.getpid)
        return self._pool

    def close(self) -> None:
        """Ends the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass(frozen=True)
class _Ended:
    """The end of the items, and the error that ended them."""

    error: BaseException | None = None


def _feed(items: Iterable[Any], pool: ProcessPoolExecutor, ahead: "queue.Queue[Any]", stopped: threading.Event) -> None:
    """Runs in a thread: gives items to the processes, and puts what will be their values into the queue."""

    def put(found: Any) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                ahead.put(found, timeout=0.1)
                return

    try:
        for item in items:
            put(item if isinstance(item, Passed) else pool.submit(_apply, item))
            if stopped.is_set():
                break
    except BaseException as error:
        put(_Ended(error))
    else:
        put(_Ended())
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()


_applied: Callable[[Any], Any]
"""In a worker process: the function."""


def _begin_worker(apply: Callable[[Any], Any], parent: int) -> None:
    """Prepares a worker process."""
    global _applied
    _applied = apply
    # The first process answers Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), name="parent", daemon=True).start()


def _end_with(parent: int) -> None:
    """Runs in a thread: ends this process after its parent was killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _apply(item: Any) -> Any:
    """Runs in a worker process."""
    return _applied(item)
