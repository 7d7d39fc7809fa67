"""Batches of examples; worker processes read them if there are many.

In: indexable examples. Out: lists of examples, in order. This module knows no image and no model.
"""

import multiprocessing
import os
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from typing import Any, Protocol

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
        workers: Number of worker processes; 0 reads in this process. None: 0 for fewer than `FEW` examples, or where
            this process cannot fork; otherwise one for each core, at most `MOST_WORKERS`.
    """
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # Without fork, a script would have to be importable; a daemonic process may not start processes.
        # (`get_start_method()` alone would fix the method for the whole program.)
        method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
        may_fork = method == "fork" and not multiprocessing.current_process().daemon
        workers = min(cores, MOST_WORKERS) if may_fork and len(examples) >= FEW else 0
    # `list` does not change the examples.
    for batch in DataLoader(_Readable(examples), batch_size, num_workers=workers, collate_fn=list):
        for example in batch:
            if isinstance(example, UsageError):
                raise example
        yield batch


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
