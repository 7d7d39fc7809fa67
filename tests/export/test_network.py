"""The network for exporters answers as the network, to the last digits."""

from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import peers
from export_models import FIELDS
from swinv2 import (
    Swinv2Backbone,
    Swinv2Config,
    Swinv2ForImageClassification,
    Swinv2ForMaskedImageModeling,
    Swinv2Model,
)
from swinv2.errors import UsageError
from swinv2.export import network
from swinv2.export.network import prepare


def assert_same(model: Any, size: tuple[int, int], fuses: bool = True, **inputs: Tensor) -> None:
    """Compares the two in fp64, so that an error of a position or a mask shows."""
    model = peers.draw_weights(model).double().eval()
    prepared = prepare(model, size, fuses)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected, found = model(images, **inputs), prepared(images, **inputs)
    assert list(expected) == list(found)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("most_biases", [2**22, 1], ids=["every window", "by kinds"])
@pytest.mark.parametrize("fuses", [True, False])
@pytest.mark.parametrize("mask_padding", [True, False])
@pytest.mark.parametrize("size", [(64, 64), (70, 90), (33, 130)])
def test_answers_of_a_classifier(
    size: tuple[int, int], mask_padding: bool, fuses: bool, most_biases: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "MOST_BIASES", most_biases)
    config = Swinv2Config(**FIELDS, mask_padding=mask_padding, output_hidden_states=True)
    assert_same(Swinv2ForImageClassification(config), size, fuses)


@pytest.mark.parametrize(
    "fields",
    [
        {"window_size": (4, 8)},
        {"window_size": [8, 4]},
        {"window_size": 5, "pretrained_window_sizes": [3, 4]},
        {"extra_norm_period": 1},
        {"qkv_bias": False, "hidden_act": "relu"},
        {"use_absolute_embeddings": True},
        {"patch_size": (2, 4)},
    ],
    ids=str,
)
def test_fields_that_change_the_network(fields: dict[str, Any]) -> None:
    config = Swinv2Config(**(FIELDS | {"depths": [2, 3]} | fields))
    assert_same(Swinv2ForImageClassification(config), (64, 64))


def test_every_class() -> None:
    config = Swinv2Config(**FIELDS, encoder_stride=8, out_features=["stem", "stage1", "stage2"], norm_feature_maps=True)
    mask = torch.arange(2 * 18 * 15).reshape(2, -1) % 3 == 0
    assert_same(Swinv2Backbone(config), (70, 60))
    assert_same(Swinv2Model(config), (70, 60))
    assert_same(Swinv2ForMaskedImageModeling(config), (70, 60), bool_masked_pos=mask)


@hypothesis.given(
    grid=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    window=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    data=st.data(),
)
@hypothesis.settings(deadline=None, max_examples=25)
def test_any_windows(grid: tuple[int, int], window: tuple[int, int], data: st.DataObject) -> None:
    most = data.draw(st.sampled_from([1, 2**22]))
    fields: dict[str, Any] = FIELDS | {"patch_size": 2, "window_size": window, "image_size": (24, 24)}
    config = Swinv2Config(**fields, mask_padding=data.draw(st.booleans()))
    before, network.MOST_BIASES = network.MOST_BIASES, most
    try:
        assert_same(Swinv2ForImageClassification(config), (2 * grid[0], 2 * grid[1]))
    finally:
        network.MOST_BIASES = before


def test_the_source_stays_as_it_is() -> None:
    model = Swinv2ForImageClassification(Swinv2Config(**FIELDS)).train()
    names = [name for name, _ in model.named_modules()]
    prepare(model, (64, 64))
    assert model.training
    assert names == [name for name, _ in model.named_modules()]
    assert all(each.requires_grad for each in model.parameters())


def test_adapters_are_refused() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = Swinv2ForImageClassification(Swinv2Config(**FIELDS))
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["query"]), model)
    with pytest.raises(
        UsageError, match=r"attention\.self\.query is peft\..*Linear, not torch.nn.Linear, .*merge_and_unload"
    ):
        prepare(model, (64, 64))
