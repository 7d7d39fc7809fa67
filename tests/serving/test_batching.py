"""Batches, the bounded queue, and images for whose answers nobody waits any longer."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from swinv2.serving.batching import Batcher, Call, QueueFullError
from swinv2.serving.endpoints import Endpoint


class Model:
    """Answers with the first value of an image; a negative one breaks it. It waits until it may go on."""

    def __init__(self, batch_size: int = 4) -> None:
        self.batches: list[list[int]] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.endpoint = Endpoint("classify", batch_size, lambda data: np.zeros(1), self.answer)

    def answer(self, images: Sequence[np.ndarray], **parameters: Any) -> list[dict[str, Any]]:
        self.may_go_on.wait(20)
        values = [int(image[0]) for image in images]
        self.batches.append(values)
        if min(values) < 0:
            raise RuntimeError("broken")
        return [{"value": value, **parameters} for value in values]

    def call(self, **parameters: Any) -> Call:
        return Call(self.endpoint, tuple(parameters.items()))


@asynccontextmanager
async def batching(
    most_images: int = 100, most_bytes: int = 1000, batch_wait: float = 0.0, seconds: float = 60.0, **callbacks: Any
) -> AsyncIterator[Batcher]:
    usual: dict[str, Callable[..., None]] = {
        "on_batch": lambda *_: None, "on_queue": lambda _: None, "begin_thread": lambda: None,
    }  # fmt: skip
    batcher = Batcher(most_images, most_bytes, batch_wait, seconds, **{**usual, **callbacks})
    task = asyncio.create_task(batcher.run())
    try:
        yield batcher
    finally:
        task.cancel()
        batcher.close()


def image(value: int) -> np.ndarray:
    return np.array([value])


async def busy(batcher: Batcher, model: Model) -> "asyncio.Task[dict[str, Any]]":
    """Lets the model begin with an image and wait."""
    model.may_go_on.clear()
    first = asyncio.create_task(batcher.compute(model.call(), image(0)))
    await asyncio.sleep(0.05)
    return first


def test_images_that_arrive_while_the_model_computes_share_a_batch() -> None:
    model = Model()

    async def run() -> None:
        async with batching() as batcher:
            first = await busy(batcher, model)
            others = [asyncio.create_task(batcher.compute(model.call(), image(index))) for index in range(1, 7)]
            await asyncio.sleep(0.02)
            model.may_go_on.set()
            answers = await asyncio.gather(first, *others)
        assert [answer["value"] for answer in answers] == list(range(7))

    asyncio.run(run())
    assert model.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_an_idle_model_waits_a_moment_for_others() -> None:
    model = Model()

    async def run() -> None:
        async with batching(batch_wait=0.2) as batcher:
            first = asyncio.create_task(batcher.compute(model.call(), image(1)))
            await asyncio.sleep(0.05)
            await asyncio.gather(first, batcher.compute(model.call(), image(2)))
            begun = time.monotonic()
            await asyncio.gather(*(batcher.compute(model.call(), image(value)) for value in range(4)))
            # A full batch does not wait.
            assert time.monotonic() - begun < 0.15

    asyncio.run(run())
    assert model.batches == [[1, 2], [0, 1, 2, 3]]


def test_only_equal_calls_share_a_batch() -> None:
    model, other = Model(), Model()

    async def run() -> None:
        async with batching() as batcher:
            first = await busy(batcher, model)
            calls = [model.call(top_k=1), model.call(top_k=2), other.call(top_k=1), model.call(top_k=1)]
            tasks = [asyncio.create_task(batcher.compute(call, image(i))) for i, call in enumerate(calls)]
            await asyncio.sleep(0.02)
            model.may_go_on.set()
            await first
            assert [(await task)["top_k"] for task in tasks] == [1, 2, 1, 1]

    asyncio.run(run())
    assert (model.batches, other.batches) == ([[0], [0, 3], [1]], [[2]])


def test_an_image_that_breaks_the_model_breaks_no_other() -> None:
    model = Model()

    async def run() -> None:
        async with batching() as batcher:
            first = await busy(batcher, model)
            tasks = [asyncio.create_task(batcher.compute(model.call(), image(value))) for value in (1, -2, 3)]
            await asyncio.sleep(0.02)
            model.may_go_on.set()
            answers = await asyncio.gather(first, *tasks, return_exceptions=True)
            assert isinstance(answers[2], RuntimeError)
            assert [answers[index] for index in (1, 3)] == [{"value": 1}, {"value": 3}]
            # And it goes on.
            assert (await batcher.compute(model.call(), image(5)))["value"] == 5

    asyncio.run(run())
    assert model.batches == [[0], [1, -2, 3], [1], [-2], [3], [5]]


def test_a_model_that_gives_too_few_answers_stops_nothing() -> None:
    model = Model()
    short = Endpoint("classify", 4, model.endpoint.prepare, lambda images: model.answer(images)[1:])

    async def run() -> None:
        async with batching() as batcher:
            with pytest.raises(RuntimeError, match="the model gave 0 answers for 1 images"):
                await batcher.compute(Call(short, ()), image(1))
            assert await batcher.compute(model.call(), image(2)) == {"value": 2}

    asyncio.run(run())


def test_what_nobody_waits_for_is_not_computed() -> None:
    model = Model()

    async def run() -> None:
        async with batching() as batcher:
            first = await busy(batcher, model)
            late = asyncio.create_task(batcher.compute(model.call(), image(1)))
            kept = asyncio.create_task(batcher.compute(model.call(), image(2)))
            await asyncio.sleep(0.02)
            late.cancel()
            model.may_go_on.set()
            assert (await kept)["value"] == 2
            await first

    asyncio.run(run())
    assert model.batches == [[0], [2]]


def test_an_answer_that_comes_too_late_is_thrown_away() -> None:
    """The request ends while its image is computed; the next one is answered."""
    model = Model()

    async def run() -> None:
        async with batching() as batcher:
            first = await busy(batcher, model)
            first.cancel()
            model.may_go_on.set()
            assert (await batcher.compute(model.call(), image(7)))["value"] == 7

    asyncio.run(run())
    assert model.batches == [[0], [7]]


def test_places_are_counted_and_given_back() -> None:
    seen: list[int] = []

    async def run() -> None:
        async with batching(most_images=3, most_bytes=100, on_queue=seen.append) as batcher:
            with batcher.enter(60) as visit:
                visit.grow(1)
                with pytest.raises(QueueFullError):
                    visit.grow(2)
                with pytest.raises(QueueFullError), batcher.enter(50):
                    pass
                with batcher.enter(40), pytest.raises(QueueFullError), batcher.enter(0):
                    pass
            with batcher.enter(100):
                pass

    asyncio.run(run())
    assert seen == [1, 2, 3, 2, 0, 1, 0]


def test_places_that_would_be_reached_too_late_are_not_given() -> None:
    async def run() -> None:
        # Of ten seconds, seven may be spent in the queue.
        async with batching(seconds=10.0) as batcher:
            batcher._seconds_of_images.extend([3.0, 3.0, 100.0])
            with batcher.enter(0), batcher.enter(0), pytest.raises(QueueFullError) as refused, batcher.enter(0):
                pass
            assert refused.value.seconds == 6.0
            # If one image takes longer than the time, one is tried all the same.
            batcher.forget_times()
            batcher._seconds_of_images.append(9.0)
            with batcher.enter(0), pytest.raises(QueueFullError), batcher.enter(0):
                pass

    asyncio.run(run())


def test_the_time_of_an_image_has_what_it_waits_for_besides_the_model() -> None:
    """If files are read more slowly than the model computes, the reading counts; a pause without images does not."""
    model = Model()

    async def run() -> None:
        async with batching() as batcher:
            for pause, known, expected in ((0.0, 0.0, 0.0), (0.3, 0.3, 0.3), (0.3, 0.1, 0.1), (0.1, 0.4, 0.1)):
                await asyncio.sleep(pause)
                batcher.forget_times()
                await batcher.compute(model.call(), image(1), time.monotonic() - known)
                assert expected <= batcher.seconds_per_image < expected + 0.1

    asyncio.run(run())


def test_the_time_of_an_image_and_the_batches_are_measured() -> None:
    model, batches = Model(), list[tuple[str, int]]()

    async def run() -> None:
        async with batching(on_batch=lambda name, images: batches.append((name, images))) as batcher:
            assert batcher.seconds_per_image == 0
            first = await busy(batcher, model)
            model.may_go_on.set()
            await first
            assert 0.03 < batcher.seconds_per_image < 5

    asyncio.run(run())
    assert batches == [("classify", 1)]
