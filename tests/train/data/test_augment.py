"""Images to pixels: what evaluation does is what the saved image processor does, and chance can be repeated."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor

from swinv2.errors import UsageError
from swinv2.images import BrokenImageError
from swinv2.train.data.augment import (
    Pixels,
    decode,
    for_evaluation,
    for_finetuning,
    for_pretraining,
    make_processor,
)
from swinv2.train.data.examples import seeded

RANDOM = "rand-m9-mstd0.5-inc1"

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pixels(height: int = 32, width: int = 32, channels: int = 3) -> Pixels:
    if channels == 3:
        return Pixels((height, width), IMAGENET_MEAN, IMAGENET_STD)
    return Pixels((height, width), (0.4,) * channels, (0.25,) * channels)


class TestDecoding:
    @pytest.mark.parametrize("kind", ["path", "bytes", "array"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_a_image(self, kind: str, channels: int, tmp_path: Path) -> None:
        values = noise(5, 7, 3) if channels == 3 else noise(5, 7)
        file = tmp_path / "picture.png"
        Image.fromarray(values).save(file)
        source = {"path": str(file), "bytes": file.read_bytes(), "array": values}[kind]
        image = decode(source, channels)
        assert isinstance(image, Image.Image)
        assert image.mode == ("RGB" if channels == 3 else "L")
        np.testing.assert_array_equal(np.asarray(image), values)

    def test_a_last_axis_of_one_channel(self) -> None:
        values = noise(5, 7, 1)
        np.testing.assert_array_equal(np.asarray(decode(values, 1)), values[:, :, 0])

    def test_a_colour_file_for_a_grey_model(self) -> None:
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4), (200, 100, 50)).save(buffer, "PNG")
        # ITU-R 601: 0.299 R + 0.587 G + 0.114 B.
        assert set(np.asarray(decode(buffer.getvalue(), 1)).ravel()) == {124}

    def test_four_channels(self) -> None:
        values = noise(5, 7, 4)
        image = decode(values, 4)
        assert isinstance(image, Tensor)
        np.testing.assert_array_equal(image.numpy(), np.moveaxis(values, 2, 0))

    @pytest.mark.parametrize(
        ("values", "channels"),
        [
            (noise(5, 7), 3),
            (noise(5, 7, 4), 3),
            (noise(5, 7, 3), 1),
            (noise(3, 5, 7), 3),
            (noise(5, 7, 3).astype(np.float32), 3),
            (noise(2, 5, 7, 3), 3),
        ],
        ids=lambda value: str(getattr(value, "shape", value)),
    )
    def test_arrays_that_do_not_fit(self, values: np.ndarray, channels: int) -> None:
        with pytest.raises(UsageError, match=rf"expected \(H, W, {channels}\) of uint8"):
            decode(values, channels)

    def test_a_file_for_a_model_of_four_channels(self) -> None:
        with pytest.raises(UsageError, match=r"takes 4 channels, .* arrays \(H, W, 4\)"):
            decode(b"whatever", 4)

    @pytest.mark.parametrize("source", [b"no image", "/no/such/file.png"])
    def test_what_cannot_be_read(self, source: str | bytes) -> None:
        with pytest.raises(BrokenImageError):
            decode(source, 3)


class TestEvaluation:
    """Rounding of fp32 is all that may differ: one level of 255 would be 0.017."""

    @pytest.mark.parametrize("source", [(40, 48), (97, 61), (20, 23), (300, 500), (32, 32), (1, 1)], ids=str)
    @pytest.mark.parametrize(
        ("size", "ratio"), [((32, 32), None), ((48, 32), None), ((32, 32), 0.875), ((32, 32), 0.9), ((31, 31), 1.0)]
    )
    def test_the_saved_processor(
        self, source: tuple[int, int], size: tuple[int, int], ratio: float | None, tmp_path: Path
    ) -> None:
        make_processor(pixels(*size), ratio).save_pretrained(tmp_path)
        processor = AutoImageProcessor.from_pretrained(tmp_path)
        image = Image.fromarray(noise(*source, 3))
        expected = processor(image, return_tensors="pt").pixel_values[0]
        found = for_evaluation(pixels(*size), ratio)(image)
        assert found.shape == (3, *size)
        torch.testing.assert_close(torch.as_tensor(found), expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("channels", [1, 4])
    def test_the_processor_of_other_channels(self, channels: int) -> None:
        values = noise(40, 48, channels)
        image = Image.fromarray(values[:, :, 0]) if channels == 1 else values
        # Older versions of transformers do not see by themselves where four channels are.
        more = {} if channels == 1 else {"input_data_format": "channels_last"}
        expected = make_processor(pixels(channels=channels))(image, return_tensors="pt", **more).pixel_values[0]
        found = for_evaluation(pixels(channels=channels))(decode(values, channels))
        torch.testing.assert_close(torch.as_tensor(found), expected, rtol=0, atol=1e-6)

    def test_the_values_themselves(self) -> None:
        values = noise(32, 32, 3)
        found = for_evaluation(pixels())(Image.fromarray(values))
        expected = (values / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
        np.testing.assert_allclose(found.numpy(), np.moveaxis(expected, 2, 0), atol=1e-5)

    def test_where_the_centre_is(self) -> None:
        """32 of 35 rows: one is left out at the top and two at the bottom; and of 36 columns two on each side."""
        values = np.zeros((35, 36, 3), np.uint8)
        values[1:33, 2:34] = 255
        found = for_evaluation(pixels(), 0.9)(Image.fromarray(values))
        assert torch.unique(torch.as_tensor(found)[0]).numel() == 1

    @pytest.mark.parametrize("ratio", [0.0, -0.5, 1.1])
    def test_a_ratio_that_is_none(self, ratio: float) -> None:
        with pytest.raises(UsageError, match="crop_ratio is"):
            for_evaluation(pixels(), ratio)

    def test_a_crop_for_a_rectangular_model(self) -> None:
        with pytest.raises(UsageError, match="needs a square model; this one takes 48 x 32"):
            for_evaluation(pixels(48, 32), 0.9)


class TestTraining:
    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_shapes_and_repeatable_chance(self, channels: int) -> None:
        options = {"auto_augment": RANDOM} if channels == 3 else {}
        takes = pixels(24, 32, channels)
        image = decode(noise(40, 48, channels), channels)
        transforms = for_pretraining(takes), for_finetuning(takes, erase_probability=0.5, **options)
        for transform in transforms:
            drawn = []
            for seed in (1, 1, 2):
                with seeded(seed):
                    drawn.append(transform(image))
            assert drawn[0].shape == (channels, 24, 32)
            assert drawn[0].dtype == torch.float32
            assert torch.isfinite(drawn[0]).all()
            assert torch.equal(drawn[0], drawn[1])
            assert not torch.equal(drawn[0], drawn[2])

    @pytest.mark.parametrize("options", [{"auto_augment": RANDOM}, {"color_jitter": 0.4}], ids=str)
    def test_colours_change(self, options: dict[str, object]) -> None:
        image = Image.fromarray(noise(40, 48, 3))
        plain, changed = for_finetuning(pixels()), for_finetuning(pixels(), **options)
        differing = 0
        for seed in range(24):
            with seeded(seed):
                one = plain(image)
            with seeded(seed):
                differing += not torch.equal(changed(image), one)
        # A policy of RandAugment leaves an image as it is in at least a quarter of all cases.
        assert differing >= 8

    @pytest.mark.parametrize("description", ["rand-m10-inc1", "v0"])
    def test_full_strength(self, description: str) -> None:
        """Pillow refuses to posterize to no bits, which timm asks of it now and then."""
        image = Image.fromarray(noise(32, 32, 3))
        transform = for_finetuning(pixels(), auto_augment=description)
        for seed in range(100):
            with seeded(seed):
                assert torch.isfinite(transform(image)).all()

    def test_a_rectangle_is_erased(self) -> None:
        image = Image.fromarray(noise(40, 48, 3))
        with seeded(0):
            whole = for_finetuning(pixels())(image)
        with seeded(0):
            erased = for_finetuning(pixels(), erase_probability=1.0)(image)
        changed = (torch.as_tensor(whole) != torch.as_tensor(erased)).all(0)
        rows, columns = changed.any(1).nonzero().ravel(), changed.any(0).nonzero().ravel()
        box = changed[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.all()
        # timm's bounds: 2% to a third of the area.
        assert 0.01 * 32 * 32 < box.numel() < 0.36 * 32 * 32

    def test_crops_of_a_padded_image(self) -> None:
        values = noise(8, 8, 3)
        takes = Pixels((8, 8), (0.0,) * 3, (1.0,) * 3)
        padded = np.pad(values, ((2, 2), (2, 2), (0, 0)), mode="reflect")
        crops = [padded[top : top + 8, left : left + 8] for top in range(5) for left in range(5)]
        possible = {crop.tobytes() for crop in crops} | {crop[:, ::-1].tobytes() for crop in crops}
        transform, seen = for_finetuning(takes, crop_padding=2), set()
        for seed in range(20):
            with seeded(seed):
                drawn = transform(Image.fromarray(values))
            levels = np.moveaxis((drawn * 255).round().to(torch.uint8).numpy(), 0, 2)
            seen.add(np.ascontiguousarray(levels).tobytes())
        assert seen <= possible
        assert len(seen) > 10

    def test_the_scale_of_crops(self) -> None:
        """A crop of the whole area of a square is the image, perhaps mirrored."""
        values = noise(32, 32, 3)
        takes = Pixels((32, 32), (0.0,) * 3, (1.0,) * 3)
        shrunk = 0
        for make in (for_pretraining, for_finetuning):
            for seed in range(12):
                with seeded(seed):
                    drawn = make(takes, scale=(0.999, 1.0))(Image.fromarray(values))
                levels = np.moveaxis((drawn * 255).round().to(torch.uint8).numpy(), 0, 2)
                shrunk += not (np.array_equal(levels, values) or np.array_equal(levels, values[:, ::-1]))
        # Another shape than a square does not fit in: torchvision then takes the whole image.
        assert shrunk == 0

    @pytest.mark.parametrize(
        ("options", "channels", "sentence"),
        [
            ({"auto_augment": RANDOM, "color_jitter": 0.4}, 3, "no effect with auto_augment"),
            ({"auto_augment": RANDOM}, 1, "need 3 channels; the model has 1"),
            ({"color_jitter": 0.4}, 4, "need 3 channels; the model has 4"),
            ({"auto_augment": "random"}, 3, "auto_augment is 'random'"),
            ({"auto_augment": "rand-x9"}, 3, "auto_augment is 'rand-x9'"),
            ({"auto_augment": "best"}, 3, "such as rand-m9"),
            ({"color_jitter": -0.1}, 3, "color_jitter is -0.1"),
            ({"crop_padding": -1}, 3, "crop_padding -1"),
            ({"erase_probability": 1.5}, 3, "erase_probability 1.5"),
        ],
    )
    def test_refusals(self, options: dict[str, object], channels: int, sentence: str) -> None:
        with pytest.raises(UsageError, match=sentence):
            for_finetuning(pixels(channels=channels), **options)


@pytest.mark.parametrize(
    ("mean", "std", "sentence"),
    [((0.5,), (0.5, 0.5), "1 channels, image_std 2"), ((0.5,), (0.0,), "deviations above 0")],
)
def test_pixels_that_cannot_be(mean: tuple[float, ...], std: tuple[float, ...], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Pixels((4, 4), mean, std)
