"""Threads that read bodies and images, so that the event loop never waits for them.

In: functions. Out: what they return. Each thread reads one image at a time, and no image is read while those that are
already read, and wait for the model, fill the memory that they may take. This module knows no format.
"""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

Result = TypeVar("Result")


class Readers:
    """Threads that read.

    Args:
        threads: Their number.
        most_bytes: Bytes of prepared images. While they are exceeded, no further image is prepared.
        begin_thread: Called in each thread when it begins.
    """

    def __init__(self, threads: int, most_bytes: int, begin_thread: Callable[[], None]) -> None:
        self._pool = ThreadPoolExecutor(threads, "reader", begin_thread)
        self._free_threads = asyncio.Semaphore(threads)
        self._most_bytes, self._held_bytes = most_bytes, 0
        self._released = asyncio.Event()

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """What a function returns that runs in a thread. If the caller is cancelled, a function that runs goes on to
        its end, and keeps its thread so long."""
        await self._free_threads.acquire()
        result = await self._in_thread(function, *arguments)
        self._free_threads.release()
        return result

    async def prepare(self, function: Callable[[bytes], np.ndarray], data: bytes) -> np.ndarray:
        """What a function prepares of a file in a thread. Call `release` when it is no longer needed."""
        await self._free_threads.acquire()
        try:
            while self._held_bytes > self._most_bytes:
                self._released.clear()
                await self._released.wait()
        except BaseException:
            self._free_threads.release()
            raise
        prepared = await self._in_thread(function, data)
        # Before the thread is free: the next image is not read if this one fills the memory.
        self._held_bytes += prepared.nbytes
        self._free_threads.release()
        return prepared

    def release(self, prepared: np.ndarray) -> None:
        """Frees the room of a prepared image."""
        self._held_bytes -= prepared.nbytes
        self._released.set()

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """What a function returns that runs in a free thread. If there is an error, the thread is free again as soon as
        the function has ended."""
        loop = asyncio.get_running_loop()
        future = self._pool.submit(function, *arguments)

        def free(_: Future[Result]) -> None:
            """Runs in the thread that read, or here if that has ended."""
            # At the end of the service, the loop may be gone.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._free_threads.release)

        try:
            return await asyncio.wrap_future(future)
        except BaseException:
            future.add_done_callback(free)
            raise
