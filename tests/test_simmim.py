"""SimMIM's mask, targets, loss and distance, against values worked out here from the paper's and the authors' words."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

import peers
from swinv2 import Swinv2Config, Swinv2ForMaskedImageModeling
from swinv2.simmim import average_distance, draw_mask, local_statistics, mask_of_pixels, normalise_targets

SMALL = {"image_size": 32, "embed_dim": 24, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestMask:
    def test_the_authors_sizes(self) -> None:
        """192 pixels, blocks of 32, patches of 4, 60%: 22 of 36 blocks, each 8 x 8 patches."""
        mask = draw_mask((48, 48), (8, 8), 0.6, generator())
        blocks = mask.view(6, 8, 6, 8).permute(0, 2, 1, 3).reshape(36, 64)
        assert blocks.all(1).sum() == 22
        assert (~blocks).all(1).sum() == 14

    @pytest.mark.parametrize("ratio", [0.0, 0.1, 0.4, 0.5, 0.6, 0.75, 1.0])
    @pytest.mark.parametrize("count", [1, 5, 10, 36, 100])
    def test_the_share_is_rounded_up(self, ratio: float, count: int) -> None:
        exact = int(ratio * 100) * count  # in hundredths of blocks
        assert draw_mask((1, count), (1, 1), ratio, generator()).sum() == -(-exact // 100)

    @given(
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        st.floats(0, 1),
    )
    def test_any_grid(self, grid: tuple[int, int], block: tuple[int, int], ratio: float) -> None:
        mask = draw_mask(grid, block, ratio, generator())
        assert mask.shape == grid
        for row in range(grid[0]):
            for column in range(grid[1]):
                corner = row - row % block[0], column - column % block[1]
                assert mask[row, column] == mask[corner]

    def test_equal_seeds_draw_equal_masks_and_others_do_not(self) -> None:
        one, same, other = (draw_mask((24, 24), (4, 4), 0.5, generator(seed)) for seed in (1, 1, 2))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    def test_every_block_is_masked_equally_often(self) -> None:
        source = generator()
        shares = torch.stack([draw_mask((3, 3), (1, 1), 0.6, source).float() for _ in range(3000)]).mean(0)
        # ceil(5.4) = 6 of 9; the deviation of a share of 3000 draws is 0.0086.
        assert (shares - 6 / 9).abs().max() < 5 * 0.0086

    @pytest.mark.parametrize("ratio", [-0.1, 1.1, math.nan])
    def test_a_share_that_is_none(self, ratio: float) -> None:
        with pytest.raises(ValueError, match="share of masked blocks"):
            draw_mask((4, 4), (2, 2), ratio)

    def test_a_block_of_nothing(self) -> None:
        with pytest.raises(ValueError, match="at least 1"):
            draw_mask((4, 4), (0, 2), 0.5)


def slow_normalise(image: np.ndarray, window: int) -> np.ndarray:
    """Pixel by pixel, in numpy's double precision."""
    half, out = window // 2, np.empty_like(image)
    for channel, row, column in np.ndindex(*image.shape):
        top, left = max(row - half, 0), max(column - half, 0)
        around = image[channel, top : row + half + 1, left : column + half + 1]
        variance = around.var(ddof=1) if around.size > 1 else 0.0
        out[channel, row, column] = (image[channel, row, column] - around.mean()) / math.sqrt(variance + 1e-6)
    return out


class TestTargets:
    @pytest.mark.parametrize("size", [(9, 14), (60, 50), (1, 1)], ids=str)
    @pytest.mark.parametrize("window", [3, 7, 47])
    def test_against_numpy(self, size: tuple[int, int], window: int) -> None:
        images = torch.randn(2, 3, *size, generator=generator(), dtype=torch.float64)
        expected = np.stack([slow_normalise(image.numpy(), window) for image in images])
        np.testing.assert_allclose(normalise_targets(images, window).numpy(), expected, atol=1e-9)

    def test_half_precision_is_computed_in_fp32(self) -> None:
        images = torch.randn(1, 3, 20, 20, generator=generator()).bfloat16()
        targets = normalise_targets(images, 5)
        assert targets.dtype == torch.float32
        torch.testing.assert_close(targets, normalise_targets(images.float(), 5))

    def test_it_can_be_undone(self) -> None:
        images = torch.randn(1, 3, 20, 20, generator=generator())
        mean, deviation = local_statistics(images, 5)
        torch.testing.assert_close(normalise_targets(images, 5) * deviation + mean, images)

    @pytest.mark.parametrize("window", [0, 1, 4])
    def test_a_window_without_a_middle(self, window: int) -> None:
        with pytest.raises(ValueError, match="odd number"):
            normalise_targets(torch.zeros(1, 3, 8, 8), window)


def slow_loss(images: Tensor, drawn: Tensor, mask: Tensor, patch: int) -> float:
    """Sum over masked pixels of |target - drawn|, over their number and over the channels."""
    total, count = 0.0, 0
    patches_in_row = -(-images.shape[3] // patch)
    for index, _, row, column in np.ndindex(len(images), 1, *images.shape[2:]):
        if mask[index, row // patch * patches_in_row + column // patch]:
            count += 1
            total += (images[index, :, row, column] - drawn[index, :, row, column]).abs().sum().item()
    return total / (count + 1e-5) / images.shape[1]


class TestLoss:
    @pytest.mark.parametrize("norm_targets", [0, 7])
    @pytest.mark.parametrize("size", [(32, 32), (22, 37)], ids=str)
    def test_of_the_model(self, norm_targets: int, size: tuple[int, int]) -> None:
        config = Swinv2Config(**SMALL, encoder_stride=8, norm_targets=norm_targets)
        model = peers.draw_weights(Swinv2ForMaskedImageModeling(config)).eval()
        images = peers.images(size)
        grid = -(-size[0] // 4), -(-size[1] // 4)
        mask = torch.stack([draw_mask(grid, (2, 2), 0.6, generator(seed)).flatten() for seed in range(2)])
        with torch.no_grad():
            outputs = model(images, bool_masked_pos=mask)
        targets = images
        if norm_targets:
            targets = torch.from_numpy(np.stack([slow_normalise(image.double().numpy(), 7) for image in images]))
        expected = slow_loss(targets, outputs.reconstruction, mask, 4)
        assert outputs.loss.item() == pytest.approx(expected, rel=1e-5)

    def test_what_is_visible_does_not_count(self) -> None:
        mask = torch.zeros(1, 16, dtype=torch.bool)
        mask[0, 5] = True
        pixels = mask_of_pixels(mask, (4, 4), (16, 16))
        assert pixels.sum() == 16
        assert pixels[0, 0, 4:8, 4:8].all()

    @pytest.mark.parametrize("window", [1, 2, 46])
    def test_a_config_that_cannot_be(self, window: int) -> None:
        with pytest.raises(ValueError, match="norm_targets"):
            Swinv2Config(norm_targets=window)


class TestDistance:
    @pytest.mark.parametrize("seed", range(5))
    def test_against_scipy(self, seed: int) -> None:
        mask = draw_mask((40, 56), (8, 8), 0.6, generator(seed))
        expected = ndimage.distance_transform_edt(mask.numpy())[mask.numpy()].mean()
        assert average_distance(mask) == pytest.approx(expected, rel=1e-6)

    def test_the_ends(self) -> None:
        assert average_distance(torch.zeros(4, 4, dtype=torch.bool)) == 0.0
        assert average_distance(torch.ones(4, 4, dtype=torch.bool)) == math.inf
