"""The position bias: each value where its key lies from the query."""

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


def test_a_value_set_by_hand_stands_where_its_key_lies() -> None:
    """Against the reference's own lookup: for every query and key of a window, and for each direction."""
    window = (3, 4)
    table = torch.arange(2 * 5 * 7, dtype=torch.float32).view(2, 5, 7)
    field = by_direction(table)
    bias = expand_bias(table, window).view(2, 3, 4, 3, 4)
    for query in np.ndindex(window):
        for key in np.ndindex(window):
            down, right = key[0] - query[0], key[1] - query[1]
            assert np.array_equal(field[:, down + 2, right + 3], bias[:, *query, *key].numpy())


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


def test_it_is_written(tmp_path: Path) -> None:
    draw_bias([BiasField("stage 1", np.ones((1, 1, 1)), (1, 1), (1, 1))], tmp_path / "bias.png", "a $title")
    with Image.open(tmp_path / "bias.png") as image:
        assert image.format == "PNG"
