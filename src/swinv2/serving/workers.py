"""Several processes that serve the same address, each with a model and a queue.

In: settings, a socket, and a function that loads the model. Out: the exit status, when all processes have stopped. A
process accepts requests when its model is ready. If one cannot start at the beginning, all stop; later, one that dies
is replaced.
"""

import asyncio
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from swinv2.errors import UsageError
from swinv2.serving.endpoints import Served
from swinv2.serving.metrics import FOLDER
from swinv2.serving.server import DrainingServer, Load, serve
from swinv2.serving.settings import ServiceSettings

_SECONDS_TO_STOP = 15.0
"""Time, beyond that of a request, after which a process that should stop is killed."""

_SECONDS_BEFORE_ANOTHER = 1.0
"""Between the end of a process and the beginning of the one that replaces it."""

_PATIENCE = 0.2

_CANNOT_START = 2


class _Worker:
    """A process that serves, as the one that started it sees it."""

    def __init__(self, settings: ServiceSettings, bound: socket.socket, load: Load) -> None:
        # Not a fork: threads of torch do not survive one.
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_work, args=(settings, bound, load, other), name="swinv2-serve")
        self.process.start()
        other.close()
        self.is_ready, self.error = False, ""

    def news(self) -> tuple[str, list[str], float] | None:
        """What the process said since the last call: that it listens (the model, its endpoints, and the seconds that an
        image takes); None if it said nothing."""
        try:
            kind, said = self.connection.recv() if self.connection.poll() else ("", None)
        except (EOFError, OSError):
            # It has ended.
            return None
        if kind == "error":
            self.error = said
        self.is_ready = self.is_ready or kind == "listening"
        return said if kind == "listening" else None


def serve_with_workers(
    settings: ServiceSettings,
    bound: socket.socket,
    load: Load,
    on_listening: Callable[[str, list[str], float], None],
    say: Callable[[str], None],
) -> int:
    """Runs several processes until this one is told to stop.

    Args:
        settings: The settings.
        bound: A socket at the address of the service.
        load: Loads the model; a function of a module, which the processes import.
        on_listening: Called when the first process accepts requests, with the model, the names of its endpoints, and
            the seconds that an image takes.
        say: Called with a message for the user.

    Returns:
        The exit status: 0 if all processes have answered what they had accepted.

    Raises:
        UsageError: The model cannot be used.
    """
    told = list[int]()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: told.append(received))
    with tempfile.TemporaryDirectory(prefix="swinv2-metrics-") as folder:
        os.environ[FOLDER] = folder
        from prometheus_client.multiprocess import mark_process_dead

        workers = [_Worker(settings, bound, load) for _ in range(settings.workers)]
        try:
            was_complete = False
            while not told:
                wait([each.connection for each in workers] + [each.process.sentinel for each in workers], _PATIENCE)
                for index, worker in enumerate(workers):
                    news, process = worker.news(), worker.process
                    if news is not None:
                        ready = sum(each.is_ready for each in workers)
                        if ready == 1:
                            on_listening(*news)
                        say(f"process {process.pid} is ready ({ready} of {len(workers)})")
                        was_complete = was_complete or ready == len(workers)
                    if process.is_alive() or told:
                        continue
                    # What it said last.
                    worker.news()
                    if not was_complete:
                        raise UsageError(worker.error or f"a process ended with {process.exitcode} at its start.")
                    say(f"process {process.pid} ended with {process.exitcode}; another one replaces it")
                    mark_process_dead(process.pid)
                    time.sleep(_SECONDS_BEFORE_ANOTHER)
                    workers[index] = _Worker(settings, bound, load)
        finally:
            _stop(workers, settings.timeout + _SECONDS_TO_STOP)
    return int(any(worker.process.exitcode for worker in workers if worker.is_ready))


def _stop(workers: list[_Worker], seconds: float) -> None:
    """Tells processes to stop, waits until they have, and kills those that have not in time."""
    deadline = time.monotonic() + seconds
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join(max(deadline - time.monotonic(), 0))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _work(settings: ServiceSettings, bound: socket.socket, load: Load, connection: Connection) -> None:
    """Runs in a process of its own: serves until it is told to stop, or the process that started it is gone."""
    # A terminal sends it to all processes; the first one tells the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def say_listening(served: Served, seconds: float) -> None:
        connection.send(("listening", (served.about, list(served.endpoints), seconds)))

    def watch_parent(server: DrainingServer) -> None:
        loop = asyncio.get_running_loop()

        def end() -> None:
            loop.remove_reader(connection.fileno())
            server.drain()

        loop.add_reader(connection.fileno(), end)

    try:
        serve(settings, bound, load, say_listening, watch_parent)
    except UsageError as error:
        _tell(connection, str(error))
        sys.exit(_CANNOT_START)


def _tell(connection: Connection, error: str) -> None:
    """Tells the process that started this one why it ends."""
    message: Any = ("error", error)
    connection.send(message)
