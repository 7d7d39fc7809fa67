"""What a library cannot compute is refused by name, and what it can is not; one square window in place of several."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import swinv2
from swinv2 import Swinv2Config, Swinv2ForImageClassification
from swinv2.convert import convert
from swinv2.convert.dialects.limits import are_equivalent, with_equivalent_square
from swinv2.convert.write import check_format
from swinv2.errors import UsageError
from swinv2.lengths import as_pair
from swinv2.zoo import CHECKPOINTS


@pytest.mark.parametrize(
    ("fields", "format", "expected"),
    [
        ({"use_absolute_embeddings": True}, "timm", "its absolute position embeddings do not work"),
        ({"mask_padding": True}, "transformers", "cannot hide padding tokens"),
        ({"layer_norm_eps": 1e-6}, "timm", "epsilon of its norms is 1e-05"),
        ({"hidden_act": "relu"}, "torchvision", "its activation is gelu"),
        ({"image_size": (64, 32)}, "transformers", "chooses other windows for a rectangular image_size"),
        ({"image_size": 40}, "microsoft", "does not pad maps as this package does"),
        ({"pretrained_window_sizes": [3, 3]}, "torchvision", "it has no pre-training windows"),
        ({"window_size": 16}, "torchvision", "windows have one size in all stages"),
        (
            {"window_size": [[4, 4], [8, 8]]},
            "torchvision",
            "here 4 x 4 .stage 2: its map or window_size makes it 8 x 8",
        ),
        ({"window_size": (4, 8)}, "transformers", r"windows are square, and of one size .*window_size is \[4, 8\]"),
        ({"window_size": [[8, 8], [4, 4]]}, "microsoft", "windows are square, and of one size in all stages"),
        ({"window_size": (4, 8)}, "mmpretrain", "windows are square .stage 1: 4 x 8; stage 2: 4 x 8"),
        ({"qkv_bias": False}, "torchvision", "queries and values always have a bias"),
        ({"num_channels": 1}, "torchvision", "takes three channels"),
        ({"image_size": 8, "window_size": 2}, "microsoft", "in a window of one token"),
        ({}, "nonsense", "there is no format 'nonsense'; expected one of swinv2, transformers, timm"),
    ],
)
def test_what_a_library_cannot_compute_is_refused(
    fields: dict[str, Any], format: str, expected: str, tmp_path: Path
) -> None:
    """Never left out in silence; and nothing is written."""
    sizes = {"image_size": 64, "window_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4]}
    model = swinv2.Swinv2ForImageClassification(swinv2.Swinv2Config(**sizes | fields))
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match=expected):
        convert(str(tmp_path / "model"), tmp_path / "out", format)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_authors_and_timm_can_express_every_checkpoint(name: str) -> None:
    """And torchvision those whose windows are one size and were learned in place."""
    config = Swinv2Config(**CHECKPOINTS[name].config_fields())
    with torch.device("meta"):
        model = Swinv2ForImageClassification(config)
    for format in ("swinv2", "transformers", "timm", "microsoft", "mmpretrain"):
        check_format(model, format)
    stages = config.stages()
    plain = all(stage.window == stage.learned_window == as_pair("", config.window_size) for stage in stages)
    assert plain == bool(re.search(r"window8-", name))
    if plain:
        check_format(model, "torchvision")
    else:
        with pytest.raises(ValueError, match=r"torchvision cannot compute this model: .*stage"):
            check_format(model, "torchvision")


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ([16, 4, 4, 2], [16, 4, 4, 2]),
        ([16, 8, 4, 2], 16),
        ([[32, 16], 9, 8, 2], 16),
        ([8, 8, 4, 8], 8),
        ([(4, 8)] * 4, [4, 8]),
        (32, 32),
    ],
)
def test_with_equivalent_square(window: Any, expected: Any) -> None:
    """What each stage has counts, not how it is written; one square is left as it is configured."""
    sizes = {"image_size": 64, "embed_dim": 16, "depths": [1] * 4, "num_heads": [1, 2, 4, 8]}
    config = Swinv2Config(**sizes, window_size=window)
    square = with_equivalent_square(config)
    assert square.window_size == expected
    assert square.stages() == config.stages()
    assert are_equivalent(config, expected)
    assert not are_equivalent(config, 2)
