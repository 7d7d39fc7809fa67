"""What a model can be asked for, as the service sees it.

In: nothing. Out: `Endpoint`, `Served`. This module imports no model; `models` makes these of one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DOES = {
    "classify": "finds labels",
    "features": "computes features",
    "segment": "finds the classes of pixels",
    "detect": "finds objects",
}
"""Every endpoint, and what a model that has it does."""


class TooLittleMemoryError(Exception):
    """The device has too little memory for an image."""


@dataclass(frozen=True, eq=False)
class Endpoint:
    """A way to ask a model about images.

    Attributes:
        name: One of `DOES`; its path without the slash.
        batch_size: Largest number of images that are computed at once.
        prepare: Reads a file, of which the bytes are given, as far as the model needs it. It may run in several threads
            at once. Raises `BrokenImageError` for a file that cannot be read or is beyond the limits.
        answer: The answers for prepared images, as plain values for JSON. The parameters of a request are keyword
            arguments. It runs in one thread. Raises `TooLittleMemoryError`.
    """

    name: str
    batch_size: int
    prepare: Callable[[bytes], np.ndarray]
    answer: Callable[..., Sequence[dict[str, Any]]]


@dataclass(frozen=True)
class Served:
    """A model that is served.

    Attributes:
        about: What it is, in a few words: "a classifier of 200 labels".
        endpoints: Its endpoints by name.
        set_threads: Sets the number of threads that computations of the calling thread use.
        threads: The number that the process uses if nothing else is said.
    """

    about: str
    endpoints: Mapping[str, Endpoint]
    set_threads: Callable[[int], None]
    threads: int
