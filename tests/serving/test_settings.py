"""Settings of a service: who may use it, and limits that contradict each other."""

import re
from typing import Any

import pytest
from PIL import Image

from swinv2.errors import UsageError
from swinv2.serving.settings import ServiceSettings, is_loopback

KEY = "0123456789abcdef"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "LOCALHOST", "::1", "[::1]"])
def test_this_machine_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    assert ServiceSettings("m", host).api_key is None


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.0.2", "example.org", "127.0.0.1.example.org", "", "2130706433"]
)
def test_other_machines_need_a_key(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(
        UsageError, match=f"--host {re.escape(host)} lets other machines .* by --api-key or .* SWINV2_API_KEY"
    ):
        ServiceSettings("m", host)
    assert ServiceSettings("m", host, api_key=KEY).api_key == KEY


def test_a_key_is_not_printed_with_the_settings() -> None:
    assert KEY not in repr(ServiceSettings("m", api_key=KEY))


@pytest.mark.parametrize("key", ["", KEY[:-1], "k" * 15 + "\n", "k" * 15 + "\u00e4"])
def test_keys_that_are_too_short_or_cannot_be_sent(key: str) -> None:
    with pytest.raises(UsageError, match="the API key is too short or has unusual characters; expected 16 or more"):
        ServiceSettings("m", api_key=key)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"max_images": 9, "queue": 8}, "--max-images is 9, above --queue 8"),
        ({"timeout": 5.0, "body_timeout": 6.0}, "--body-timeout is 6, longer than --timeout 5"),
        ({"max_pixels": 2 * (Image.MAX_IMAGE_PIXELS or 0) + 1}, "PIL reads images of up to"),
    ],
)
def test_limits_that_contradict_each_other(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        ServiceSettings("m", **fields)


def test_bodies_and_pixels_follow_from_the_limits() -> None:
    settings = ServiceSettings("m", max_body=1000, max_pixels=77)
    assert (settings.held_bytes, settings.image_limits.pixels) == (8000, 77)
