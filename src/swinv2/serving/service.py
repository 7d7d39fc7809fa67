"""The way of a request from its headers to the answer.

In: a request and its parameters. Out: a response, or a `Refusal`. A request takes a place in the queue before its body
is read; then its body is read, its images are prepared, and the model answers. All of it must end within the time
limit.
"""

import asyncio
import io
import json
import logging
import math
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from swinv2.images import BrokenImageError
from swinv2.serving.batching import Batcher, Call, QueueFullError
from swinv2.serving.bodies import SentImage, images_in, kind_of, length_of, too_large
from swinv2.serving.endpoints import Endpoint, Served, TooLittleMemoryError
from swinv2.serving.metrics import Metrics
from swinv2.serving.reading import Readers
from swinv2.serving.refusals import Refusal
from swinv2.serving.settings import ServiceSettings

_MOST_READERS = 8
_BYTES_OF_PIXEL = 3
_LONGEST_RETRY = 60

_log = logging.getLogger("swinv2.serving")


class Service:
    """Answers requests about images. It is made inside the event loop.

    Args:
        served: The model.
        settings: The settings.
        metrics: The counters.
    """

    def __init__(self, served: Served, settings: ServiceSettings, metrics: Metrics) -> None:
        self.served, self._settings, self._metrics = served, settings, metrics
        threads = settings.threads or max(served.threads // settings.workers, 1)
        self._batcher = Batcher(
            settings.queue,
            settings.held_bytes,
            settings.batch_wait,
            settings.timeout,
            lambda name, images: metrics.batches.labels(f"/{name}").observe(images),
            metrics.queue.set,
            partial(served.set_threads, threads),
        )
        # A reader computes in one thread: there are several of them, beside that of the model.
        readers = min(max(threads, 2), _MOST_READERS)
        self._readers = Readers(readers, _BYTES_OF_PIXEL * settings.max_pixels, partial(served.set_threads, 1))
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> float:
        """Starts to compute, with an image for each endpoint, and returns the seconds that one takes.

        Raises:
            Exception: The model cannot answer.
        """
        self._running = asyncio.create_task(self._batcher.run())
        picture = _example()
        for endpoint in self.served.endpoints.values():
            call = Call(endpoint, tuple(EXAMPLES[endpoint.name].items()))
            # The first time takes longer.
            for _ in range(2):
                self._batcher.forget_times()
                prepared = await self._readers.prepare(endpoint.prepare, picture)
                await self._batcher.compute(call, prepared)
                self._readers.release(prepared)
        return self._batcher.seconds_per_image

    @property
    def is_running(self) -> bool:
        """Whether batches are computed. If not, only another process helps."""
        return self._running is not None and not self._running.done()

    def stop(self) -> None:
        """Ends the threads."""
        if self._running is not None:
            self._running.cancel()
        self._batcher.close()
        self._readers.close()

    async def answer(self, request: Request, name: str, **parameters: Any) -> Response:
        """The answer for a request.

        Args:
            request: The request; its body was not read.
            name: The endpoint.
            parameters: The parameters of the request.

        Raises:
            Refusal: There is no answer; the sentence says why.
            ClientDisconnect: The client no longer waits for it.
        """
        endpoint, headers, limits = self.served.endpoints[name], request.headers, self._settings
        _refuse_unknown(request, name, parameters)
        kind = kind_of(headers.get("content-type"))
        length = length_of(headers.get("content-length"), headers.get("content-encoding"), limits.max_body)
        begun, started = asyncio.get_running_loop().time(), time.perf_counter()
        try:
            with self._batcher.enter(limits.max_body if length is None else length) as visit:
                async with asyncio.timeout_at(begun + limits.timeout):
                    body = await self._read(request, begun + limits.body_timeout)
                    images = await self._readers.run(
                        images_in, kind, headers.get("content-type", ""), body, limits.max_images
                    )
                    del body
                    visit.grow(len(images) - 1)
                    call = Call(endpoint, tuple(parameters.items()))
                    records = await _while_connected(request, self._answer_all(call, images))
        except QueueFullError as error:
            after = min(max(math.ceil(error.seconds), 1), _LONGEST_RETRY)
            raise Refusal(429, f"the queue is full; try again in {after} s.", {"Retry-After": str(after)}) from error
        except TimeoutError as error:
            raise Refusal(504, f"there was no answer within {limits.timeout:g} s, the limit.") from error
        self._metrics.seconds.labels(f"/{name}").observe(time.perf_counter() - started)
        return self._respond(name, records)

    def _respond(self, name: str, records: list[dict[str, Any]]) -> Response:
        """The response with the records of all images.

        Raises:
            Refusal: No image has an answer.
        """
        encoded = [encode(record) for record in records]
        answered = sum(has_answer for _, has_answer in encoded)
        self._metrics.images.labels(f"/{name}", "answered").inc(answered)
        self._metrics.images.labels(f"/{name}", "broken").inc(len(records) - answered)
        texts = ", ".join(text for text, _ in encoded)
        if answered:
            return Response(f'{{"images": [{texts}]}}', media_type="application/json")
        broken = json.loads(f"[{texts}]")
        sentence = f"{broken[0]['image'][:60]!r} cannot be used: {broken[0]['error']}."
        if len(broken) > 1:
            sentence = f"none of the {len(broken)} images can be used; {sentence}"
        raise Refusal(422, sentence, fields={"images": broken})

    async def _read(self, request: Request, deadline: float) -> bytes:
        """The body of a request.

        Raises:
            Refusal: It is too large, or does not arrive in time.
        """
        most, body = self._settings.max_body, bytearray()
        try:
            async with asyncio.timeout_at(deadline):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        raise too_large(most)
        except TimeoutError as error:
            sentence = f"the body did not arrive within {self._settings.body_timeout:g} s, the limit."
            raise Refusal(408, sentence) from error
        return bytes(body)

    async def _answer_all(self, call: Call, images: list[SentImage]) -> list[dict[str, Any]]:
        """The records of all images of a request."""
        tasks = [asyncio.create_task(self._answer_one(call, image)) for image in images]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _answer_one(self, call: Call, image: SentImage) -> dict[str, Any]:
        """The record of an image: the answer, or the reason why there is none."""
        known = time.monotonic()
        try:
            prepared = await self._readers.prepare(partial(_prepare, call.endpoint), image.data)
        except BrokenImageError as error:
            return {"image": image.name, "error": str(error)}
        except MemoryError as error:
            raise _too_little_memory() from error
        try:
            return {"image": image.name, **await self._batcher.compute(call, prepared, known)}
        except (TooLittleMemoryError, MemoryError) as error:
            raise _too_little_memory() from error
        finally:
            self._readers.release(prepared)


def _prepare(endpoint: Endpoint, data: bytes) -> np.ndarray:
    """What an endpoint prepares of a file."""
    try:
        return endpoint.prepare(data)
    except (BrokenImageError, MemoryError):
        raise
    except Exception as error:
        # An error that no damaged file raised so far; the file is refused like any other, and the log has the
        # traceback.
        _log.exception("a file raised an unusual error while it was read")
        raise BrokenImageError(f"damaged: {type(error).__name__}") from error


def _too_little_memory() -> Refusal:
    return Refusal(503, "there is too little memory for an image of the request; make it smaller.")


def _refuse_unknown(request: Request, name: str, parameters: dict[str, Any]) -> None:
    """Refuses parameters that an endpoint does not have, such as misspelt ones."""
    unknown = sorted(set(request.query_params) - set(parameters))
    if unknown:
        known = f"has {', '.join(parameters)}" if parameters else "has no parameters"
        raise Refusal(422, f"unknown parameter {unknown[0][:40]!r}: /{name} {known}.")


async def _while_connected(request: Request, work: Coroutine[Any, Any, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What `work` returns; it is cancelled when the client closes its connection.

    Raises:
        ClientDisconnect: The client did.
    """
    answer, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        answer.cancel()
        gone.cancel()


def _example() -> bytes:
    """A small file to try an endpoint with."""
    file = io.BytesIO()
    Image.linear_gradient("L").save(file, "PNG")
    return file.getvalue()


def encode(record: dict[str, Any]) -> tuple[str, bool]:
    """A record as JSON, and whether it has an answer. Numbers that JSON does not have are an error.

    Example:

        >>> encode({"image": "a", "features": [0.5]})
        ('{"image": "a", "features": [0.5]}', True)
        >>> encode({"image": "a", "features": [float("nan")]})
        ('{"image": "a", "error": "the model answered with NaN or infinite numbers"}', False)
    """
    try:
        return json.dumps(record, allow_nan=False), "error" not in record
    except ValueError:
        return json.dumps({"image": record["image"], "error": "the model answered with NaN or infinite numbers"}), False


EXAMPLES: dict[str, dict[str, Any]] = {
    "classify": {"top_k": 3},
    "features": {},
    "segment": {"rle": False},
    "detect": {"threshold": 0.5},
}
"""The default parameters of each endpoint."""
