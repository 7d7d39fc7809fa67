"""One square window in place of several: only where every stage has what it had."""

from typing import Any

import pytest

from swinv2 import Swinv2Config
from swinv2.convert.dialects.squares import are_equivalent, with_equivalent_square


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ([16, 4, 4, 2], [16, 4, 4, 2]),
        ([16, 8, 4, 2], 16),
        ([[32, 16], 9, 8, 2], 16),
        ([8, 8, 4, 8], 8),
        ([(4, 8)] * 4, [4, 8]),
        (32, 32),
    ],
)
def test_with_equivalent_square(window: Any, expected: Any) -> None:
    """What each stage has counts, not how it is written; one square is left as it is configured."""
    sizes = {"image_size": 64, "embed_dim": 16, "depths": [1] * 4, "num_heads": [1, 2, 4, 8]}
    config = Swinv2Config(**sizes, window_size=window)
    square = with_equivalent_square(config)
    assert square.window_size == expected
    assert square.stages() == config.stages()
    assert are_equivalent(config, expected)
    assert not are_equivalent(config, 2)
