"""The attention of a token: back in its place on the map, against arithmetic of its own."""

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from swinv2.inspect.attention_map import _area_around, draw_attention, mask_outline, overlay, token_attention
from swinv2.ops.windows import WindowPlan

PLANS = [
    WindowPlan((8, 8), (4, 4)),
    WindowPlan((8, 12), (4, 4), (2, 2)),
    WindowPlan((4, 6), (4, 3), (0, 1)),
    WindowPlan((7, 9), (4, 4), (2, 2)),
    WindowPlan((7, 5), (4, 3), (2, 1), mask_padding=True),
    WindowPlan((3, 3), (4, 4)),
    WindowPlan((1, 1), (1, 1)),
    WindowPlan((3, 4, 6), (2, 4, 3), (1, 0, 1)),
    WindowPlan((5, 3, 4), (2, 2, 2), (1, 1, 1), mask_padding=True),
]


def companions(plan: WindowPlan, token: tuple[int, ...]) -> list[list[tuple[int, int]]]:
    """Per axis, the places on the padded map in the token's window, each with its region: plain modular arithmetic."""
    found = []
    for axis in range(len(token)):
        length, window, shift = plan.padded_grid[axis], plan.window[axis], plan.shift[axis]
        shifted = (token[axis] - shift) % length
        first = shifted // window * window
        places = []
        for position in range(first, first + window):
            place = (position + shift) % length
            # What the cyclic shift brought from the top or left is no neighbour of the rest.
            region = 1 if position + shift >= length else 0
            # Padding frames are always hidden.
            is_hidden = plan.mask_padding or (axis == 0 and len(token) == 3)
            region = 2 if is_hidden and place >= plan.grid[axis] else region
            places.append((place, region))
        found.append(places)
    return found


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_weight_has_its_place(plan: WindowPlan) -> None:
    """Weights that say which window, query and key they are of land on the key, for every token of the map."""
    count, tokens = math.prod(plan.counts), plan.tokens
    weights = torch.rand(count, 2, tokens, tokens, generator=torch.Generator().manual_seed(0))
    hidden = plan.hidden_pairs(torch.device("cpu"))
    if hidden is not None:
        weights = weights.masked_fill(hidden[:, None], 0.0)
    weights = weights / weights.sum(-1, keepdim=True)
    for token in product(*map(range, plan.grid)):
        attention = token_attention(weights, plan, token)
        window = 0
        for place, shift, length, side, count in zip(
            token, plan.shift, plan.padded_grid, plan.window, plan.counts, strict=True
        ):
            window = window * count + ((place - shift) % length) // side
        keys = list(product(*companions(plan, token)))
        query = [tuple(place for place, _ in key) for key in keys].index(token)
        own = [region for _, region in keys[query]]
        expected = np.zeros((2, *plan.grid))
        in_window, visible = np.zeros(plan.grid, bool), np.zeros(plan.grid, bool)
        padding = np.zeros(2)
        for index, key in enumerate(keys):
            value = weights[window, :, query, index].double().numpy()
            place = tuple(place for place, _ in key)
            if all(map(int.__lt__, place, plan.grid)):
                expected[(slice(None), *place)] = value
                in_window[place] = True
                visible[place] = [region for _, region in key] == own
            else:
                padding += value
        np.testing.assert_allclose(attention.weights, expected, atol=1e-7)
        np.testing.assert_allclose(attention.on_padding, padding, atol=1e-6)
        total = attention.weights.reshape(2, -1).sum(1) + attention.on_padding
        np.testing.assert_allclose(total, 1.0, atol=1e-6)
        assert np.array_equal(attention.window, in_window)
        assert np.array_equal(attention.visible, visible)
        assert (attention.weights[:, ~visible] == 0).all()
        assert visible[token]


def test_a_token_or_weights_that_do_not_fit() -> None:
    plan = WindowPlan((8, 8), (4, 4))
    with pytest.raises(ValueError, match=r"token is \(8, 0\); the map has \(8, 8\) tokens"):
        token_attention(torch.zeros(4, 1, 16, 16), plan, (8, 0))
    with pytest.raises(ValueError, match=r"token is \(0, 0, 0\)"):
        token_attention(torch.zeros(4, 1, 16, 16), plan, (0, 0, 0))
    with pytest.raises(ValueError, match="4 windows of 16 tokens"):
        token_attention(torch.zeros(8, 1, 16, 16), plan, (0, 0))


def test_the_overlay_colours_the_pixels_of_the_tokens() -> None:
    rgb = np.full((10, 12, 3), 200, np.uint8)
    weights, visible = np.zeros((3, 3)), np.zeros((3, 3), bool)
    visible[1, 1:] = True
    weights[1, 2] = 0.5
    # Tokens of 4 x 5 pixels; the last row and column of tokens reach beyond the image.
    shown = overlay(rgb, weights, visible, (4, 5), 0.5)
    assert shown.shape == rgb.shape
    is_grey = (shown == shown[..., :1]).all(-1)
    coloured = np.zeros((10, 12), bool)
    coloured[4:8, 5:12] = True
    assert np.array_equal(~is_grey, coloured)
    yellow, purple = shown[5, 11].astype(int), shown[5, 6].astype(int)
    assert yellow[0] > yellow[2] + 50
    assert purple[2] > purple[1]
    assert (shown[is_grey] == 210).all()


def test_outlines_and_what_lies_around() -> None:
    mask = np.zeros((4, 5), bool)
    mask[1, 2:4] = True
    xs, ys = mask_outline(mask)
    lines = set(zip(map(tuple, xs.T.tolist()), map(tuple, ys.T.tolist()), strict=True))
    assert xs.shape == (2, 6)
    assert len(lines) == 6
    assert ((2, 3), (1, 1)) in lines
    assert ((4, 4), (1, 2)) in lines
    rgb = np.zeros((40, 50, 3), np.uint8)
    assert _area_around(mask, (10, 10), rgb) == (15.0, 0.0, 45.0, 30.0)
    assert _area_around(np.ones((4, 5), bool), (10, 10), rgb) == (0.0, 0.0, 50.0, 40.0)


def test_the_figure_is_of_many_heads(tmp_path: Path) -> None:
    plan = WindowPlan((8, 8), (4, 4), (2, 2))
    weights = torch.full((4, 17, 16, 16), 1 / 16)
    attentions = {"stage 1": token_attention(weights, plan, (0, 0))}
    rgb = np.zeros((32, 32, 3), np.uint8)
    draw_attention(attentions, rgb, {"stage 1": (4, 4)}, tmp_path / "attention.png", "$title")
    with Image.open(tmp_path / "attention.png") as image:
        # Ten tiles across, three rows of heads.
        assert 1300 < image.width < 2000
        assert 450 < image.height < 900
