"""The norms of a backbone's maps, and the pyramid on them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import peers
from swinv2 import Swinv2Backbone, Swinv2Config
from swinv2.dense import load_backbone
from swinv2.dense.detectors import FeaturePyramid
from swinv2.errors import UsageError

CONFIG = {"image_size": 64, "embed_dim": 16, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4}


def make(**fields: object) -> Swinv2Backbone:
    config = Swinv2Config(**CONFIG, out_features=["stem", "stage2"], drop_path_rate=0.0, **fields)
    return peers.draw_weights(Swinv2Backbone(config).eval())


@pytest.mark.parametrize("is_training", [False, True])
def test_norms_of_the_maps(is_training: bool) -> None:
    plain, normed = make().train(is_training), make(norm_feature_maps=True).train(is_training)
    assert list(normed.hidden_states_norms) == ["stem", "stage2"]
    plain.load_state_dict(normed.state_dict(), strict=False)
    images = peers.images((60, 72))
    maps, expected = (model(images, output_hidden_states=True) for model in (normed, plain))
    for name, ours, before in zip(normed.out_features, maps.feature_maps, expected.feature_maps, strict=True):
        norm = normed.hidden_states_norms[name]
        assert torch.allclose(ours, norm(before.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), atol=1e-6)
    # The network itself goes on without them.
    for ours, theirs in zip(maps.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(ours, theirs)
    sum(each.square().sum() for each in maps.feature_maps).backward()
    assert all(parameter.grad is not None for parameter in normed.parameters())


def test_a_map_without_a_norm() -> None:
    backbone = make(norm_feature_maps=True)
    backbone.out_features = ["stem", "stage1"]
    with pytest.raises(ValueError, match="the map 'stage1' has no norm: the backbone was built for stem, stage2"):
        backbone(peers.images((64, 64)))


def test_they_are_off_by_default() -> None:
    assert not any("norms" in name for name in make().state_dict())
    with pytest.raises(ValueError, match="norm_feature_maps is 1; expected True or False"):
        Swinv2Config(norm_feature_maps=1)


def test_new_norms_change_only_scale_and_offset() -> None:
    norms = Swinv2Backbone(Swinv2Config(**CONFIG, norm_feature_maps=True)).hidden_states_norms
    for norm in norms.children():
        assert isinstance(norm, nn.LayerNorm)
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        assert torch.equal(norm.bias, torch.zeros_like(norm.bias))


def test_a_pyramid() -> None:
    pyramid = FeaturePyramid(make(), 24)
    levels = pyramid(peers.images((64, 96)))
    assert {name: tuple(level.shape) for name, level in levels.items()} == {
        "0": (2, 24, 16, 24),
        "1": (2, 24, 8, 12),
        "pool": (2, 24, 4, 6),
    }


SIZES = [(64, 96), (40, 70), (64, 96), (33, 20)]


def padded_batch(noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of `SIZES` in one batch, padded with noise, and its mask."""
    batch = torch.randn(len(SIZES), 3, 64, 96, generator=torch.Generator().manual_seed(1)) * noise
    mask = torch.zeros(len(SIZES), 64, 96, dtype=torch.long)
    for index, (height, width) in enumerate(SIZES):
        batch[index, :, :height, :width] = peers.images((height, width), count=4)[index]
        mask[index, :height, :width] = 1
    return batch, mask


