"""`swinv2 reconstruct`: what is hidden, what is drawn, and what cannot be."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import peers
import swinv2
from swinv2.cli import app
from swinv2.errors import UsageError
from swinv2.train.data.augment import Pixels, make_processor
from swinv2.train.reconstruct import reconstruct

GREY = 128
SCALE = 6
"""Images of 32 pixels are drawn with a side of 192."""

FIELDS = {"image_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": [1, 1, 1]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    config = swinv2.Swinv2Config(**FIELDS, num_heads=[1, 2, 4], encoder_stride=8)
    peers.draw_weights(swinv2.Swinv2ForMaskedImageModeling(config)).save_pretrained(folder)
    make_processor(Pixels((32, 32), (0.5,) * 3, (0.5,) * 3)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    paths = [folder / f"{index}.png" for index in range(2)]
    for path in paths:
        # No pixel is grey by itself.
        Image.fromarray(generator.integers(0, 100, (32, 32, 3), np.uint8)).save(path)
    return paths


def hidden(path: Path, row: int = 0) -> np.ndarray:
    """Which pixels of an image are hidden (32, 32): grey in the second column of the sheet."""
    with Image.open(path) as sheet:
        top, left, side = 42 + 232 * row, 224, 32 * SCALE
        tile = np.asarray(sheet.convert("RGB"))[top : top + side : SCALE, left : left + side : SCALE]
    return (tile == GREY).all(-1)


def test_the_share_that_was_asked_for_is_hidden_in_blocks(model: str, dataset: list[Path], tmp_path: Path) -> None:
    for ratio, blocks in ((0.6, 10), (0.25, 4)):
        reconstruct(dataset, model, tmp_path / "drawn.png", mask_ratio=ratio, device="cpu")
        # Sixteen blocks of 8 pixels, as one token of the last stage covers, in each of two images.
        for row in range(2):
            masked = hidden(tmp_path / "drawn.png", row).reshape(4, 8, 4, 8)
            assert (masked == masked[:, :1, :, :1]).all()
            assert masked[:, 0, :, 0].sum() == blocks


def test_a_seed_hides_the_same_again_and_another_hides_other_blocks(
    model: str, dataset: list[Path], tmp_path: Path
) -> None:
    losses = [
        reconstruct(dataset, model, tmp_path / f"{run}.png", seed=seed, device="cpu")
        for run, seed in enumerate((1, 1, 2))
    ]
    assert losses[0] == losses[1] != losses[2]
    first, again, other = ((tmp_path / f"{run}.png").read_bytes() for run in range(3))
    assert first == again != other


def test_the_loss_is_the_mean_error_over_what_is_hidden(model: str, dataset: list[Path], tmp_path: Path) -> None:
    """Of a model that draws black everywhere: the mean distance of hidden pixels from black."""
    loaded = swinv2.Swinv2ForMaskedImageModeling.from_pretrained(model)
    with torch.no_grad():
        for parameter in loaded.decoder.parameters():
            parameter.zero_()
        # Black is -1 after the normalisation by mean and deviation of one half.
        next(module for module in loaded.decoder.modules() if hasattr(module, "bias")).bias.fill_(-1.0)
    loaded.save_pretrained(tmp_path / "black")
    make_processor(Pixels((32, 32), (0.5,) * 3, (0.5,) * 3)).save_pretrained(tmp_path / "black")
    loss, _ = reconstruct(dataset[:1], str(tmp_path / "black"), tmp_path / "drawn.png", device="cpu")
    with Image.open(dataset[0]) as image:
        pixels = np.asarray(image)
    masked = hidden(tmp_path / "drawn.png")
    assert loss == pytest.approx(pixels[masked].mean() / 127.5, rel=1e-4)


def test_one_channel_is_drawn_in_grey(dataset: list[Path], tmp_path: Path) -> None:
    config = swinv2.Swinv2Config(**FIELDS, num_heads=[1, 2, 4], encoder_stride=8, num_channels=1)
    peers.draw_weights(swinv2.Swinv2ForMaskedImageModeling(config)).save_pretrained(tmp_path / "grey")
    make_processor(Pixels((32, 32), (0.5,), (0.5,))).save_pretrained(tmp_path / "grey")
    reconstruct(dataset, str(tmp_path / "grey"), tmp_path / "drawn.png", device="cpu")
    with Image.open(tmp_path / "drawn.png") as sheet, Image.open(dataset[0]) as image:
        drawn = np.asarray(sheet.convert("RGB"))[42 : 42 + 32 * SCALE : SCALE, 16 : 16 + 32 * SCALE : SCALE]
        assert np.array_equal(drawn, np.asarray(image.convert("L").convert("RGB")))


def test_a_broken_image_and_a_block_that_does_not_fit(model: str, dataset: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"no image can be read; the first one, .*broken.png"):
        reconstruct([broken], model, tmp_path / "drawn.png", device="cpu")
    with pytest.raises(UsageError, match="the mask block is 3; expected a multiple of the patch size"):
        reconstruct(dataset, model, tmp_path / "drawn.png", mask_block=3, device="cpu")
    assert not (tmp_path / "drawn.png").exists()
    _, left_out = reconstruct([broken, *dataset], model, tmp_path / "drawn.png", device="cpu")
    assert [image.path for image in left_out] == [broken]
    assert (tmp_path / "drawn.png").exists()


def test_the_command_says_where_the_image_is(model: str, dataset: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "folder" / "drawn.png"
    done = CliRunner().invoke(app, ["reconstruct", str(dataset[0]), "--model", model, "--output", str(output)])
    assert done.exit_code == 0
    assert "mean error over masked pixels" in done.stderr
    assert output.name in done.stderr
    assert output.is_file()
