"""What a model sees of an image: the processor's own pixels, and where they come from."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessor, ViTImageProcessor

from swinv2.errors import UsageError
from swinv2.inspect.view import look

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def dot(height: int, width: int, x: int, y: int, radius: int = 0) -> Image.Image:
    """Black, with one white square."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1] = 255
    return Image.fromarray(pixels)


def resizing(height: int = 24, width: int = 36) -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": height, "width": width}, image_mean=MEAN, image_std=STD)


def cropping() -> BitImageProcessor:
    return BitImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 24, "width": 36})


def test_the_image_is_what_enters_the_model() -> None:
    image = noise(24, 36)
    view = look(image, resizing())
    assert np.array_equal(view.rgb, np.asarray(image))
    expected = (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / (
        torch.tensor(STD).view(3, 1, 1)
    )
    torch.testing.assert_close(view.pixel_values[0], expected)
    assert np.abs(view.rows - (np.arange(24) + 0.5)).max() < 1e-3
    assert view.box == pytest.approx((0, 0, 36, 24), abs=1e-3)


@pytest.mark.parametrize(
    "processor",
    [
        ViTImageProcessor(do_normalize=False, do_resize=False),
        ViTImageProcessor(do_normalize=False, do_rescale=False, do_resize=False),
        ViTImageProcessor(rescale_factor=1 / 127.5, do_resize=False),
        ViTImageProcessor(do_rescale=False, image_mean=[124, 116, 104], image_std=[58, 57, 57], do_resize=False),
    ],
)
def test_images_of_processors_that_normalise_otherwise(processor: ViTImageProcessor) -> None:
    image = noise(16, 20)
    assert np.abs(look(image, processor).rgb.astype(int) - np.asarray(image)).max() <= 1


def test_grey_is_seen_as_grey() -> None:
    image = noise(24, 36).convert("L")
    view = look(image, ViTImageProcessor(size={"height": 24, "width": 36}, image_mean=[0.4], image_std=[0.2]))
    assert view.pixel_values.shape == (1, 1, 24, 36)
    assert np.array_equal(view.rgb, np.asarray(image.convert("RGB")))
    assert view.box == pytest.approx((0, 0, 36, 24), abs=1e-3)


@pytest.mark.parametrize("processor", [resizing(), cropping()], ids=["resized", "cropped"])
@pytest.mark.parametrize("point", [(100, 75), (60, 40), (139, 109)])
def test_a_point_is_found_where_the_processor_puts_it(processor: object, point: tuple[int, int]) -> None:
    """A white square around the point is brightest at the pixel that is found."""
    view = look(dot(150, 200, *point, radius=4), processor)
    row, column = view.find(point)
    brightness = view.rgb.astype(int).sum(-1)
    brightest = np.argwhere(brightness == brightness.max()).mean(0)
    assert abs(brightest[0] - row) <= 1
    assert abs(brightest[1] - column) <= 1


@pytest.mark.parametrize("size", [(150, 200), (7, 5), (24, 36), (1, 1), (1000, 30)])
def test_every_corner_of_a_resized_image_is_seen(size: tuple[int, int]) -> None:
    view = look(noise(*size), resizing())
    height, width = size
    assert view.find((0, 0))[0] <= 24 // height
    assert view.find((0, 0))[1] <= 36 // width
    row, column = view.find((width - 1, height - 1))
    assert row >= 23 - 24 // height
    assert column >= 35 - 36 // width
    assert view.find(None) == (12, 18)


def test_what_is_cut_off_is_refused_with_what_is_seen() -> None:
    # 150 x 200 becomes 48 x 64; of it 24 x 36 are kept, from 12 and 14: a scale of 3.125.
    view = look(noise(150, 200), cropping())
    assert view.box == pytest.approx((14 * 3.125, 12 * 3.125, 50 * 3.125, 36 * 3.125), abs=0.1)
    with pytest.raises(UsageError, match=r"of 200 x 150 pixels the model sees X from 44 to 155 and Y from 3[78] "):
        view.find((5, 75))
    with pytest.raises(UsageError, match=r"--token is 200,0, but the image has 200 x 150 pixels"):
        view.find((200, 0))
