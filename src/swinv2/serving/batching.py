"""Dynamic batches with a bounded queue: images of several requests are computed together.

In: prepared images, one by one. Out: an answer for each. Images wait in the queue while the model computes; then it
gets as many as fit into a batch. Everything but the model runs in the event loop; the model has a thread of its own.
This module knows no HTTP and no model.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from swinv2.serving.endpoints import Endpoint

_BATCHES = 9
"""Batches whose median is the time of an image: a single large image does not count."""

_SHARE_OF_TIME = 0.7
"""Share of the time limit that the way through the queue may take, by the last batches; the next ones may be slower."""


class QueueFullError(Exception):
    """There is no room in the queue.

    Attributes:
        seconds: How long it takes, about, until there is.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no room for about {seconds:.1f} s")
        self.seconds = seconds


@dataclass(frozen=True)
class Call:
    """A question to the model. Images of equal calls can share a batch.

    Attributes:
        endpoint: The endpoint.
        parameters: The parameters of the request, by name.
    """

    endpoint: Endpoint
    parameters: tuple[tuple[str, Any], ...]


@dataclass(eq=False)
class _Job:
    """An image that waits for its answer."""

    call: Call
    image: np.ndarray
    answer: asyncio.Future[dict[str, Any]]
    known: float
    arrived: float = field(default_factory=time.monotonic)

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still waits for it: the time of its request may be over."""
        return not self.answer.done()


class Visit:
    """The places and bytes that a request has in the queue, see `Batcher.enter`."""

    def __init__(self, batcher: "Batcher", images: int, held_bytes: int) -> None:
        self._batcher, self.images, self.held_bytes = batcher, images, held_bytes

    def grow(self, images: int) -> None:
        """Takes more places.

        Raises:
            QueueFullError: There are too few.
        """
        self._batcher.take(images, 0, own=self.images)
        self.images += images


class Batcher:
    """A queue in front of a model.

    Args:
        most_images: Places in the queue, with those of the batch that is computed.
        most_bytes: Bytes of requests that are held at once.
        batch_wait: Seconds that an image waits for others, while the model has nothing to do.
        seconds: Seconds in which an answer must be there. If the images in front need most of them, there is no place.
        on_batch: Called with the name of the endpoint and the number of images of each batch.
        on_queue: Called with the number of places that are taken, when it changes.
        begin_thread: Called in the thread of the model when it begins.
    """

    def __init__(
        self,
        most_images: int,
        most_bytes: int,
        batch_wait: float,
        seconds: float,
        on_batch: Callable[[str, int], None],
        on_queue: Callable[[int], None],
        begin_thread: Callable[[], None],
    ) -> None:
        self._most_images, self._most_bytes = most_images, most_bytes
        self._batch_wait, self._seconds = batch_wait, seconds
        self._on_batch, self._on_queue = on_batch, on_queue
        self._thread = ThreadPoolExecutor(1, "model", begin_thread)
        self._jobs: deque[_Job] = deque()
        self._arrived = asyncio.Event()
        self._taken, self._held_bytes = 0, 0
        self._seconds_of_images, self._last_end = deque[float](maxlen=_BATCHES), 0.0

    @property
    def seconds_per_image(self) -> float:
        """Seconds from one image to the next while the service is busy, by the last batches; 0 before the first one.
        They include what an image waits for besides the model, such as threads that read."""
        return median(self._seconds_of_images) if self._seconds_of_images else 0.0

    def forget_times(self) -> None:
        """Forgets the batches so far, such as the first one, which takes longer."""
        self._seconds_of_images.clear()

    @contextmanager
    def enter(self, held_bytes: int) -> Iterator[Visit]:
        """Takes one place and room for the body of a request, and gives all its places back at the end.

        Raises:
            QueueFullError: There is no room.
        """
        self.take(1, held_bytes)
        visit = Visit(self, 1, held_bytes)
        try:
            yield visit
        finally:
            self.take(-visit.images, -held_bytes)

    def take(self, images: int, held_bytes: int, own: int = 0) -> None:
        """Takes places and bytes, or gives them back.

        Args:
            images, held_bytes: How many; negative to give them back.
            own: Places that the same request has already.

        Raises:
            QueueFullError: There is no room.
        """
        after, bytes_after = self._taken + images, self._held_bytes + held_bytes
        expected = after * self.seconds_per_image
        is_more = images > 0 or held_bytes > 0
        # A request that has the model to itself is always taken: it would be no faster another time.
        is_late = expected > _SHARE_OF_TIME * self._seconds and self._taken > own
        if is_more and (after > self._most_images or bytes_after > self._most_bytes or is_late):
            raise QueueFullError(self._taken * self.seconds_per_image)
        self._taken, self._held_bytes = after, bytes_after
        self._on_queue(after)

    async def compute(self, call: Call, image: np.ndarray, known: float | None = None) -> dict[str, Any]:
        """The answer for an image. If the caller is cancelled, the image is not computed, unless it already is.

        Args:
            call: The question.
            image: The prepared image.
            known: When its file was there (`time.monotonic`), before it was prepared; None for now.

        Raises:
            Exception: What the model raised for this image.
        """
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        job = _Job(call, image, future, time.monotonic() if known is None else known)
        self._jobs.append(job)
        self._arrived.set()
        return await job.answer

    async def run(self) -> None:
        """Computes batches until it is cancelled."""
        while True:
            batch = await self._next_batch()
            if not await self._compute(batch):
                # One image must not spoil the answers of the others.
                for job in batch if len(batch) > 1 else []:
                    if job.is_wanted:
                        await self._compute([job])

    def close(self) -> None:
        """Ends the thread of the model."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _next_batch(self) -> list[_Job]:
        """Waits for images, and takes the oldest one and those that can share its batch out of the queue."""
        while True:
            self._jobs = deque(job for job in self._jobs if job.is_wanted)
            self._arrived.clear()
            left: float | None = None
            if self._jobs:
                first = self._jobs[0]
                batch = [job for job in self._jobs if job.call == first.call][: first.call.endpoint.batch_size]
                left = first.arrived + self._batch_wait - time.monotonic()
                if left <= 0 or len(batch) == first.call.endpoint.batch_size:
                    self._jobs = deque(job for job in self._jobs if job not in batch)
                    return batch
            try:
                async with asyncio.timeout(left):
                    await self._arrived.wait()
            except TimeoutError:
                continue

    async def _compute(self, batch: Sequence[_Job]) -> bool:
        """Computes a batch in the thread of the model, and hands out the answers. Returns whether the model answered;
        if not, and the batch is one image, its caller gets the error."""
        call, images = batch[0].call, [job.image for job in batch]
        try:
            answers = await asyncio.get_running_loop().run_in_executor(
                self._thread, lambda: call.endpoint.answer(images, **dict(call.parameters))
            )
            if len(answers) != len(batch):
                raise RuntimeError(f"the model gave {len(answers)} answers for {len(batch)} images")
        except Exception as error:
            if len(batch) == 1 and batch[0].is_wanted:
                batch[0].answer.set_exception(error)
            return False
        now = time.monotonic()
        # While it is busy, from batch to batch; otherwise the way of an image.
        since = max(self._last_end, min(job.known for job in batch))
        self._seconds_of_images.append((now - since) / len(batch))
        self._last_end = now
        self._on_batch(call.endpoint.name, len(batch))
        for job, answer in zip(batch, answers, strict=True):
            if job.is_wanted:
                job.answer.set_result(answer)
        return True
