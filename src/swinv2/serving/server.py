"""Speaks HTTP by uvicorn, with time limits for slow clients, and stops without losing a request.

In: settings, a listening socket, and a function that loads the model. Out: nothing; it runs until SIGTERM or SIGINT.
This module knows no image.
"""

import asyncio
import json
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from swinv2.errors import UsageError
from swinv2.serving.app import build_app
from swinv2.serving.endpoints import Served
from swinv2.serving.gate import MOST_HEADER_BYTES, Gate
from swinv2.serving.metrics import Metrics
from swinv2.serving.service import Service
from swinv2.serving.settings import ServiceSettings

Load = Callable[[ServiceSettings], Served]

HEADER_SECONDS = 10.0
"""Time for the headers of a request, from its first byte, or from the beginning of the connection."""

SENDING_SECONDS = 30.0
"""Time in which a client must take a response."""

_KEEP_ALIVE_SECONDS = 75
"""Longer than those of usual reverse proxies, which otherwise use connections that are just being closed."""

_MOST_CONNECTIONS = 500

_SECONDS_AFTER_ALL = 5
"""Time, beyond that of the requests, in which a process stops."""


class TimedProtocol(H11Protocol):
    """A connection with time limits for headers and for taking the response, which uvicorn does not have."""

    def connection_made(self, transport: Any) -> None:
        """Called when a client has connected."""
        super().connection_made(transport)
        self._header_timer: asyncio.TimerHandle | None = None
        self._sending_timer: asyncio.TimerHandle | None = None
        if len(self.connections) > _MOST_CONNECTIONS:
            transport.abort()
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called when the connection is closed."""
        self._end_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Called with what the client sent."""
        if self.conn.their_state is h11.IDLE:
            self._expect_headers()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE and self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def on_response_complete(self) -> None:
        """Called when the whole response was given to the system."""
        super().on_response_complete()
        if self._sending_timer is not None:
            self._sending_timer.cancel()
        self._sending_timer = self.loop.call_later(SENDING_SECONDS, self._abort_if_unsent)

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP, in the middle of the exception that says why."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            # A response has begun.
            self.transport.close()
            return
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        body = json.dumps({"error": f"this is no valid request of HTTP: {str(error)[:200]}."}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _expect_headers(self) -> None:
        """Closes the connection if no headers are there in time."""
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _abort_if_unsent(self) -> None:
        """Closes the connection if the client has not taken the response."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _end_timers(self) -> None:
        for timer in (self._header_timer, self._sending_timer):
            if timer is not None:
                timer.cancel()
        self._header_timer = self._sending_timer = None


class DrainingServer(uvicorn.Server):
    """A server that, told to stop, first answers what it has accepted.

    Args:
        config: uvicorn's settings.
        gate: The application.
        seconds: Time in which all requests are answered.
        on_listening: Called when it listens.
    """

    def __init__(self, config: uvicorn.Config, gate: Gate, seconds: float, on_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._gate, self._seconds, self._on_listening = gate, seconds, on_listening
        self._draining_since: float | None = None

    def drain(self) -> None:
        """Stops as soon as all accepted requests are answered."""
        if self._draining_since is None:
            self._gate.is_draining, self._draining_since = True, time.monotonic()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles SIGTERM and SIGINT; a second SIGINT stops at once."""
        if self._draining_since is not None and sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
        self.drain()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen."""
        await super().startup(sockets)
        self._on_listening()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; returns whether to stop."""
        since = self._draining_since
        if since is not None and (not self._gate.active or time.monotonic() > since + self._seconds):
            self.should_exit = True
        return await super().on_tick(counter)


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address, which does not listen yet.

    Raises:
        UsageError: The address cannot be used.
    """
    bound = None
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        if bound is not None:
            bound.close()
        raise UsageError(
            f"the service cannot listen on {host} port {port}: {error.strerror or error}; give another --port (0 for "
            "any free one), or another --host."
        ) from error
    return bound


def serve(
    settings: ServiceSettings,
    bound: socket.socket,
    load: Load,
    on_listening: Callable[[Served, float], None],
    on_server: Callable[[DrainingServer], None] = lambda server: None,
) -> None:
    """Loads a model and answers requests until the process is told to stop.

    Args:
        settings: The settings.
        bound: A socket at the address of the service, see `bind`.
        load: Loads the model.
        on_listening: Called when requests are accepted, with the model and the seconds that an image takes.
        on_server: Called with the server before that, in its event loop.

    Raises:
        UsageError: The model cannot be used.
    """
    asyncio.run(_serve(settings, bound, load(settings), on_listening, on_server))


async def _serve(
    settings: ServiceSettings,
    bound: socket.socket,
    served: Served,
    on_listening: Callable[[Served, float], None],
    on_server: Callable[[DrainingServer], None],
) -> None:
    """See `serve`."""
    counters = Metrics()
    service = Service(served, settings, counters)
    try:
        seconds_per_image = await service.start()
        gate = build_app(service, settings, counters)
        config = uvicorn.Config(
            gate,
            http=TimedProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_SECONDS_AFTER_ALL,
            h11_max_incomplete_event_size=MOST_HEADER_BYTES,
        )
        server = DrainingServer(
            config,
            gate,
            settings.timeout + _SECONDS_AFTER_ALL,
            lambda: on_listening(served, seconds_per_image),
        )
        on_server(server)
        await server.serve([bound])
    finally:
        service.stop()
