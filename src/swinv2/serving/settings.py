"""Settings of a service, and their checks.

In: what a user gave. Out: `ServiceSettings`. This module knows no model and no HTTP.
"""

import ipaddress
from dataclasses import dataclass, field

from PIL import Image

from swinv2.errors import UsageError
from swinv2.images import ImageLimits

MEBIBYTE = 2**20

_SHORTEST_KEY = 16
"""Characters of an API key."""

_BODIES_AT_ONCE = 8
"""Bodies of the largest size that a process holds at once; many more if they are small."""


@dataclass(frozen=True)
class ServiceSettings:
    """Settings of a service. Limits are those of one process.

    Attributes:
        model: A folder, or a name on the hub.
        host, port: Where it listens; port 0 for any free port.
        api_key: The key that requests must have; None for none, on the loopback interface alone.
        workers: Number of processes, each with a model and a queue.
        threads: Threads that compute, of each process; None for an equal share of the cores.
        device: See `loading.choose_device`.
        dtype: Name of the type of weights and computation, such as "float32".
        batch_size: Largest number of images in a batch; None: 16 to classify and for features, 4 to detect. Images are
            segmented one by one.
        batch_wait: Seconds that an image waits for others to share a batch with, while the model has nothing to do.
        queue: Images that wait or are computed; requests beyond are refused.
        timeout: Seconds in which a request must be answered.
        body_timeout: Seconds of these in which its body must arrive.
        max_body: Largest body, in bytes.
        max_images: Largest number of images in a request.
        max_pixels: Largest number of pixels of an image.

    Raises:
        UsageError: A setting is impossible, or other machines could reach the service without a key.
    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    workers: int = 1
    threads: int | None = None
    device: str = "auto"
    dtype: str = "float32"
    batch_size: int | None = None
    batch_wait: float = 0.002
    queue: int = 64
    timeout: float = 30.0
    body_timeout: float = 20.0
    max_body: int = 32 * MEBIBYTE
    max_images: int = 32
    max_pixels: int = 50_000_000

    def __post_init__(self) -> None:
        if self.api_key is not None and (
            len(self.api_key) < _SHORTEST_KEY or not self.api_key.isascii() or not self.api_key.isprintable()
        ):
            raise UsageError(
                f"the API key is too short or has unusual characters; expected {_SHORTEST_KEY} or more printable ASCII "
                'characters, such as those of: python -c "import secrets; print(secrets.token_urlsafe())"'
            )
        if self.api_key is None and not is_loopback(self.host):
            raise UsageError(
                f"--host {self.host} lets other machines use the service; give a key that they must send, by --api-key "
                "or in the environment variable SWINV2_API_KEY, or leave out --host to serve this machine only."
            )
        if self.max_images > self.queue:
            raise UsageError(
                f"--max-images is {self.max_images}, above --queue {self.queue}: a request with so many images would "
                "never be accepted. Give a longer queue, or fewer images."
            )
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        if Image.MAX_IMAGE_PIXELS is not None and self.max_pixels > limit:
            raise UsageError(f"--max-pixels is {self.max_pixels:,}; PIL reads images of up to {limit:,} pixels.")
        if self.body_timeout > self.timeout:
            raise UsageError(
                f"--body-timeout is {self.body_timeout:g}, longer than --timeout {self.timeout:g}, in which a request "
                "must also be answered."
            )

    @property
    def held_bytes(self) -> int:
        """Bytes of bodies that a process holds at once."""
        return _BODIES_AT_ONCE * self.max_body

    @property
    def image_limits(self) -> ImageLimits:
        """Limits for the images of requests."""
        return ImageLimits(self.max_pixels)


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach a host by this name or address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
