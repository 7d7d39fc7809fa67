"""Geometry: padding, shift, windows and regions, against definitions by coordinates."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swinv2.ops import windows
from swinv2.ops.windows import WindowPlan


@st.composite
def plans(draw: st.DrawFn) -> WindowPlan:
    """Any plan on small maps: windows larger than the map, any shift that is allowed, padding hidden or not."""
    window = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    shift = tuple(draw(st.integers(0, length - 1)) for length in window)
    return WindowPlan((draw(st.integers(1, 12)), draw(st.integers(1, 12))), window, shift, draw(st.booleans()))


def places(plan: WindowPlan) -> torch.Tensor:
    """The (row, column) in the padded map of every token of every window: (windows, T, 2), by counting."""
    height, width = plan.padded_grid
    return torch.tensor(
        [
            [
                ((top + y + plan.shift[0]) % height, (left + x + plan.shift[1]) % width)
                for y in range(plan.window[0])
                for x in range(plan.window[1])
            ]
            for top in range(0, height, plan.window[0])
            for left in range(0, width, plan.window[1])
        ]
    )


def number(plan: WindowPlan) -> torch.Tensor:
    """A padded map (1, H, W, 2) in which every token carries its own place."""
    rows, columns = torch.meshgrid(*(torch.arange(length) for length in plan.padded_grid), indexing="ij")
    return torch.stack([rows, columns], dim=-1)[None]


@given(plans())
def test_shift_and_partition_put_every_token_where_counting_does(plan: WindowPlan) -> None:
    """Cutting a shifted map gives the tokens that one finds by counting rows and columns."""
    tiles = windows.partition(windows.shift(number(plan), plan), plan.window)
    assert torch.equal(tiles, places(plan))


@given(plans(), st.integers(1, 3))
def test_every_step_is_undone(plan: WindowPlan, batch: int) -> None:
    """crop undoes pad, unshift undoes shift, merge undoes partition; nothing is lost or doubled."""
    feature_map = torch.randn(batch, *plan.grid, 2, 3)
    padded = windows.pad(feature_map, plan)
    assert padded.shape[1:3] == plan.padded_grid
    assert torch.equal(windows.crop(padded, plan), feature_map)
    assert torch.equal(windows.unshift(windows.shift(padded, plan), plan), padded)
    tiles = windows.partition(padded, plan.window)
    assert tiles.shape[:2] == (batch * plan.counts[0] * plan.counts[1], plan.tokens)
    assert torch.equal(windows.merge(tiles, plan.window, plan.padded_grid), padded)


@given(plans())
def test_pad_fills_the_bottom_and_the_right(plan: WindowPlan) -> None:
    """Filling tokens hold the given value, zeros without one; the map itself stays where it was."""
    feature_map, value = torch.randn(2, *plan.grid, 4), torch.randn(4)
    is_padding = torch.ones(plan.padded_grid, dtype=torch.bool)
    is_padding[: plan.grid[0], : plan.grid[1]] = False
    for padded, expected in (
        (windows.pad(feature_map, plan), torch.zeros(4)),
        (windows.pad(feature_map, plan, value), value),
    ):
        assert (padded[:, is_padding] == expected).all()
        assert torch.equal(padded[:, : plan.grid[0], : plan.grid[1]], feature_map)


@given(plans())
def test_the_padded_grid_is_the_smallest_of_whole_windows(plan: WindowPlan) -> None:
    """Whole windows cover the map, and one row or column of windows less would not."""
    for size, padded, window in zip(plan.grid, plan.padded_grid, plan.window, strict=True):
        assert padded % window == 0
        assert 0 <= padded - size < window


@given(plans())
def test_hidden_pairs_are_those_that_are_no_neighbours(plan: WindowPlan) -> None:
    """A token sees another one exactly if they lie in the map as they lie in the window, and neither or both fill up.

    That is what regions are for: in a shifted window the cyclic shift has put tokens side by side whose true distance
    is another one.
    """
    place = places(plan)
    in_window = torch.tensor([(y, x) for y in range(plan.window[0]) for x in range(plan.window[1])])
    true_distance = place[:, :, None] - place[:, None, :]
    distance_in_window = in_window[:, None] - in_window[None, :]
    expected = (true_distance != distance_in_window).any(-1)
    fills = place >= torch.tensor(plan.grid)
    if plan.mask_padding:
        expected |= (fills[:, :, None] != fills[:, None, :]).any(-1)
        # Between padding tokens nothing is said: no answer of theirs is ever used.
        is_real = ~fills.any(-1)
        used = is_real[:, :, None] | is_real[:, None, :]
    else:
        used = torch.ones_like(expected)
    hidden = plan.hidden_pairs(torch.device("cpu"))
    hidden = torch.zeros_like(expected) if hidden is None else hidden
    assert torch.equal(hidden & used, expected & used)


@given(plans())
def test_spans_cover_every_window_once_with_its_regions(plan: WindowPlan) -> None:
    """The few kinds of window say the same as the list of all windows."""
    hidden = plan.hidden_pairs(torch.device("cpu"))
    seen = torch.zeros(plan.counts, dtype=torch.int)
    for kind in plan.kinds:
        rows, columns = slice(kind.rows.start, kind.rows.stop), slice(kind.columns.start, kind.columns.stop)
        seen[rows, columns] += 1
        pairs = kind.hidden_pairs(torch.device("cpu"))
        assert kind.is_single_region == (not pairs.any())
        if hidden is not None:
            assert (hidden.unflatten(0, plan.counts)[rows, columns] == pairs).all()
    assert (seen == 1).all()


@given(plans())
def test_there_are_few_kinds(plan: WindowPlan) -> None:
    """At most two kinds along an axis, three if padding is hidden: the work does not grow with the map."""
    assert len(plan.spans(0)) <= (3 if plan.mask_padding else 2)
    assert len(plan.spans(1)) <= (3 if plan.mask_padding else 2)


@given(plans())
def test_every_token_sees_itself(plan: WindowPlan) -> None:
    """No row of the mask is hidden altogether, so the softmax is never of nothing."""
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
