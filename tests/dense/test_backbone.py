"""The norms of a backbone's maps, and the pyramid on them."""

import pytest
import torch
from torch import nn

import peers
from swinv2 import Swinv2Backbone, Swinv2Config
from swinv2.dense.backbone import FeaturePyramid

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
