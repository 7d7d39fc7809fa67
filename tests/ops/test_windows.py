"""Geometry: padding, shift, windows and regions, against definitions by coordinates."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swinv2.ops import windows
from swinv2.ops.windows import WindowPlan

Numbers = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], bool]
"""The arguments of a plan. A plan itself cannot be drawn: the check of its types draws random numbers."""


@st.composite
def plans(draw: st.DrawFn) -> Numbers:
    """Any plan on small maps of images or videos: windows larger than the map, any shift, padding hidden or not."""
    axes = draw(st.integers(2, 3))
    longest_side, longest = (5, 12) if axes == 2 else (3, 6)
    window = tuple(draw(st.integers(1, longest_side)) for _ in range(axes))
    shift = tuple(draw(st.integers(0, length - 1)) for length in window)
    grid = tuple(draw(st.integers(1, longest)) for _ in range(axes))
    return grid, window, shift, draw(st.booleans())


def places(plan: WindowPlan) -> torch.Tensor:
    """The position in the padded map of every token of every window: (windows, T, axes), by counting."""
    starts = torch.tensor(list(itertools.product(*map(range, [0] * len(plan.grid), plan.padded_grid, plan.window))))
    offsets = torch.tensor(list(itertools.product(*map(range, plan.window))))
    moved = starts[:, None] + offsets + torch.tensor(plan.shift)
    return moved % torch.tensor(plan.padded_grid)


def number(plan: WindowPlan) -> torch.Tensor:
    """A padded map (1, *grid, axes) in which every token carries its own place."""
    positions = torch.meshgrid(*(torch.arange(length) for length in plan.padded_grid), indexing="ij")
    return torch.stack(positions, dim=-1)[None]


@given(plans())
def test_shift_and_partition_put_every_token_where_counting_does(numbers: Numbers) -> None:
    """Cutting a shifted map gives the tokens that one finds by counting rows and columns."""
    plan = WindowPlan(*numbers)
    tiles = windows.partition(windows.shift(number(plan), plan), plan.window)
    assert torch.equal(tiles, places(plan))


@given(plans(), st.integers(1, 3))
def test_every_step_is_undone(numbers: Numbers, batch: int) -> None:
    """crop undoes pad, unshift undoes shift, merge undoes partition; nothing is lost or doubled."""
    plan = WindowPlan(*numbers)
    feature_map = torch.randn(batch, *plan.grid, 2, 3)
    padded = windows.pad(feature_map, plan)
    assert padded.shape[1:-2] == plan.padded_grid
    assert torch.equal(windows.crop(padded, plan), feature_map)
    assert torch.equal(windows.unshift(windows.shift(padded, plan), plan), padded)
    tiles = windows.partition(padded, plan.window)
    assert tiles.shape[:2] == (batch * math.prod(plan.counts), plan.tokens)
    assert torch.equal(windows.merge(tiles, plan.window, plan.padded_grid), padded)


@given(plans())
def test_pad_fills_the_bottom_and_the_right(numbers: Numbers) -> None:
    """Filling tokens hold the given value, zeros without one; the map itself stays where it was."""
    plan = WindowPlan(*numbers)
    feature_map, value = torch.randn(2, *plan.grid, 4), torch.randn(4)
    is_padding = torch.ones(plan.padded_grid, dtype=torch.bool)
    is_padding[tuple(map(slice, plan.grid))] = False
    for padded, expected in (
        (windows.pad(feature_map, plan), torch.zeros(4)),
        (windows.pad(feature_map, plan, value), value),
    ):
        assert (padded[:, is_padding] == expected).all()
        assert torch.equal(padded[(slice(None), *map(slice, plan.grid))], feature_map)


@given(plans())
def test_the_padded_grid_is_the_smallest_of_whole_windows(numbers: Numbers) -> None:
    """Whole windows cover the map, and one row or column of windows less would not."""
    plan = WindowPlan(*numbers)
    for size, padded, window in zip(plan.grid, plan.padded_grid, plan.window, strict=True):
        assert padded % window == 0
        assert 0 <= padded - size < window


@given(plans())
def test_hidden_pairs_are_those_that_are_no_neighbours(numbers: Numbers) -> None:
    """A token sees another one exactly if they lie in the map as they lie in the window, and neither or both fill up.

    That is what regions are for: in a shifted window the cyclic shift has put tokens side by side whose true distance
    is another one.
    """
    plan = WindowPlan(*numbers)
    place = places(plan)
    in_window = torch.tensor(list(itertools.product(*map(range, plan.window))))
    true_distance = place[:, :, None] - place[:, None, :]
    distance_in_window = in_window[:, None] - in_window[None, :]
    expected = (true_distance != distance_in_window).any(-1)
    fills = place >= torch.tensor(plan.grid)
    # Padding frames are always hidden.
    hides = torch.tensor([plan.hides_padding(axis) for axis in range(len(plan.grid))])
    assert hides.tolist() == [*[True] * (len(plan.grid) - 2), *[plan.mask_padding] * 2]
    expected |= ((fills[:, :, None] != fills[:, None, :]) & hides).any(-1)
    # Between padding tokens nothing is said: no answer of theirs is ever used.
    is_real = ~(fills & hides).any(-1)
    used = is_real[:, :, None] | is_real[:, None, :]
    hidden = plan.hidden_pairs(torch.device("cpu"))
    hidden = torch.zeros_like(expected) if hidden is None else hidden
    assert torch.equal(hidden & used, expected & used)


@given(plans())
def test_spans_cover_every_window_once_with_its_regions(numbers: Numbers) -> None:
    """The few kinds of window say the same as the list of all windows."""
    plan = WindowPlan(*numbers)
    hidden = plan.hidden_pairs(torch.device("cpu"))
    seen = torch.zeros(plan.counts, dtype=torch.int)
    for kind in plan.kinds:
        seen[kind.place] += 1
        assert seen[kind.place].numel() == kind.count
        pairs = kind.hidden_pairs(torch.device("cpu"))
        assert kind.is_single_region == (not pairs.any())
        if hidden is not None:
            assert (hidden.unflatten(0, plan.counts)[kind.place] == pairs).all()
    assert (seen == 1).all()


@given(plans())
def test_there_are_few_kinds(numbers: Numbers) -> None:
    """At most two kinds along an axis, three if padding is hidden: the work does not grow with the map."""
    plan = WindowPlan(*numbers)
    for axis in range(len(plan.grid)):
        assert len(plan.spans(axis)) <= (3 if plan.hides_padding(axis) else 2)


@given(plans())
def test_every_token_sees_itself(numbers: Numbers) -> None:
    """No row of the mask is hidden altogether, so the softmax is never of nothing."""
    plan = WindowPlan(*numbers)
    hidden = plan.hidden_pairs(torch.device("cpu"))
    assert hidden is None or not hidden.diagonal(dim1=1, dim2=2).any()


def test_no_shift_and_no_hidden_padding_need_no_mask() -> None:
    """Where all see all, there is no mask at all."""
    assert WindowPlan((6, 10), (4, 4)).hidden_pairs(torch.device("cpu")) is None


@pytest.mark.parametrize("shift", [(4, 0), (0, 5), (-1, 0)])
def test_a_shift_of_a_window_or_more_is_refused(shift: tuple[int, int]) -> None:
    """A shift by a whole window is none, and is refused."""
    with pytest.raises(ValueError, match="less than the window"):
        WindowPlan((8, 8), (4, 5), shift)


def test_fresh_memory_is_full_of_nan() -> None:
    """The fixture that all tests of this folder stand on."""
    like = torch.zeros(2)
    for fresh in (torch.empty(2), torch.empty_like(like), like.new_empty(2), torch.empty_strided((2,), (1,))):
        assert fresh.isnan().all()
