"""Threads that read: the event loop goes on, and no more is read than fits the memory."""

import asyncio
import threading
import time

import numpy as np
import pytest

from swinv2.serving.reading import Readers


def test_the_event_loop_goes_on_while_a_file_is_read() -> None:
    async def run() -> None:
        readers, ticks = Readers(1, 1000, lambda: None), 0
        reading = asyncio.create_task(readers.run(time.sleep, 0.3))
        while not reading.done():
            await asyncio.sleep(0.01)
            ticks += 1
        readers.close()
        assert ticks > 10

    asyncio.run(run())


def test_every_thread_begins_as_it_should_and_there_are_no_more() -> None:
    begun, seen = list[str](), set[str]()

    def read(data: bytes) -> np.ndarray:
        seen.add(threading.current_thread().name)
        time.sleep(0.02)
        return np.zeros(len(data), np.uint8)

    async def run() -> None:
        readers = Readers(2, 1000, lambda: begun.append(threading.current_thread().name))
        found = await asyncio.gather(*(readers.prepare(read, b"x" * index) for index in range(8)))
        assert [len(each) for each in found] == list(range(8))
        readers.close()

    asyncio.run(run())
    assert seen == set(begun)
    assert len(begun) == 2


def test_no_more_is_prepared_than_fits() -> None:
    """The next image is read when one that waited for the model is released."""

    async def run() -> None:
        readers = Readers(1, 100, lambda: None)
        tasks = [asyncio.create_task(readers.prepare(lambda data: np.zeros(80, np.uint8), b"")) for _ in range(4)]
        await asyncio.sleep(0.2)
        # The first two take more than there is.
        assert [task.done() for task in tasks] == [True, True, False, False]
        readers.release(tasks[0].result())
        await asyncio.sleep(0.2)
        assert [task.done() for task in tasks] == [True, True, True, False]
        tasks[3].cancel()
        readers.release(tasks[1].result())
        readers.release(tasks[2].result())
        await asyncio.sleep(0)
        # The one that was cancelled keeps no thread.
        assert (await readers.prepare(lambda data: np.zeros(1, np.uint8), b"")).nbytes == 1
        readers.close()

    asyncio.run(run())


def test_an_error_frees_the_thread() -> None:
    def fail(data: bytes) -> np.ndarray:
        raise ValueError("broken")

    async def run() -> None:
        readers = Readers(1, 100, lambda: None)
        for _ in range(3):
            with pytest.raises(ValueError, match="broken"):
                await readers.prepare(fail, b"")
        readers.close()

    asyncio.run(run())


def test_a_file_that_is_being_read_keeps_its_thread_when_its_request_ends() -> None:
    """Otherwise more files than threads would be in memory."""
    may_end, running = threading.Event(), list[int]()

    def read(data: bytes) -> np.ndarray:
        running.append(1)
        may_end.wait(20)
        return np.zeros(1)

    async def run() -> None:
        readers = Readers(1, 100, lambda: None)
        first = asyncio.create_task(readers.prepare(read, b""))
        await asyncio.sleep(0.05)
        first.cancel()
        second = asyncio.create_task(readers.prepare(read, b""))
        await asyncio.sleep(0.1)
        assert (len(running), second.done()) == (1, False)
        may_end.set()
        await second
        readers.close()

    asyncio.run(run())
