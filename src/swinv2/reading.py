"""Examples in batches, read by processes of their own where there are many.

In: examples by their index. Out: lists of them, in their order. This module knows no image and no model.
"""

import multiprocessing
import os
from collections.abc import Iterator, Sized
from typing import Any, Protocol

from torch.utils.data import DataLoader, Dataset

from swinv2.errors import UsageError

FEW = 64
"""Below so many examples, starting processes takes longer than they save."""

MOST_WORKERS = 8


class Examples(Sized, Protocol):
    """Examples that hold arrays of numpy: tensors would go through shared memory, of which containers have little."""

    def __getitem__(self, index: int, /) -> Any: ...


def read_batches(examples: Examples, batch_size: int, workers: int | None = None) -> Iterator[list[Any]]:
    """Reads examples, so many at once.

    Args:
        examples: The examples. What one raises as `UsageError` is raised here.
        batch_size: Examples of a batch.
        workers: Processes that read; 0 to read in this one. None: one for each core, at most `MOST_WORKERS`, if there
            are many examples and this process can fork; otherwise 0.
    """
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # Elsewhere a script must be importable, and a process that is a worker itself can start none.
        may_fork = multiprocessing.get_start_method() == "fork" and not multiprocessing.current_process().daemon
        workers = min(cores, MOST_WORKERS) if may_fork and len(examples) >= FEW else 0
    # `list` leaves examples as they are.
    for batch in DataLoader(_Readable(examples), batch_size, num_workers=workers, collate_fn=list):
        for example in batch:
            if isinstance(example, UsageError):
                raise example
        yield batch


class _Readable(Dataset[Any]):
    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.examples[index]
        except UsageError as error:
            # Raised by a worker, it would come with a traceback for its message.
            return error
