"""One square window in place of several: only where every stage has what it had."""

from typing import Any

import pytest

import swinv2
from swinv2.convert.dialects.squares import equivalent_square


@pytest.mark.parametrize(
    ("window", "side"),
    [([16, 4, 4, 2], None), ([16, 8, 4, 2], 16), ([[32, 16], 9, 8, 2], 16), ([8, 8, 4, 8], 8), ([(4, 8)] * 4, None)],
)
def test_equivalent_square(window: Any, side: int | None) -> None:
    """What each stage has counts, not how it is written."""
    config = swinv2.Swinv2Config(
        image_size=64, embed_dim=16, depths=[1] * 4, num_heads=[1, 2, 4, 8], window_size=window
    )
    assert equivalent_square(config) == side
