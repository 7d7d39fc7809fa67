"""A service without a process: its application, and a client, in one event loop."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx

from swinv2.serving.app import build_app
from swinv2.serving.endpoints import Served
from swinv2.serving.gate import Gate
from swinv2.serving.metrics import Metrics
from swinv2.serving.service import Service
from swinv2.serving.settings import ServiceSettings


@contextlib.asynccontextmanager
async def inside(served: Served, **settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Gate, Metrics]]:
    """A client of a service, its gate and its metrics."""
    fields = ServiceSettings("a model", **settings)
    metrics = Metrics()
    service = Service(served, fields, metrics)
    await service.start()
    gate = build_app(service, fields, metrics)
    transport = httpx.ASGITransport(gate)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            yield client, gate, metrics
    finally:
        service.stop()
