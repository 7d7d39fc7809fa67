"""What a training takes in memory, against counts by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swinv2
from swinv2.train.memory import MIB, activations_of_an_image, saved_bytes, training_memory, ways_to_train


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_kept_is_counted_once(device: str) -> None:
    """The images for the first layer; its output, after ReLU, for ReLU itself and two layers more."""

    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.left, self.right = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 3)

        def forward(self, images: Tensor) -> Any:
            hidden = self.first(images).relu()
            return {"logits": torch.cat([self.left(hidden), self.right(hidden)], 1)}

    model = Forked().to(device)
    assert saved_bytes(model, {"images": torch.zeros(5, 4, device=device)}) == 4 * (5 * 4 + 5 * 8)


@pytest.mark.parametrize("precision", [False, True])
def test_checkpointing_keeps_maps_and_one_block(precision: bool) -> None:
    """By hand: three stages, 16 x 16, 8 x 8 and 4 x 4 tokens of 16, 32 and 64 channels."""
    config = swinv2.Swinv2Config(
        image_size=32, patch_size=2, window_size=4, embed_dim=16, depths=[2, 3, 1], num_heads=[1, 2, 4]
    )
    with torch.device("meta"):
        model = swinv2.Swinv2ForImageClassification(config)
    all_kept, some_kept = (
        training_memory(model, 4, in_half=precision, checkpointed=checkpointed)["activations"]
        for checkpointed in (False, True)
    )
    maps = 2 * 256 * 16 + 3 * 64 * 32 + 16 * 64
    width = 2 if precision else 4
    # Inside a block of the first stage: more than its map; the patches and merges outside, less than all of it.
    assert (maps + 256 * 16 * 8) * 4 * width / MIB < some_kept < 0.6 * all_kept


@pytest.mark.parametrize("period", [0, pytest.param(4, marks=pytest.mark.slow)])
def test_a_checkpointed_block_costs_its_input(period: int) -> None:
    """Extra norms or not: one block is computed again at a time, whichever of them is the largest."""
    kept = {}
    for depth in (4, 7, 12):
        config = swinv2.Swinv2Config(
            image_size=32,
            patch_size=2,
            window_size=4,
            embed_dim=16,
            num_heads=[1],
            depths=[depth],
            extra_norm_period=period,
        )
        with torch.device("meta"):
            model = swinv2.Swinv2Model(config)
        kept[depth] = activations_of_an_image(model, checkpointed=True)
    assert kept[7] - kept[4] == 3 * 256 * 16
    assert kept[12] - kept[7] == 5 * 256 * 16


def test_ways_to_train() -> None:
    """What a process has in all is the sum of what it has."""
    config = swinv2.Swinv2Config(image_size=32, patch_size=2, window_size=4, embed_dim=16, depths=[2], num_heads=[1])
    with torch.device("meta"):
        model = swinv2.Swinv2Model(config)
    ways = ways_to_train(model, batch_size=3, processes=2)
    assert [way["checkpointed"] for way in ways] == [False, True]
    for way in ways:
        parts = [value for name, value in way.items() if name not in ("checkpointed", "all")]
        assert way["all"] == pytest.approx(sum(parts), abs=0.5)
        assert "gathered" in way
        found = training_memory(model, 3, checkpointed=way["checkpointed"], shards=2)
        assert way["activations"] == round(found["activations"], 1)
    assert ways[1]["activations"] < ways[0]["activations"]


def test_shards() -> None:
    config = swinv2.Swinv2Config(
        image_size=32, patch_size=2, window_size=4, embed_dim=16, depths=[2, 2], num_heads=[1, 2]
    )
    with torch.device("meta"):
        model = swinv2.Swinv2ForImageClassification(config)
    alone, shared = (training_memory(model, 4, shards=shards) for shards in (0, 8))
    for name in ("weights", "gradients", "optimizer"):
        assert shared[name] == pytest.approx(alone[name] / 8)
    assert shared["activations"] == alone["activations"]
    assert "gathered" not in alone
    block = sum(parameter.numel() for parameter in model.swinv2.encoder.layers[1].blocks[0].parameters())
    assert shared["gathered"] > 3 * block * 2 / MIB
