"""Sends a service twice the load that it can carry, and checks that it stays well.

    python benchmarks/service.py
    python benchmarks/service.py --model my-model --seconds 30 --json

It starts `swinv2 serve` on the loopback interface, measures how many images a second it answers when clients wait for
their answers, and then sends twice as many, without waiting. Checked: the process lives, and ends with status 0 when it
is told to; every request is answered (200) or refused because the queue is full (429); 99% of the accepted requests are
answered within the time limit; every answer is that of the model without the service; and the memory does not grow. The
exit status is 1 if a check failed. The clients run on the same machine, so the rates are those of both.
"""

import asyncio
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from swinv2.images import read_image
from swinv2.predict.predictor import Classifier
from swinv2.predict.shipped import shipped_model, shipped_photographs

MOST_REQUESTS = 20_000
MOST_AT_ONCE = 500
MOST_SECONDS = 120.0
GROWTH = 1.1
"""How much the memory may grow while the service has too much to do."""

TOLERANCE = 1e-5
"""Of probabilities: their last digits depend on the other images of a batch."""

Labels = list[tuple[str, float]]


@dataclass
class Phase:
    """What came back to the requests of a phase.

    Attributes:
        statuses: Number of responses by status; 0: none.
        seconds: Time of each answered request.
        wrong: Answers that are not those of the model.
        duration: Seconds from the first request to the last response.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    wrong: int = 0
    duration: float = 0.0

    def share_in_time(self, limit: float) -> float:
        """Share of the accepted requests that were answered within a number of seconds."""
        accepted = sum(count for status, count in self.statuses.items() if status != 429)
        return sum(each <= limit for each in self.seconds) / max(accepted, 1)

    def quantile(self, share: float) -> float:
        """A quantile of the times."""
        ordered = sorted(self.seconds)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def main(
    model: Annotated[str, typer.Option(help="A classifier.", show_default="the shipped one")] = "",
    seconds: Annotated[float, typer.Option(min=1.0, max=MOST_SECONDS, help="Length of each of the two phases.")] = 10.0,
    times: Annotated[
        float, typer.Option(min=1.0, max=10.0, help="The load, as a multiple of what it can carry.")
    ] = 2.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="The service's time limit for a request, in seconds.")] = 5.0,
    queue: Annotated[int, typer.Option(min=32, help="The service's queue.")] = 64,
    workers: Annotated[int, typer.Option(min=1, help="The service's processes.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measures, checks and prints."""
    model = model or str(shipped_model())
    files = [photograph.path.read_bytes() for photograph in shipped_photographs()]
    expected = _without_service(model, files)
    options = ["--timeout", str(timeout), "--queue", str(queue), "--workers", str(workers), "--max-images", "1"]
    with _running(model, options) as (process, port):
        memory = Memory(process.pid)
        load = Load(port, files, expected)
        carried = asyncio.run(load.wait_for_answers(min(32, queue), seconds))
        rate = carried.statuses[200] / carried.duration
        before = memory.now()
        heavy = asyncio.run(load.send(times * rate, seconds, memory))
        batch = _mean_batch(port)
        lives = process.poll() is None
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
    found: dict[str, Any] = {
        "carried_per_second": round(rate, 1),
        "sent_per_second": round(sum(heavy.statuses.values()) / heavy.duration, 1),
        "answered_per_second": round(heavy.statuses[200] / heavy.duration, 1),
        "responses": {str(name): count for name, count in sorted(heavy.statuses.items())},
        "share_in_time": round(heavy.share_in_time(timeout), 5),
        "median_seconds": round(statistics.median(heavy.seconds or [0.0]), 3),
        "seconds_of_99_percent": round(heavy.quantile(0.99), 3),
        "mean_batch": round(batch, 1),
        "wrong_answers": carried.wrong + heavy.wrong,
        "memory_mib": {"before": round(before, 1), "highest": round(memory.highest, 1)},
        "exit_status": status,
    }
    checks = {
        "the process lives": lives,
        "answered or refused": set(heavy.statuses) | set(carried.statuses) <= {200, 429},
        "99% of the accepted requests in time": heavy.share_in_time(timeout) >= 0.99,
        "all answers right": not found["wrong_answers"] and bool(heavy.seconds),
        "memory does not grow": memory.highest <= GROWTH * before,
        "ends in order": status == 0,
    }
    _print({**found, "checks": checks}, as_json)
    raise typer.Exit(not all(checks.values()))


def _without_service(model: str, files: list[bytes]) -> list[Labels]:
    """The labels of each file."""
    classifier = Classifier.load(model)
    prepared = (classifier.prepare(read_image(file)) for file in files)
    return [[(each.label, each.probability) for each in classifier.label([image], 3)[0]] for image in prepared]


