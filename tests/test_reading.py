"""Batches that other processes read: the same as those that are read here."""

import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from swinv2.errors import UsageError
from swinv2.reading import FEW, read_batches


class Computed:
    """Examples that are computed from their index."""

    def __init__(self, length: int, compute: Callable[[int], object]) -> None:
        self.length, self.compute = length, compute

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> object:
        return self.compute(index)


def squares(index: int) -> np.ndarray:
    return np.full((index % 3,), index**2)


def process(index: int) -> int:
    return os.getpid()


def refuse_the_sixth(index: int) -> int:
    if index == 5:
        raise UsageError("the sixth one")
    return index


@pytest.mark.parametrize("workers", [0, 2, None])
@pytest.mark.parametrize("length", [0, 1, 7, 2 * FEW])
def test_batches_are_whole_and_in_order(length: int, workers: int | None) -> None:
    batches = list(read_batches(Computed(length, squares), 4, workers))
    assert [len(batch) for batch in batches] == [4] * (length // 4) + [length % 4] * (length % 4 > 0)
    for index, example in enumerate(example for batch in batches for example in batch):
        assert np.array_equal(example, squares(index))


def test_processes_are_started_for_many_examples_only() -> None:
    def readers(length: int, workers: int | None = None) -> set[object]:
        return {example for batch in read_batches(Computed(length, process), 4, workers) for example in batch}

    assert readers(FEW - 1) == {os.getpid()}
    assert readers(FEW - 1, 2).isdisjoint({os.getpid()})
    assert readers(FEW).isdisjoint({os.getpid()})
    assert readers(FEW, 0) == {os.getpid()}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_refusal_is_the_same_sentence_from_any_process(workers: int) -> None:
    batches = read_batches(Computed(8, refuse_the_sixth), 2, workers)
    assert [next(batches), next(batches)] == [[0, 1], [2, 3]]
    with pytest.raises(UsageError, match=r"^the sixth one$"):
        next(batches)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_ctrl_c_is_answered_by_the_first_process_alone() -> None:
    script = (
        "import os, signal\n"
        "from swinv2.reading import read_batches\n"
        # A shell has what it runs in the background ignore it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Numbers:\n"
        "    def __len__(self): return 10_000\n"
        "    def __getitem__(self, index): return index\n"
        "try:\n"
        "    for batch in read_batches(Numbers(), 4, 2):\n"
        "        if batch[0] == 40:\n"
        "            os.killpg(0, signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    print('stopped')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, start_new_session=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped\n", "")


def test_where_no_process_may_be_started_this_one_reads() -> None:
    """A daemonic process may have no children; and the program may still choose how its processes are started."""
    script = (
        "import multiprocessing\n"
        "from swinv2.reading import read_batches\n"
        "def read(examples): return sum(read_batches(examples, 4), [])\n"
        "class Numbers:\n"
        "    def __init__(self, count): self.count = count\n"
        "    def __len__(self): return self.count\n"
        "    def __getitem__(self, index):\n"
        "        return index\n"
        "if __name__ == '__main__':\n"
        "    assert read(Numbers(7)) == list(range(7))\n"
        "    multiprocessing.set_start_method('spawn')\n"
        "    assert read(Numbers(70)) == list(range(70))\n"
        "    with multiprocessing.get_context('fork').Pool(1) as pool:\n"
        "        print(pool.apply(read, (Numbers(70),)) == list(range(70)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
