"""Sizes as text: what is understood, and a sentence for everything else."""

import re
from typing import Any

import pytest

from swinv2.errors import UsageError
from swinv2.lengths import as_windows
from swinv2.sizes import read_learned_windows, read_size, read_windows


@pytest.mark.parametrize(
    ("text", "size"), [(None, None), ("256", 256), ("384x256", (384, 256)), (" 384X256", (384, 256))]
)
def test_image_sizes(text: str | None, size: Any) -> None:
    assert read_size(text, "--image-size") == size


@pytest.mark.parametrize(
    ("text", "stages", "windows"),
    [
        ("8", 3, ((8, 8),) * 3),
        ("8x16", 3, ((8, 16),) * 3),
        ("8X16", 2, ((8, 16),) * 2),
        ("16,8", 2, ((16, 16), (8, 8))),
        ("16,16,16,8", 4, ((16, 16), (16, 16), (16, 16), (8, 8))),
        ("8x16, 4x8, 4", 3, ((8, 16), (4, 8), (4, 4))),
    ],
)
def test_windows(text: str, stages: int, windows: Any) -> None:
    """A comma stands between stages, in a network of two as well; "x" between height and width."""
    assert as_windows("window_size", read_windows(text, "--window-size"), stages) == windows
    assert read_windows(None, "--window-size") is None


@pytest.mark.parametrize(
    "text", ["", "x", "8x", "0", "-8", "8.0", "wide", "8x8x8", "8,", "8,0", "16;8", "8,x", "٣", "9" * 10]
)
def test_no_windows(text: str) -> None:
    expected = re.escape(f"--window-size is {text!r}; expected tokens such as 8, height x width such as 8x16, or one")
    with pytest.raises(UsageError, match=expected):
        read_windows(text, "--window-size")


@pytest.mark.parametrize("text", ["", "0", "256x", "x256", "1x2x3", "256,256", "large", "9" * 4400])
def test_no_image_sizes(text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"--image-size is {text!r}; expected pixels such as 256")):
        read_size(text, "--image-size")


def test_learned_windows() -> None:
    """One for each stage, zero for a stage's own."""
    assert read_learned_windows(None, "--learned") is None
    assert read_learned_windows("12,12,12,6", "--learned") == [12, 12, 12, 6]
    assert read_learned_windows("8x16,0", "--learned") == [(8, 16), 0]
    for text in ("", "12,x", "12,-6"):
        with pytest.raises(UsageError, match=f"--learned is '{text}'; expected a window for each stage"):
            read_learned_windows(text, "--learned")
