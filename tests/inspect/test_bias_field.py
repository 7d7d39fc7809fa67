"""The position bias: each value where its key lies from the query."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from swinv2.inspect import bias_field
from swinv2.inspect.bias_field import BiasField, by_direction, draw_bias
from swinv2.ops.reference import expand_bias


@pytest.mark.parametrize("window", [(3, 4), (2, 3, 4)])
def test_a_value_set_by_hand_stands_where_its_key_lies(window: tuple[int, ...]) -> None:
    """Against the reference's own lookup: for every query and key of a window, and for each direction."""
    lengths = [2 * length - 1 for length in window]
    table = torch.arange(2 * math.prod(lengths), dtype=torch.float32).view(2, *lengths)
    field = by_direction(table)
    bias = expand_bias(table, window).view(2, *window, *window)
    for query in np.ndindex(window):
        for key in np.ndindex(window):
            place = [at - here + length - 1 for at, here, length in zip(key, query, window, strict=True)]
            assert np.array_equal(field[(slice(None), *place)], bias[:, *query, *key].numpy())


def tiles(figure: Figure) -> list:
    return [axes for axes in figure.axes if axes.get_title().startswith("head")]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that a test draws, instead of their files."""
    saved: list[Figure] = []
    monkeypatch.setattr(bias_field, "save", lambda figure, path, cut: saved.append(figure))
    return saved


def test_it_is_drawn_there(figures: list[Figure]) -> None:
    """One step down and two to the right of the query, and nowhere else."""
    values = np.zeros((1, 5, 7), np.float32)
    values[0, 1 + 2, 2 + 3] = 8.0
    draw_bias([BiasField("stage 1", values, (3, 4), (3, 4))], Path("bias.png"), "title")
    FigureCanvasAgg(figures[0]).draw()
    (axes,) = tiles(figures[0])
    (image,) = axes.images
    drawn = np.asarray(image.get_array())
    row, column = np.unravel_index(drawn.argmax(), drawn.shape)
    left, right, bottom, top = image.get_extent()
    assert left + (column + 0.5) * (right - left) / 7 == pytest.approx(2)
    assert top + (row + 0.5) * (bottom - top) / 5 == pytest.approx(1)
    # Down is down on the paper, right is right.
    assert axes.get_ylim() == (2.5, -2.5)
    assert axes.get_xlim() == (-3.5, 3.5)
    assert drawn.mean() == pytest.approx(0, abs=1e-6)
    assert not axes.patches


def test_what_was_learned_has_a_frame(figures: list[Figure]) -> None:
    random = np.random.default_rng(0)
    learned = BiasField("own", random.normal(size=(9, 5, 5)), (3, 3), (3, 3))
    larger = BiasField("larger", random.normal(size=(9, 11, 9)), (6, 5), (3, 3))
    draw_bias([learned, larger], Path("bias.png"), "title", is_compared=True)
    drawn = tiles(figures[0])
    assert len(drawn) == 18
    assert len({image.get_clim() for axes in drawn for image in axes.images}) == 1
    assert all(not axes.patches for axes in drawn[:9])
    for axes in drawn[9:]:
        (frame,) = axes.patches
        assert (frame.get_x(), frame.get_y(), frame.get_width(), frame.get_height()) == (-2.5, -2.5, 5, 5)
        values = np.asarray(axes.images[0].get_array())
        assert values[5, 4] == 0


def test_bias_of_a_video(figures: list[Figure]) -> None:
    """Two steps later and one down is neither at the query's time nor at its place; one earlier is at its place."""
    values = np.zeros((2, 5, 3, 7), np.float32)
    values[0, 2 - 1, 1, 3] = 4.0
    values[0, 2, 1, 3 + 2] = 6.0
    values[1, 2 + 2, 1 + 1, 3] = 8.0
    fields = [BiasField("stage 1", values, (3, 2, 4), (3, 2, 4)), BiasField("image", values[:, 2], (2, 4), (2, 4))]
    draw_bias(fields, Path("bias.png"), "title", is_compared=True)
    FigureCanvasAgg(figures[0]).draw()
    first, second, *of_image = tiles(figures[0])
    assert len(of_image) == 2
    drawn = np.asarray(first.images[0].get_array())
    assert (drawn.shape, drawn.max(), drawn[1, 5]) == ((3, 7), 6.0, 6.0)
    assert (np.asarray(second.images[0].get_array()) == 0).all()
    (over_time,) = (axes for axes in figures[0].axes if axes.get_title() == bias_field.OVER_TIME)
    # Each kind of axes has its own labels.
    assert over_time.get_ylabel() == "logit"
    assert list(over_time.get_xticks()) == [-2, 0, 2]
    assert (first.get_xlabel(), first.get_ylabel(), second.get_ylabel()) == ("right, tokens", "down, tokens", "")
    assert [np.asarray(line.get_xdata()).tolist() for line in over_time.lines] == [[-2, -1, 0, 1, 2]] * 2
    assert [np.asarray(line.get_ydata()).tolist() for line in over_time.lines] == [[0, 4, 0, 0, 0], [0] * 5]


def test_it_is_written(tmp_path: Path) -> None:
    draw_bias([BiasField("stage 1", np.ones((1, 1, 1)), (1, 1), (1, 1))], tmp_path / "bias.png", "a $title")
    with Image.open(tmp_path / "bias.png") as image:
        assert image.format == "PNG"
