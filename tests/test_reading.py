"""Batches that other processes read: the same as those that are read here."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from swinv2.errors import UsageError
from swinv2.reading import FEW, Passed, ReaderKilledError, Readers, read_batches


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


class Mark(Passed):
    """Stands between items."""


class TestReaders:
    """A function over a stream."""

    @pytest.mark.parametrize("workers", [0, 1, 3])
    def test_values_are_in_order_and_marks_between_them(self, workers: int) -> None:
        marks = [Mark(), Mark()]
        with Readers(squares, workers) as readers:
            for count in (0, 1, 50):
                items = [marks[0], *range(count), marks[1]]
                first, *values, last = readers.map(items)
                assert [first, last] == marks
                assert len(values) == count
                assert all(np.array_equal(value, squares(index)) for index, value in enumerate(values))

    def test_processes_stay(self) -> None:
        with Readers(process, 2) as readers:
            used = {each for _ in range(3) for each in readers.map(range(20))}
            assert os.getpid() not in used
            assert len(used) <= 2
        assert set(Readers(process, 0).map(range(3))) == {os.getpid()}

    @pytest.mark.parametrize("workers", [1, 3])
    def test_items_are_taken_a_little_ahead(self, workers: int) -> None:
        taken: list[int] = []

        def items() -> Iterator[int]:
            for index in range(1_000):
                taken.append(index)
                yield index

        with Readers(squares, workers) as readers:
            values = readers.map(items())
            for _ in range(5):
                next(values)
            time.sleep(0.3)
            assert 5 <= len(taken) <= 5 + 2 * workers + 2
            values.close()
            taken_then = len(taken)
            time.sleep(0.2)
            assert len(taken) == taken_then

    @pytest.mark.parametrize("workers", [0, 2])
    def test_errors_come_through(self, workers: int) -> None:
        def items() -> Iterator[int]:
            yield from range(4)
            raise ConnectionResetError("the network")

        with Readers(refuse_the_sixth, workers) as readers:
            values = readers.map(range(9))
            assert [next(values) for _ in range(5)] == [0, 1, 2, 3, 4]
            with pytest.raises(UsageError, match=r"^the sixth one$"):
                next(values)
            values = readers.map(items())
            assert [next(values) for _ in range(4)] == [0, 1, 2, 3]
            with pytest.raises(ConnectionResetError, match="the network"):
                next(values)

    def test_a_process_that_is_killed_is_an_error_and_the_next_call_works(self) -> None:
        with Readers(process, 2) as readers:
            for _ in range(3):
                values = readers.map(range(1_000))
                os.kill(next(values), signal.SIGKILL)
                with pytest.raises(ReaderKilledError):
                    list(values)
            assert len(list(readers.map(range(10)))) == 10

    def test_processes_end_with_a_parent_that_is_killed(self) -> None:
        script = (
            "import os, signal\n"
            "from swinv2.reading import Readers\n"
            "values = Readers(lambda item: os.getpid(), 2).map(iter(int, 1))\n"
            "print(*sorted({next(values) for _ in range(200)}), flush=True)\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        # stdout is inherited, so it ends when the last process has ended.
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
        assert done.returncode == -signal.SIGKILL
        for number in done.stdout.split():
            # A process that has ended may not have been waited for; it has no command any more.
            command = Path("/proc", number, "cmdline")
            assert not command.exists() or b"python" not in command.read_bytes()

    @pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
    def test_ctrl_c_is_answered_by_the_first_process_alone(self) -> None:
        script = (
            "import os, signal\n"
            "from swinv2.reading import Readers\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "try:\n"
            "    with Readers(lambda item: item, 2) as readers:\n"
            "        for value in readers.map(range(10_000)):\n"
            "            if value == 40:\n"
            "                os.killpg(0, signal.SIGINT)\n"
            "except KeyboardInterrupt:\n"
            "    print('stopped')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, start_new_session=True
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "stopped\n", "")