@contextmanager
def _running(model: str, options: list[str]) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """A service, and its port."""
    command = [sys.executable, "-m", "swinv2", "serve", "--model", model, "--port", "0", *options]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stderr=log, stdout=subprocess.DEVNULL, text=True)
        try:
            deadline, found = time.monotonic() + 300, None
            while found is None:
                log.seek(0)
                text = log.read()
                found = re.search(r"listening on http://[^ ]*:(\d+):", text.replace("\n", " "))
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the service did not start: {text}")
                time.sleep(0.1)
            yield process, int(found[1])
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _mean_batch(port: int) -> float:
    """Images of a batch, in the mean over both phases."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
        text = response.read().decode()
    sums = re.findall(r'swinv2_batch_images_sum\{endpoint="/classify"\} (\S+)', text)
    counts = re.findall(r'swinv2_batch_images_count\{endpoint="/classify"\} (\S+)', text)
    return float(sums[0]) / float(counts[0])


class Memory:
    """The memory of a process and of those that it started, in MiB.

    Attributes:
        highest: The most that `now` saw.
    """

    def __init__(self, process: int) -> None:
        self._process, self.highest = process, 0.0

    def now(self) -> float:
        """The memory that is resident now."""
        children = Path(f"/proc/{self._process}/task/{self._process}/children").read_text().split()
        texts = [Path(f"/proc/{process}/status").read_text() for process in (self._process, *children)]
        found = sum(int(match[1]) for text in texts if (match := re.search(r"VmRSS:\s+(\d+)", text))) / 1024
        self.highest = max(self.highest, found)
        return found


class Load:
    """Clients of a service. They speak HTTP themselves: libraries take longer for a request than the service does.

    Args:
        port: Its port.
        files: Images.
        expected: The labels of each image.
    """

    def __init__(self, port: int, files: list[bytes], expected: list[Labels]) -> None:
        self._port, self._expected = port, expected
        head = "POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: "
        self._requests = [f"{head}{len(file)}\r\n\r\n".encode() + file for file in files]
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._next = 0

    async def wait_for_answers(self, clients: int, seconds: float) -> Phase:
        """Sends requests from some clients, each of which waits for its answer before it sends the next one."""
        phase, begun = Phase(), time.monotonic()

        async def ask() -> None:
            while time.monotonic() < begun + seconds and sum(phase.statuses.values()) < MOST_REQUESTS:
                if await self._ask(phase) != 200:
                    await asyncio.sleep(0.05)

        await asyncio.gather(*(ask() for _ in range(clients)))
        phase.duration = time.monotonic() - begun
        self._close()
        return phase

    async def send(self, rate: float, seconds: float, memory: Memory) -> Phase:
        """Sends a number of requests a second, without waiting for answers."""
        phase, running = Phase(), set[asyncio.Task[int]]()
        begun, count = time.monotonic(), min(int(rate * seconds), MOST_REQUESTS)
        for number in range(count):
            await asyncio.sleep(begun + number / rate - time.monotonic())
            while len(running) >= MOST_AT_ONCE:
                await asyncio.sleep(0.01)
            task = asyncio.create_task(self._ask(phase))
            running.add(task)
            task.add_done_callback(running.discard)
            if number % 50 == 0:
                memory.now()
        await asyncio.gather(*running)
        phase.duration = time.monotonic() - begun
        memory.now()
        self._close()
        return phase

    async def _ask(self, phase: Phase) -> int:
        """Sends a request, notes what came back, and returns its status."""
        index = self._next % len(self._requests)
        self._next += 1
        begun = time.monotonic()
        try:
            status, body = await self._exchange(self._requests[index])
        except (OSError, asyncio.IncompleteReadError):
            status, body = 0, b""
        phase.statuses[status] += 1
        if status == 200:
            phase.seconds.append(time.monotonic() - begun)
            phase.wrong += not _is_right(json.loads(body), self._expected[index])
        return status

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        """The status and the body of the response to a request."""
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = re.search(rb"content-length: (\d+)", head)
            body = await reader.readexactly(int(length[1]) if length else 0)
        except BaseException:
            writer.close()
            raise
        if b"connection: close" in head:
            writer.close()
        else:
            self._idle.append((reader, writer))
        return int(head.split()[1]), body

    def _close(self) -> None:
        """Closes all connections; those of the next phase belong to another event loop."""
        while self._idle:
            self._idle.pop()[1].close()


def _is_right(contents: Any, expected: Labels) -> bool:
    """Whether an answer has the labels that the model gives without the service."""
    found = [(each["label"], each["probability"]) for each in contents["images"][0]["predictions"]]
    labels = [label for label, _ in found] == [label for label, _ in expected]
    pairs = zip(found, expected, strict=True)
    return labels and all(abs(one[1] - other[1]) <= TOLERANCE for one, other in pairs)


def _print(found: dict[str, Any], as_json: bool) -> None:
    """Prints what was found."""
    if as_json:
        print(json.dumps(found, indent=2))
        return
    table = Table("measure", "value", box=None)
    for name, value in found.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        for part, each in parts:
            text = {True: "yes", False: "NO"}.get(each, str(each)) if isinstance(each, bool) else str(each)
            table.add_row(f"{name.replace('_', ' ')} {part}".strip(), text)
    Console(width=100).print(table)


if __name__ == "__main__":
    typer.run(main)
