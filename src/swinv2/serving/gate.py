"""Who may enter: checks that come before anything of a request but its headers is read, for all endpoints.

In: a request of ASGI. Out: the response of the application, or a refusal. This module knows no image.
"""

import asyncio
import hmac
import json
import time
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from swinv2.serving.metrics import Metrics
from swinv2.serving.refusals import Refusal
from swinv2.serving.settings import ServiceSettings, is_loopback

PROBES, METRICS = ("/healthz", "/readyz"), "/metrics"
OPEN = (*PROBES, "/docs", "/openapi.json")
"""Paths that need no key: they tell nothing about the model or the requests."""

MOST_HEADER_BYTES, MOST_ADDRESS_BYTES = 32 * 1024, 8 * 1024

LINGER_SECONDS = 2.0
"""After a refusal, the rest of a body is read and thrown away so long. If the connection were closed at once, many
clients would report a broken connection instead of the answer."""


class Gate:
    """Stands in front of an application, and counts its requests.

    Args:
        app: The application.
        settings: The settings.
        metrics: The counters.
        paths: The paths that are counted by name; all others are counted together.

    Attributes:
        is_draining: Whether the process is about to stop: it answers what it has accepted, and nothing else.
        active: Number of requests that are being answered.
    """

    def __init__(self, app: ASGIApp, settings: ServiceSettings, metrics: Metrics, paths: Collection[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, frozenset(paths)
        self._key = None if settings.api_key is None else settings.api_key.encode()
        self.is_draining, self.active = False, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        exchange = _Exchange(scope, receive, send)
        self.active += 1
        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self._app(scope, exchange.receive, exchange.send)
            else:
                await exchange.refuse(refusal)
        finally:
            self.active -= 1
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, str(exchange.status)).inc()

    def _refusal(self, scope: Scope) -> Refusal | None:
        """Why a request is refused; None if it is not."""
        headers, path = Headers(scope=scope), scope["path"]
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEADER_BYTES:
            return Refusal(431, f"the headers have more than {MOST_HEADER_BYTES:,} bytes, the limit.")
        if len(scope["raw_path"]) + len(scope["query_string"]) > MOST_ADDRESS_BYTES:
            return Refusal(414, f"the address has more than {MOST_ADDRESS_BYTES:,} bytes, the limit.")
        if self._key is None and not _names_this_machine(headers.get("host")):
            return Refusal(
                421,
                "the service answers requests for this machine only (Host: localhost or 127.0.0.1): so no page in a "
                "browser reaches it by another name. For other names, start it with --api-key.",
            )
        if path not in OPEN and self._key is not None and not self._has_key(headers.get("authorization")):
            return Refusal(
                401, "the request has no valid key; send the header Authorization: Bearer KEY.",
                {"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        if path not in (*PROBES, METRICS) and self.is_draining:
            return Refusal(503, "the service is about to stop.", {"Retry-After": "1", "Connection": "close"})
        return None

    def _has_key(self, header: str | None) -> bool:
        """Whether a request has the key; the time of the comparison does not depend on it."""
        scheme, _, key = (header or "").partition(" ")
        return hmac.compare_digest(key.strip().encode("latin-1"), self._key or b"") and scheme.lower() == "bearer"


def _names_this_machine(host: str | None) -> bool:
    """Whether the header Host, with or without a port, is a loopback address. Without one, no browser sent it."""
    if host is None:
        return True
    name, separator, port = host.rpartition(":")
    return is_loopback(name if separator and port.isdigit() else host)


class _Exchange:
    """A request and its response, as they pass the gate.

    Args:
        scope, receive, send: See ASGI.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send, self.status = receive, send, 499
        headers = Headers(scope=scope)
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        self._is_unread = has_body
        # Such a client sends its body when it is asked for it.
        self._waits_to_send = "expect" in headers

    async def receive(self) -> Message:
        """The next message of the client."""
        self._waits_to_send = False
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._is_unread = False
        return message

    async def send(self, message: Message) -> None:
        """Sends a message to the client. If the client still sends its body when the response ends, the connection is
        closed behind it, after a moment."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", []))
            if self._is_unread and (b"connection", b"close") not in headers:
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
        elif self._is_unread and not self._waits_to_send and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._throw_away()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Sends a refusal."""
        body = json.dumps(refusal.contents).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **refusal.headers}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})

    async def _throw_away(self) -> None:
        """Reads the rest of the body, for some seconds."""
        begun = time.monotonic()
        while self._is_unread and (left := begun + LINGER_SECONDS - time.monotonic()) > 0:
            try:
                await asyncio.wait_for(self.receive(), left)
            except TimeoutError:
                return
