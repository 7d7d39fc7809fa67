"""Colours differ, classes and objects are where they are, and a figure is never huge."""

import numpy as np
import pytest
from PIL import Image

from swinv2.drawing import overlays
from swinv2.drawing.overlays import Drawn, Entry, colours_of, draw_classes, draw_objects, palette

BLUE, GREEN = (30, 105, 225), (195, 255, 0)
"""The first two colours."""


def test_colours_are_256_different_ones_and_the_last_is_black() -> None:
    assert palette().shape == (256, 3)
    assert len(np.unique(palette(), axis=0)) == 256
    assert palette()[255].tolist() == [0, 0, 0]
    assert [tuple(colour) for colour in palette()[:2].tolist()] == [BLUE, GREEN]


def test_the_first_colours_differ_most() -> None:
    """The distance of the first 20 is several times the one at which people see a difference, 0.02."""

    def nearest(count: int) -> float:
        places = overlays._oklab(palette()[:count] / 255)
        distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
        return distances[np.triu_indices(count, 1)].min()

    assert nearest(20) > 0.1
    assert nearest(20) > nearest(100) > nearest(255) > 0.02


def test_oklab_has_the_published_values_of_white_and_red() -> None:
    found = overlays._oklab(np.array([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(found, [[1, 0, 0], [0.62796, 0.22486, 0.12585]], atol=1e-4)


def test_classes_above_255_use_the_colours_again() -> None:
    found = colours_of(np.array([1, 255, 256, 510, 511], np.int32))
    assert found.tolist() == palette()[[1, 255, 1, 0, 1]].tolist()


def test_classes_are_mixed_with_the_image() -> None:
    """Half of each, in an image of two pixels, which is enlarged 500 times."""
    pixels = np.array([[[100, 100, 100], [200, 0, 50]]], np.uint8)
    drawn = draw_classes(pixels, np.array([[0, 1]], np.uint8), [])
    assert drawn.size[0] >= 1000
    assert drawn.getpixel((250, 250)) == ((100 + 30) // 2, (100 + 105) // 2, (100 + 225) // 2)
    assert drawn.getpixel((750, 499)) == ((200 + 195) // 2, 255 // 2, 50 // 2)


def test_a_huge_image_is_reduced_by_an_integer() -> None:
    """4,001 pixels by three; a figure of means, so one pixel of three counts a third."""
    pixels = np.zeros((6, 4001, 3), np.uint8)
    classes = np.full((6, 4001), 255, np.uint8)
    classes[:, ::3] = 0
    drawn = np.asarray(draw_classes(pixels, classes, []))
    assert drawn[:2, :1300].reshape(-1, 3).max(0).tolist() == [round(each // 2 / 3) for each in BLUE]
    assert (drawn[:2, 1334:] == 255).all()
    assert not (drawn[:2, :1334] == 255).any()


def test_rows_that_are_drawn_at_once_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    pixels, classes = random.integers(0, 256, (50, 4100, 3), np.uint8), random.integers(0, 9, (50, 4100), np.uint8)
    whole = draw_classes(pixels, classes, [])
    monkeypatch.setattr(overlays, "_BAND_PIXELS", 4100 * 7)
    assert np.array_equal(np.asarray(draw_classes(pixels, classes, [])), np.asarray(whole))


def test_the_legend_has_the_colours_of_the_class_map() -> None:
    pixels = np.zeros((20, 20, 3), np.uint8)
    legend = [Entry(1, "sky", 0.75), Entry(0, "road\nwith a name that is much too long for any legend", 0.25)]
    drawn = draw_classes(pixels, np.zeros((20, 20), np.uint8), legend)
    beside = np.asarray(drawn)[:, 1000:]
    rows = {name: np.flatnonzero((beside == colour).all(2).any(1)) for name, colour in (("sky", GREEN), ("road", BLUE))}
    assert 0 < rows["sky"].min() < rows["sky"].max() < rows["road"].min()
    without = draw_classes(pixels, np.zeros((20, 20), np.uint8), [])
    assert drawn.width > without.width


@pytest.mark.parametrize("count", [1, 3, 150])
def test_a_legend_of_any_length_fits(count: int) -> None:
    """Beside a low image it is higher than the image, and has more columns."""
    legend = [Entry(index, f"class {index}", 1 / count) for index in range(count)]
    drawn = np.asarray(draw_classes(np.zeros((10, 1000, 3), np.uint8), np.zeros((10, 1000), np.uint8), legend))
    shown = {tuple(colour) for colour in np.unique(drawn[:, 1000:].reshape(-1, 3), axis=0).tolist()}
    assert {tuple(palette()[index].tolist()) for index in range(count)} <= shown
    border = np.concatenate([drawn[-1, 1000:], drawn[:, -1], drawn[0, 1000:]])
    assert (border == 255).all()


def test_boxes_masks_and_labels_have_the_colour_of_their_class() -> None:
    """In an image of 600 x 400 pixels, which is drawn as it is."""
    mask = np.zeros((400, 600), bool)
    mask[210:290, 110:190] = True
    pixels = np.full((400, 600, 3), 100, np.uint8)
    drawn = np.asarray(draw_objects(pixels, [Drawn("car 90%", 0, (100, 200, 200, 300), mask)])).astype(int)
    for row, column in ((200, 150), (299, 150), (250, 100), (250, 199)):
        assert tuple(drawn[row, column]) == BLUE
    for row, column in ((302, 150), (250, 97), (250, 203), (205, 150)):
        assert tuple(drawn[row, column]) == (100, 100, 100)
    inside = [round(0.55 * 100 + 0.45 * each) for each in BLUE]
    np.testing.assert_allclose(drawn[250, 150], inside, atol=1.5)
    assert tuple(drawn[210, 150]) == BLUE
    label = drawn[180:199, 100:160]
    assert (label == BLUE).all(2).mean() > 0.4
    assert (label > 230).all(2).any()
    # A light colour has a dark text.
    light = np.asarray(draw_objects(pixels, [Drawn("car 90%", 1, (100, 200, 200, 300))]))[180:199, 100:160]
    assert (light < 30).all(2).any()


def test_boxes_beyond_the_image_are_cut_and_their_labels_stay_inside() -> None:
    pixels = np.full((400, 600, 3), 100, np.uint8)
    drawn = np.asarray(draw_objects(pixels, [Drawn("car 90%", 0, (-50, -9.5, 5000, 80))]))
    assert drawn.shape == (400, 600, 3)
    assert (drawn[79, :] == BLUE).all()
    assert tuple(drawn[40, 0]) == tuple(drawn[40, 599]) == BLUE
    assert (drawn[2:15, 2:60] == BLUE).all(2).mean() > 0.4
    right = np.asarray(draw_objects(pixels, [Drawn("a long name 90%", 0, (590, 200, 599, 250))]))
    assert (right[180:199, 500:600] == BLUE).all(2).mean() > 0.4


def test_later_objects_are_drawn_over_earlier_ones() -> None:
    pixels = np.zeros((400, 600, 3), np.uint8)
    both = [Drawn("a", 0, (100, 100, 200, 200)), Drawn("b", 1, (100, 100, 200, 200))]
    assert tuple(np.asarray(draw_objects(pixels, both))[150, 100]) == GREEN
    assert tuple(np.asarray(draw_objects(pixels, both[::-1]))[150, 100]) == BLUE


@pytest.mark.parametrize(("side", "factor"), [(20, 50), (400, 2), (2000, 1), (2001, 1 / 2), (5000, 1 / 3)])
def test_boxes_and_masks_follow_the_size_of_the_figure(side: int, factor: float) -> None:
    mask = np.zeros((side, side), bool)
    mask[side // 2 :] = True
    box = (side * 0.2, side * 0.5, side * 0.8, side)
    drawn = np.asarray(draw_objects(np.zeros((side, side, 3), np.uint8), [Drawn("", 0, box, mask)]))
    assert drawn.shape[0] == drawn.shape[1] == -(-side // round(1 / min(factor, 1))) * max(factor, 1)
    lit = np.flatnonzero(drawn[:, len(drawn) // 10].any(1))
    assert lit.min() == pytest.approx(len(drawn) / 2, abs=1)
    edge = np.flatnonzero((drawn[round(0.75 * len(drawn))] == BLUE).all(1))
    assert edge.min() == pytest.approx(0.2 * len(drawn), abs=1)
    assert edge.max() == pytest.approx(0.8 * len(drawn), abs=2)


def test_names_can_be_written_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlays, "_font_file", lambda: None)
    drawn = draw_classes(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8), [Entry(0, "straße", 1.0)])
    assert isinstance(drawn, Image.Image)
    beside = np.asarray(drawn)[:60, 1060:]
    assert (beside < 60).all(2).any()