class TestPaddedBatches:
    @pytest.mark.parametrize("norms", [False, True])
    def test_an_image_has_the_maps_that_it_has_alone(self, norms: bool) -> None:
        """Whatever the padding is, and whatever else is in the batch; and so are the gradients."""
        backbone, (batch, mask) = make(norm_feature_maps=norms), padded_batch(noise=100.0)
        batch.requires_grad_()
        together = backbone(batch, pixel_mask=mask).feature_maps
        assert [tuple(each.shape) for each in together] == [(4, 16, 16, 24), (4, 32, 8, 12)]
        for index, (height, width) in enumerate(SIZES):
            alone = backbone(batch[index : index + 1, :, :height, :width].detach()).feature_maps
            for ours, expected in zip(together, alone, strict=True):
                rows, columns = expected.shape[2:]
                inside = ours[index : index + 1, :, :rows, :columns]
                assert (inside - expected).abs().max() < 1e-5 * expected.abs().max()
                assert ours[index].abs().sum().item() == pytest.approx(inside.abs().sum().item(), rel=1e-5)
        sum(each.square().sum() for each in together).backward()
        assert batch.grad[1, :, 40:].abs().max() == 0
        assert batch.grad[1, :, :40, :70].abs().max() > 0
        # Without the mask, padding changes the answer.
        assert not torch.allclose(backbone(batch).feature_maps[1][1, :, :5, :8], together[1][1, :, :5, :8], atol=1e-3)

    def test_a_mask_of_whole_images_changes_nothing(self) -> None:
        backbone, images = make(), peers.images((64, 96))
        masked = backbone(images, pixel_mask=torch.ones(2, 64, 96), output_hidden_states=True)
        for ours, expected in zip(masked.feature_maps, backbone(images).feature_maps, strict=True):
            assert torch.equal(ours, expected)
        assert masked.hidden_states is not None

    def test_masks_that_are_wrong(self) -> None:
        backbone, (batch, mask) = make(), padded_batch(0.0)
        with pytest.raises(ValueError, match=r"pixel_mask has shape \(4, 96, 64\); expected \(4, 64, 96\)"):
            backbone(batch, pixel_mask=mask.transpose(1, 2))
        with pytest.raises(ValueError, match=r"pixel_mask has shape \(7, 5\)"):
            backbone(batch, pixel_mask=torch.ones(7, 5))
        backbone.config.output_hidden_states = True
        with pytest.raises(ValueError, match="of images of several sizes do not fit into one tensor"):
            backbone(batch, pixel_mask=mask)
        backbone.config.output_hidden_states = False
        for wrong in (mask.flip(2), mask * 0):
            with pytest.raises(ValueError, match="pixel_mask is not a rectangle at the top left of each image"):
                backbone(batch, pixel_mask=wrong)
        with pytest.raises(ValueError, match="of images of several sizes do not fit into one tensor"):
            backbone(batch, pixel_mask=mask, output_hidden_states=True)

    @pytest.mark.parametrize("size", [(64, 96), (33, 20), (50, 97), (3, 2)])
    def test_sizes_of_the_maps(self, size: tuple[int, int]) -> None:
        backbone = make()
        maps = backbone(peers.images(size)).feature_maps
        assert [tuple(each.shape[2:]) for each in maps] == [backbone.grids(size)[name] for name in ("stem", "stage2")]


@pytest.mark.parametrize(
    ("image_size", "window", "expected"),
    [
        (1536, 32, [(32, 32), (32, 32), (32, 32), (24, 24)]),
        # 128, 64, 32 and 16 tokens: 12 pads the first to 132, and the others by more than a quarter.
        (512, 12, [(12, 12), (8, 8), (8, 8), (8, 8)]),
        (512, 16, [(16, 16)] * 4),
        # 200, 100, 50 and 25 tokens; the configuration counts 199, 99, 49 and 24.
        (799, 24, [(24, 24), (20, 20), (17, 17), (13, 13)]),
        ((800, 1333), 7, [(7, 7)] * 4),
        ((64, 256), (8, 16), [(8, 16), (8, 16), (4, 16), (2, 8)]),
    ],
)
def test_windows_that_fit(image_size: Any, window: Any, expected: list[tuple[int, int]]) -> None:
    config = Swinv2Config()
    assert config.fitted_windows(image_size, window) == expected
    for stage, side in zip(config.resized(image_size, expected).stages(), expected, strict=True):
        assert stage.window == side


@given(
    image_size=st.tuples(st.integers(32, 1600), st.integers(32, 1600)),
    window=st.one_of(st.integers(1, 48), st.tuples(st.integers(1, 48), st.integers(1, 48))),
)
def test_windows_pad_little_or_least(image_size: tuple[int, int], window: Any) -> None:
    config = Swinv2Config(image_size=image_size, window_size=window)
    for index, found in enumerate(config.fitted_windows(image_size, window)):
        grid = [math.ceil(math.ceil(length / 4) / 2**index) for length in image_size]
        most = config.stages()[index].window

        def padded(axis: int, side: int) -> int:
            return math.ceil(grid[axis] / side) * side  # noqa: B023 - called in this turn

        is_little = padded(0, most[0]) * padded(1, most[1]) <= 1.25 * grid[0] * grid[1]
        for axis in (0, 1):
            others = range(math.ceil(most[axis] / 2), most[axis] + 1)
            least = min(padded(axis, side) for side in others)
            assert found[axis] in others
            assert found[axis] == most[axis] if is_little else padded(axis, found[axis]) == least


def test_a_backbone_of_another_size_has_windows_that_fit(tmp_path: Path) -> None:
    config = Swinv2Config(image_size=64, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4)
    Swinv2Backbone(config).save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path, 96, 8)
    # 24, 12, 6 and 3 tokens.
    assert [stage.window for stage in backbone.config.stages()] == [(8, 8), (6, 6), (6, 6), (3, 3)]
    assert [stage.learned_window for stage in backbone.config.stages()] == [(4, 4), (4, 4), (4, 4), (2, 2)]
    given = load_backbone(tmp_path, 96, [8, 8, 4, 2])
    assert [stage.window for stage in given.config.stages()] == [(8, 8), (8, 8), (4, 4), (2, 2)]
    assert [stage.window for stage in load_backbone(tmp_path, 96, (8, 8)).config.stages()][1] == (6, 6)
    # Its own size changes nothing.
    assert [stage.window for stage in load_backbone(tmp_path, 64).config.stages()] == [
        stage.window for stage in config.stages()
    ]
    with pytest.raises(UsageError, match="these sizes are impossible: image_size is 0"):
        load_backbone(tmp_path, 0)
