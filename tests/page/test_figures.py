"""The figures of the page, from numbers that are known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

import page_models
from swinv2.dense.average_precision import Detections
from swinv2.drawing.overlays import colours_of
from swinv2.inspect.attention_map import TOKEN_COLOUR, WINDOW_COLOUR
from swinv2.inspect.components import principal_components
from swinv2.inspect.view import View
from swinv2.ops.windows import WindowPlan
from swinv2.page.figures import (
    MEAN,
    draw_attention_of,
    draw_classes_of,
    draw_maps,
    draw_objects_of,
    enlarge,
    factor_of,
    head_names,
    legend_of,
    maps_as_html,
)
from swinv2.page.model import Attentions, PageModel, Seen, Shown
from swinv2.predict.segmenting import ClassShare

TOKEN, WINDOW = ImageColor.getrgb(TOKEN_COLOUR), ImageColor.getrgb(WINDOW_COLOUR)


@pytest.fixture
def seen() -> Seen:
    """An image of 16 x 8 pixels as 4 x 2 tokens in windows of 2 x 2: every token attends only to the last of its
    window in the first head, and to all alike in the second one."""
    weights = torch.zeros(2, 2, 4, 4)
    weights[:, 0, :, 3], weights[:, 1] = 1, 0.25
    view = View(torch.zeros(1, 3, 8, 16), np.full((8, 16, 3), 100, np.uint8), np.arange(8) + 0.5, np.arange(16) + 0.5,
                (8, 16))  # fmt: skip
    feature_map = torch.arange(8.0).view(2, 4, 1) * torch.tensor([1.0, -2.0, 0.5, 3.0])
    attentions = Attentions(weights, WindowPlan((2, 4), (2, 2), (0, 0)), (4, 4))
    return Seen(view, {"stage1": attentions}, {"stem": principal_components(feature_map)})


def test_attention_marks_token_window_and_the_brightest(seen: Seen) -> None:
    image, sentence = draw_attention_of(seen, "stage1", "head 1", (1, 9))
    assert image.size == (768, 384)
    pixels = np.asarray(image)
    is_token, is_window = ((pixels == colour).all(-1) for colour in (TOKEN, WINDOW))
    rows, columns = np.nonzero(is_token)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 191, 384, 575)
    rows, columns = np.nonzero(is_window)
    assert columns.min() >= 380
    assert columns.max() >= 760
    # Of the window's four tokens, the last is the brightest; outside of the window all is grey.
    brightness = pixels.astype(int).sum(-1)
    assert brightness[300, 680] > brightness[300, 480] + 50
    assert len(set(pixels[100, 100].tolist())) == 1
    assert "row 1 of 2, column 3 of 4" in sentence
    assert "head 1" in sentence
    assert "itself 0.0% of its attention, and at most 100.0% to a token" in sentence
    _, mean = draw_attention_of(seen, "stage1", MEAN, (1, 9))
    assert "itself 12.5% of its attention, and at most 62.5% to a token" in mean


def test_a_head_that_the_stage_does_not_have_is_the_mean(seen: Seen) -> None:
    assert head_names(2) == [MEAN, "head 1", "head 2"]
    assert draw_attention_of(seen, "stage1", "head 3", None)[1] == draw_attention_of(seen, "stage1", MEAN, None)[1]


@pytest.mark.parametrize(("size", "factor"), [((768, 10), 1), ((20, 384), 2), ((1600, 900), 1), ((1, 1), 768)])
def test_small_images_are_enlarged_by_an_integer(size: tuple[int, int], factor: int) -> None:
    assert factor_of(size) == factor
    assert enlarge(Image.new("RGB", size)).size == (size[0] * factor, size[1] * factor)


def test_feature_maps_have_captions_that_are_not_markup(seen: Seen) -> None:
    ((image, caption),) = draw_maps(seen)
    assert caption == "patch embedding: 4 x 2 tokens, 4 channels"
    assert image.size == (384, 192)
    assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 4
    one_by_one = draw_maps(seen, "stem")
    assert [text for _, text in one_by_one[1:]] == [
        "component 1: 100% of the variance",
        "component 2: 0% of the variance",
        "component 3: 0% of the variance",
    ]
    html = maps_as_html([(image, "a <b>")])
    assert html.count("data:image/png;base64,") == 1
    assert "a &lt;b&gt;" in html
    assert "<b>" not in html


def test_tokens_beyond_the_image_are_cut_off(seen: Seen) -> None:
    """Of an image of 14 x 8 pixels, the last token shows half."""
    view = View(seen.view.pixel_values, seen.view.rgb[:, :14], seen.view.rows, seen.view.columns[:14], (8, 14))
    ((image, _),) = draw_maps(Seen(view, seen.attentions, seen.maps))
    changes = np.flatnonzero(np.asarray(image)[0, 1:].astype(int).sum(-1) != np.asarray(image)[0, :-1].sum(-1)) + 1
    assert (changes / image.width * 14).round(1).tolist() == [4, 8, 12]


def test_classes_have_a_legend_that_is_not_markup() -> None:
    classes = np.zeros((8, 10), np.uint8)
    classes[:, 5:] = 2
    shares = [ClassShare(0, "road", 40, 0.5), ClassShare(2, "a <script>", 40, 0.5)]
    shown = Shown(Image.new("RGB", (10, 8), "white"), classes=classes, shares=shares)
    image, legend = draw_classes_of(shown)
    assert image.size == (1000, 800)
    for x, index in ((10, 0), (990, 2)):
        assert image.getpixel((x, 10)) == tuple((255 + int(value)) // 2 for value in colours_of(index))
    assert legend.count("<li>") == 2
    assert "50.0%" in legend
    assert "<script>" not in legend


def test_objects_below_the_threshold_are_left_out() -> None:
    objects = Detections(np.array([[1, 1, 5, 5], [2, 2, 8, 7]]), np.array([1, 0]), np.array([0.9, 0.3]))
    shown = Shown(Image.new("RGB", (10, 8), "white"), objects=objects)
    assert [draw_objects_of(shown, ["cat", "dog"], threshold)[1].count("<li>") for threshold in (0.2, 0.5)] == [2, 1]
    image, legend = draw_objects_of(shown, ["cat", "dog"], 0.95)
    assert legend == "<p>No objects found.</p>"
    assert np.asarray(image).min() == 255
    assert "dog" in draw_objects_of(shown, ["cat", "dog"], 0.5)[1]


def test_a_long_legend_ends_with_a_count() -> None:
    legend = legend_of([(index, f"class {index}", "1%") for index in range(40)], "classes")
    assert legend.count("<li>") == 30
    assert "and 10 more classes" in legend


@pytest.mark.usefixtures("registered")
def test_every_stage_head_and_map_of_a_model_is_drawn(tmp_path: Path) -> None:
    """Also at the corners of an image that windows do not fit."""
    loaded = PageModel.load(str(page_models.save_model(tmp_path, "upernet")), "cpu")
    seen = loaded.show(page_models.save_photo(tmp_path / "photo.png", (50, 33))).seen
    assert seen is not None
    height, width = seen.view.rgb.shape[:2]
    for stage in loaded.stages:
        for head in head_names(loaded.heads(stage)):
            for pixel in ((0, 0), (height - 1, width - 1), None):
                image, _ = draw_attention_of(seen, stage, head, pixel)
                assert image.width / image.height == width / height
    assert len(draw_maps(seen)) == 5
    assert all(len(draw_maps(seen, name)) == 4 for name in seen.maps)
