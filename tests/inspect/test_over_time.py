"""Figures over the frames of a clip."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from swinv2.inspect import over_time
from swinv2.inspect.attention_map import TOKEN_COLOUR, token_attention
from swinv2.inspect.components import principal_components
from swinv2.inspect.over_time import SHARES, draw_attention_over_time, draw_components_over_time, shares_over_time
from swinv2.ops.windows import WindowPlan

FRAMES = np.zeros((3, 16, 24, 3), np.uint8)
SECONDS = [0.1, 0.3, 0.5]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that a test draws, instead of their files."""
    saved: list[Figure] = []

    def keep(figure: Figure, path: Path, cut: bool = False) -> None:
        FigureCanvasAgg(figure).draw()
        saved.append(figure)

    monkeypatch.setattr(over_time, "save", keep)
    return saved


def test_weights_of_each_time(figures: list[Figure]) -> None:
    """A map of 3 x 4 x 6 in windows of 3 x 4 x 3: the token at time 1 gives each key the key's own weight."""
    plan = WindowPlan((3, 4, 6), (3, 4, 3))
    of_keys = torch.arange(36.0).softmax(0)
    weights = of_keys.expand(2, 2, 36, 36).clone()
    weights[:, 1] = 1 / 36
    attention = token_attention(weights, plan, (1, 2, 4))
    shares = shares_over_time(attention)
    assert shares[0] == pytest.approx(of_keys.view(3, 12).sum(1).numpy(), abs=1e-6)
    assert shares[1] == pytest.approx(np.full(3, 1 / 3), abs=1e-6)

    # A clip that is longer than its video shows a time again.
    draw_attention_over_time({"stage 1": attention}, FRAMES, [0.1] * 3, {"stage 1": (4, 4)}, Path("a.png"), "title")
    assert [axes.get_title() for axes in figures.pop().axes].count("0.10 s") == 3
    draw_attention_over_time({"stage 1": attention}, FRAMES, SECONDS, {"stage 1": (4, 4)}, Path("a.png"), "title")
    (figure,) = figures
    tiles = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(tiles) == [SHARES, "0.10 s", "0.30 s", "0.50 s"]
    lines = [np.asarray(line.get_ydata()) for line in tiles[SHARES].lines]
    assert any(np.allclose(line, shares[0]) for line in lines if len(line) == 3)
    assert any(np.allclose(line, shares.mean(0)) for line in lines if len(line) == 3)
    # The token is marked in its own frame alone, at its row and column.
    marked = {title: list(axes.patches) for title, axes in tiles.items() if axes.patches}
    assert list(marked) == ["0.30 s"]
    (mark,) = marked["0.30 s"]
    assert (mark.get_x(), mark.get_y(), mark.get_width(), mark.get_height()) == (16, 8, 4, 4)
    assert tiles["0.30 s"].spines["left"].get_edgecolor()[:2] == pytest.approx((1.0, 0x2D / 255))
    assert TOKEN_COLOUR == "#ff2d2d"


def test_feature_maps_of_each_time(figures: list[Figure]) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = {"stem": principal_components(torch.randn(3, 4, 6, 5, generator=generator))}
    maps["stage1"] = principal_components(torch.randn(3, 2, 3, 5, generator=generator))
    sizes = {"stem": (4, 4), "stage1": (8, 8)}
    draw_components_over_time(maps, FRAMES, SECONDS, sizes, Path("a.png"), "title")
    (figure,) = figures
    assert len(figure.axes) == 9
    assert [axes.get_title() for axes in figure.axes[:3]] == ["0.10 s", "0.30 s", "0.50 s"]
    shapes = [np.shape(axes.images[0].get_array())[:2] for axes in figure.axes]
    assert shapes == [(16, 24)] * 3 + [(4, 6)] * 3 + [(2, 3)] * 3
    long = np.zeros((40, 16, 24, 3), np.uint8)
    many = {"stem": principal_components(torch.randn(40, 4, 6, 5, generator=generator))}
    draw_components_over_time(many, long, [float(time) for time in range(40)], sizes, Path("a.png"), "title")
    titles = [axes.get_title() for axes in figures[1].axes if axes.get_title()]
    assert (len(titles), titles[0], titles[-1]) == (8, "0.00 s", "39.00 s")
