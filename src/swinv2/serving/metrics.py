"""Metrics in the format of Prometheus.

In: what happened. Out: a text. With several processes, each writes its numbers to files in the folder
PROMETHEUS_MULTIPROC_DIR, and any of them adds up all. This module knows no HTTP and no model.
"""

import os

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable with the folder; it must be set before prometheus_client is imported."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of a service."""

    def __init__(self) -> None:
        # Otherwise each counter has a second row with the time of its first event.
        disable_created_metrics()
        self._registry = CollectorRegistry()
        # With several processes, a scrape reads the files of all.
        several = FOLDER in os.environ
        own = None if several else self._registry
        if several:
            MultiProcessCollector(self._registry)
        else:
            ProcessCollector(registry=self._registry)
        self.requests = Counter("swinv2_requests", "Requests.", ["endpoint", "status"], registry=own)
        self.seconds = Histogram(
            "swinv2_request_seconds",
            "Time of answered requests, from their headers to the answer.",
            ["endpoint"],
            registry=own,
            buckets=_SECONDS,
        )
        self.images = Counter("swinv2_images", "Images, by what became of them.", ["endpoint", "result"], registry=own)
        self.batches = Histogram(
            "swinv2_batch_images", "Images of a batch.", ["endpoint"], registry=own, buckets=_SIZES
        )
        self.queue = Gauge(
            "swinv2_queue_images",
            "Places of the queue that are taken, with those of the batch that is computed.",
            registry=own,
            multiprocess_mode="livesum",
        )

    def as_text(self) -> bytes:
        """All numbers."""
        return generate_latest(self._registry)
