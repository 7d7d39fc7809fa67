"""Lengths, pairs and windows: every form is read as it is meant, and written in the shortest notation that is read
back."""

from typing import Any

import pytest

from swinv2.lengths import Pair, as_length, as_pair, as_windows, plain_pair, plain_windows


@pytest.mark.parametrize("windows", [((8, 8),) * 2, ((4, 8),) * 2, ((16, 16), (8, 8)), ((16, 16), (8, 4), (8, 8))])
def test_what_is_written_is_read_back(windows: tuple[Pair, ...]) -> None:
    assert as_windows("window_size", plain_windows(windows), len(windows)) == windows
    assert [as_pair("window", plain_pair(window)) for window in windows] == list(windows)


@pytest.mark.parametrize("value", ["8", 8.0, None, True, [8], [8, 8, 8], [[8, 8], [8, 8], [8, 8]], [[8], [8]], [0, 8]])
def test_other_values_are_named(value: Any) -> None:
    with pytest.raises(ValueError, match=r"window_size.* is .*; expected an integer"):
        as_windows("window_size", value, 2)


def test_least_lengths() -> None:
    assert as_length("period", 0, 0) == 0
    assert as_pair("size", (0, 3), 0) == (0, 3)
    with pytest.raises(ValueError, match=r"period is 0; expected an integer of at least 1\."):
        as_length("period", 0)
