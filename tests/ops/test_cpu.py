"""Linear layers, the MLP and pieces on a CPU, against torch's own layers."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from swinv2.ops.cpu import pieces
from swinv2.ops.cpu.linear import feed_forward, linear
from swinv2.ops.cpu.pieces import can_run, in_pieces

SMALL_CACHE = 40_000
"""Bytes: with it, 700 tokens take three pieces."""


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@given(count=st.integers(0, 1000), item_bytes=st.integers(1, 2**24), least=st.integers(1, 300))
def test_pieces_cover_every_item_once_and_fit(count: int, item_bytes: int, least: int) -> None:
    slices = pieces.pieces(count, item_bytes, least)
    assert [i for some in slices for i in range(count)[some]] == list(range(count))
    largest = max(pieces.CACHE_BYTES // item_bytes, least)
    assert all(some.stop - some.start <= largest for some in slices)


@settings(deadline=None)
@given(count=st.integers(1, 40), item_bytes=st.sampled_from([1, pieces.CACHE_BYTES // 3, pieces.CACHE_BYTES]))
def test_a_function_in_pieces_gives_the_same(count: int, item_bytes: int) -> None:
    items = draw(count, 5)
    assert torch.equal(in_pieces(lambda some: some.flip(1)[:, :2] * 2, items, item_bytes), items.flip(1)[:, :2] * 2)


def linear_layers(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor | None]]:
    """Three layers of which one has no bias, as queries, keys and values."""
    weights = [draw(size, 16, dtype=dtype).requires_grad_() for size in (8, 24, 16)]
    return weights, [draw(8, dtype=dtype).requires_grad_(), None, draw(16, dtype=dtype).requires_grad_()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("with_gradients", [False, True])
def test_one_product_is_as_several(dtype: torch.dtype, with_gradients: bool) -> None:
    """Without gradients too, where another library multiplies."""
    features = draw(2, 3, 5, 16, dtype=dtype)
    weights, biases = linear_layers(dtype)
    expected = torch.cat([F.linear(features, w, b) for w, b in zip(weights, biases, strict=True)], -1)
    with torch.set_grad_enabled(with_gradients):
        product = linear(features, weights, biases)
    assert product.dtype == dtype
    torch.testing.assert_close(product, expected, check_dtype=True)
    if with_gradients:
        leaves = [*weights, biases[0], biases[2]]
        direction = draw(*product.shape, dtype=dtype)
        for ours, theirs in zip(
            torch.autograd.grad(product, leaves, direction),
            torch.autograd.grad(expected, leaves, direction),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)


def test_without_gradients_autocast_still_decides_the_dtype() -> None:
    features, (weights, biases) = draw(4, 16, dtype=torch.float32), linear_layers(torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert linear(features, weights, biases).dtype == torch.bfloat16


def test_no_tokens_at_all() -> None:
    weights, biases = linear_layers(torch.float32)
    with torch.no_grad():
        assert linear(torch.zeros(0, 16), weights, biases).shape == (0, 48)


class TestFeedForward:
    """The MLP with a backward pass of its own."""

    @staticmethod
    def leaves(dtype: torch.dtype) -> list[Tensor]:
        """Features and the weights and biases of two layers."""
        scales = [(1, 7, 100, 8), (32, 8), (32,), (8, 32), (8,)]
        return [draw(*shape, dtype=dtype).requires_grad_() for shape in scales]

    @staticmethod
    def plain(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)

    @staticmethod
    def ours(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        return feed_forward(x, (w1, b1), F.gelu, (w2, b2))

    @pytest.mark.parametrize("cache_bytes", [SMALL_CACHE, pieces.CACHE_BYTES], ids=["pieces", "whole"])
    def test_the_answer_and_every_gradient(self, cache_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pieces, "CACHE_BYTES", cache_bytes)
        leaves = self.leaves(torch.float64)
        expected, actual = self.plain(*leaves), self.ours(*leaves)
        torch.testing.assert_close(actual, expected)
        direction = draw(*expected.shape)
        for ours, theirs in zip(
            torch.autograd.grad(actual, leaves, direction),
            torch.autograd.grad(expected, leaves, direction),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)

    @pytest.mark.parametrize("autocast", [False, True])
    def test_bf16_is_no_less_exact_than_torch(self, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pieces, "CACHE_BYTES", SMALL_CACHE // 8)
        exact = self.leaves(torch.float64)
        direction = draw(1, 7, 100, 8)
        truth = [self.plain(*exact), *torch.autograd.grad(self.plain(*exact), exact, direction)]
        errors = []
        for form in (self.ours, self.plain):
            leaves = self.leaves(torch.float32 if autocast else torch.bfloat16)
            with torch.no_grad():
                for leaf, source in zip(leaves, exact, strict=True):
                    leaf.copy_(source)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                output = form(*leaves)
            assert output.dtype == torch.bfloat16
            gradients = torch.autograd.grad(output, leaves, direction.bfloat16())
            assert [g.dtype for g in gradients] == [leaf.dtype for leaf in leaves]
            results = zip([output, *gradients], truth, strict=True)
            errors.append([((a.double() - b).norm() / b.norm()).item() for a, b in results])
        for ours, theirs in zip(*errors, strict=True):
            assert ours < 2 * theirs

    def test_frozen_weights_cost_no_gradient(self) -> None:
        leaves = self.leaves(torch.float64)
        for leaf in leaves[1:]:
            leaf.requires_grad_(False)
        self.ours(*leaves).sum().backward()
        (expected,) = torch.autograd.grad(self.plain(*leaves).sum(), leaves[:1])
        torch.testing.assert_close(leaves[0].grad, expected)
        assert all(leaf.grad is None for leaf in leaves[1:])

    def test_only_the_activation_input_is_kept(self) -> None:
        leaves = self.leaves(torch.float64)
        kept = self.ours(*leaves).grad_fn.saved_tensors
        assert sorted(tensor.numel() for tensor in kept) == sorted([700 * 8, 700 * 32, 32 * 8, 8 * 32])


def test_who_watches_operations_sees_torchs() -> None:
    """Counters, fake tensors and other devices are left to the plain forms."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    assert can_run(torch.zeros(1))
    assert not can_run(torch.zeros(1, device="meta"))
    with FlopCounterMode(display=False):
        assert not can_run(torch.zeros(1))
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(torch.zeros(1))
    assert not can_run(fake)
