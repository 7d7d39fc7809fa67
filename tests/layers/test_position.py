"""The position bias on a CPU: computed in pieces, and remembered only as long as it would come out the same."""

import copy
import pickle
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from swinv2.layers import position
from swinv2.layers.position import ContinuousPositionBias

CPU = torch.device("cpu")
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
    return network(window, PRETRAINED, CPU, in_pieces=False)


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """Counts how often the field is evaluated in pieces."""
    spy = mock.Mock(side_effect=position.bias_field)
    monkeypatch.setattr(position, "bias_field", spy)
    return spy


@pytest.mark.parametrize("window", [(1, 1), WINDOW, (20, 9)], ids=str)
def test_pieces_change_nothing(window: tuple[int, int], evaluations: mock.Mock) -> None:
    """Table and gradients, in fp64; the largest window has three pieces, the last of them not full."""
    network = make(torch.float64)
    results = []
    for form in (plain, lambda network, window: network(window, PRETRAINED, CPU)):
        network.zero_grad()
        table = form(network, window)
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
        found = network(WINDOW, PRETRAINED, CPU)
        found.sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert network[0].weight.grad.dtype == torch.bfloat16


def test_only_the_plain_way_has_gradients_of_gradients() -> None:
    """The other says so."""
    network = make(torch.float64)
    slope = torch.autograd.grad(plain(network).sum(), network[2].weight, create_graph=True)[0]
    slope.square().sum().backward()
    assert network[0].weight.grad.abs().max() > 0
    slope = torch.autograd.grad(network(WINDOW, PRETRAINED, CPU).sum(), network[2].weight, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()


def scale_in_place(network: ContinuousPositionBias) -> None:
    """As an optimizer does."""
    with torch.no_grad():
        network[2].weight *= 2


def write_through_data(network: ContinuousPositionBias) -> None:
    """As averaging of weights does; no version tells."""
    network[0].bias.data.add_(0.5)


def load_others(network: ContinuousPositionBias) -> None:
    """Other weights, by name."""
    network.load_state_dict({name: -tensor for name, tensor in network.state_dict().items()})


def put_other_weights(network: ContinuousPositionBias) -> None:
    """A new parameter in an old one's place."""
    network[0].weight = nn.Parameter(torch.flip(network[0].weight.detach(), [0]))


CHANGES: list[Callable[[ContinuousPositionBias], object]] = [
    *(scale_in_place, write_through_data, load_others, put_other_weights),
    *(ContinuousPositionBias.double, ContinuousPositionBias.bfloat16),
]


class TestRemembered:
    """Without gradients."""

    def test_it_is_evaluated_once(self, evaluations: mock.Mock) -> None:
        """As long as nothing changes."""
        network = make()
        with torch.no_grad():
            first = network(WINDOW, PRETRAINED, CPU)
            assert torch.equal(network(WINDOW, PRETRAINED, CPU), first)
        assert evaluations.call_count == 1
        torch.testing.assert_close(first, plain(network))

    @pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
    def test_other_weights_are_noticed(self, change: Callable[[ContinuousPositionBias], object]) -> None:
        """However they come."""
        network = make()
        with torch.no_grad():
            before = network(WINDOW, PRETRAINED, CPU)
            change(network)
            after = network(WINDOW, PRETRAINED, CPU)
            torch.testing.assert_close(after, plain(network))
        assert before.dtype != after.dtype or (before - after).abs().max() > 1e-3

    def test_other_windows_are_noticed(self) -> None:
        """And other windows of pre-training."""
        network = make()
        with torch.no_grad():
            tables = [network(*geometry, CPU) for geometry in ((WINDOW, PRETRAINED), ((3, 5), PRETRAINED))]
            assert [table.shape for table in tables] == [(3, 9, 5), (3, 5, 9)]
            assert not torch.equal(network((3, 5), (0, 0), CPU), tables[1])

    def test_it_is_not_given_where_gradients_are_wanted(self) -> None:
        """A table without history would train nothing."""
        network = make()
        with torch.inference_mode():
            network(WINDOW, PRETRAINED, CPU)
        network(WINDOW, PRETRAINED, CPU).sum().backward()
        assert network[0].weight.grad.abs().max() > 0

    def test_writing_into_it_changes_nothing_else(self) -> None:
        """A hook on the network may change its answer in place, again and again."""
        network = make()
        with torch.no_grad():
            expected = network(WINDOW, PRETRAINED, CPU)
            handle = network.register_forward_hook(lambda module, inputs, output: output.mul_(0.5))
            for _ in range(2):
                assert torch.equal(network(WINDOW, PRETRAINED, CPU), expected / 2)
            handle.remove()
            assert torch.equal(network(WINDOW, PRETRAINED, CPU), expected)

    def test_a_table_of_inference_mode_is_an_ordinary_one_outside(self) -> None:
        """Autograd takes it as it takes any tensor."""
        network = make()
        with torch.inference_mode():
            network(WINDOW, PRETRAINED, CPU)
        with torch.no_grad():
            table = network(WINDOW, PRETRAINED, CPU)
        factor = torch.ones((), requires_grad=True)
        (factor * table).sum().backward()
        assert factor.grad is not None

    def test_it_stays_behind_in_copies_and_files(self) -> None:
        """A copy computes its own."""
        network = make()
        with torch.inference_mode():
            network(WINDOW, PRETRAINED, CPU)
        for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert other._remembered is None
            with torch.no_grad():
                assert torch.equal(other(WINDOW, PRETRAINED, CPU), network(WINDOW, PRETRAINED, CPU))
        assert network._remembered is not None
        assert all("remembered" not in name for name in network.state_dict())

    def test_a_watched_layer_is_called(self, evaluations: mock.Mock) -> None:
        """Every time."""
        network = make()
        seen = []
        network[2].register_forward_hook(lambda layer, inputs, output: seen.append(output))
        with torch.no_grad():
            for _ in range(2):
                network(WINDOW, PRETRAINED, CPU)
        assert len(seen) == 2
        assert not evaluations.called

    def test_a_replaced_layer_is_called(self, evaluations: mock.Mock) -> None:
        """LoRA and quantisation put others in the layers' places."""
        network = make()
        network[2] = nn.Linear(512, 3, bias=False)
        with torch.no_grad():
            torch.testing.assert_close(network(WINDOW, PRETRAINED, CPU), plain(network))
        assert not evaluations.called
