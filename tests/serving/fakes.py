"""A service without a network, which starts at once: its model sleeps, and answers with the mean of an image.

    python -c "from serving.fakes import main; main()" '{"settings": {...}, "seconds": 0.5}'

`seconds` is the time of a batch; "limits" replaces constants of `swinv2.serving.server`. It prints its address.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from swinv2.errors import UsageError
from swinv2.images import read_image
from swinv2.serving import server
from swinv2.serving.endpoints import Endpoint, Served, TooLittleMemoryError
from swinv2.serving.settings import ServiceSettings
from swinv2.serving.workers import serve_with_workers

BLACK, WHITE, SLOW = 0, 255, 77
"""Grey values: the model breaks, has too little memory, or needs `SLOW_SECONDS`."""

SLOW_SECONDS = 1.5


def fake_served(settings: ServiceSettings, seconds: float = 0.0, batch_size: int = 4) -> Served:
    """A model that needs `seconds` for a batch. For more than 1,000 labels an answer has a million bytes for each
    thousand."""

    def prepare(data: bytes) -> np.ndarray:
        return np.array(read_image(data, limits=settings.image_limits))

    def answer(images: Sequence[np.ndarray], top_k: int = 3) -> list[dict[str, Any]]:
        means = [float(image.mean()) for image in images]
        time.sleep(SLOW_SECONDS if SLOW in means else seconds)
        if BLACK in means:
            raise RuntimeError("a black image")
        if WHITE in means:
            raise TooLittleMemoryError
        facts: dict[str, Any] = {"batch": len(images), "process": os.getpid()}
        facts["thread"] = threading.current_thread().name
        if top_k > 1000:
            facts["filling"] = "x" * 1000 * top_k
        return [{"mean": mean, "top_k": top_k, **facts} for mean in means]

    return Served("a fake", {"classify": Endpoint("classify", batch_size, prepare, answer)}, lambda number: None, 1)


def load_fake(settings: ServiceSettings) -> Served:
    """The model of `main`; its name is the time of a batch, or says how it fails, as a file "dies" does."""
    if settings.model == "impossible":
        raise UsageError("there is no such fake.")
    if settings.model == "dies" or os.path.exists("dies"):
        os._exit(7)
    return fake_served(settings, float(settings.model))


def main() -> None:
    """Serves until it is told to stop."""
    options = json.loads(sys.argv[1])
    for name, value in options["limits"].items():
        setattr(server, name, value)
    settings = ServiceSettings(str(options["seconds"]), port=0, **options["settings"])
    bound = server.bind(settings.host, settings.port)
    address = f"listening on http://{settings.host}:{bound.getsockname()[1]}: POST /classify"

    def say(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    if settings.workers == 1:
        server.serve(settings, bound, load_fake, lambda *_: say(address))
        return
    try:
        sys.exit(serve_with_workers(settings, bound, load_fake, lambda *_: say(address), say))
    except UsageError as error:
        say(f"error: {error}")
        sys.exit(2)
