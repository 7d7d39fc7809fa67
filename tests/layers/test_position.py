"""The position bias on a CPU: computed in chunks if the modules are intact."""

import copy
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from swinv2.layers import fusion
from swinv2.layers.position import ContinuousPositionBias
from swinv2.ops.backends import CPU

NOWHERE = torch.empty(0)
"""Says where the map is."""

WINDOW, PRETRAINED = (5, 3), (4, 4)


def make(dtype: torch.dtype = torch.float32) -> ContinuousPositionBias:
    """With weights that make a varied field."""
    torch.manual_seed(0)
    network = ContinuousPositionBias(3).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.to(dtype)


def plain(network: ContinuousPositionBias, window: tuple[int, int] = WINDOW) -> Tensor:
    """The table by calling the layers."""
    return network(NOWHERE, "eager", window, PRETRAINED)


def fast(network: ContinuousPositionBias, window: tuple[int, int] = WINDOW) -> Tensor:
    """The table by pieces."""
    return network(NOWHERE, CPU, window, PRETRAINED)


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """Counts how often the field is evaluated in pieces."""
    spy = mock.Mock(side_effect=fusion.bias_table)
    monkeypatch.setattr(fusion, "bias_table", spy)
    return spy


@pytest.mark.parametrize("window", [(1, 1), WINDOW, (20, 9)], ids=str)
def test_chunks_change_nothing(window: tuple[int, int], evaluations: mock.Mock) -> None:
    """Table and gradients, in fp64; the largest window has three pieces, the last of them not full."""
    network = make(torch.float64)
    results = []
    for backend in (plain, fast):
        network.zero_grad()
        table = backend(network, window)
        (table * torch.linspace(-1, 2, table.numel(), dtype=torch.float64).view_as(table)).sum().backward()
        results.append([table.detach(), *(parameter.grad.clone() for parameter in network.parameters())])
    assert evaluations.call_count == 1
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_it_is_exact_under_autocast_and_from_16_bits() -> None:
    """In fp32 whatever the weights are stored in and whatever autocast is set to."""
    network = make(torch.bfloat16)
    expected = plain(copy.deepcopy(network).float())
    with torch.autocast("cpu", torch.bfloat16):
        found = fast(network)
        found.sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert network[0].weight.grad.dtype == torch.bfloat16


def test_only_the_plain_way_has_gradients_of_gradients() -> None:
    """The other says so."""
    network = make(torch.float64)
    slope = torch.autograd.grad(plain(network).sum(), network[2].weight, create_graph=True)[0]
    slope.square().sum().backward()
    assert network[0].weight.grad.abs().max() > 0
    slope = torch.autograd.grad(fast(network).square().sum(), network[2].weight, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()


def test_a_watched_layer_is_called(evaluations: mock.Mock) -> None:
    """Every time."""
    network = make()
    seen = []
    network[2].register_forward_hook(lambda layer, inputs, output: seen.append(output))
    with torch.no_grad():
        for _ in range(2):
            fast(network)
    assert len(seen) == 2
    assert not evaluations.called


def test_a_replaced_layer_is_called(evaluations: mock.Mock) -> None:
    """LoRA and quantisation put others in the layers' places."""
    network = make()
    network[2] = nn.Linear(512, 3, bias=False)
    with torch.no_grad():
        torch.testing.assert_close(fast(network), plain(network))
    assert not evaluations.called
