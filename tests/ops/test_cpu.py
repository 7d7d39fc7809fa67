"""Linear layers, the MLP and pieces on a CPU, against torch's own layers."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from swinv2.ops.cpu import pieces
from swinv2.ops.cpu.linear import _onednn_dtypes, linear, linear_gelu
from swinv2.ops.cpu.mlp import feed_forward
from swinv2.ops.cpu.pieces import add_in_pieces, can_run

SMALL_CACHE = 40_000
"""Bytes: with it, 700 tokens take three pieces."""


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


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
    assert torch.equal(add_in_pieces(items, lambda some: some.flip(1) * 2, item_bytes), items + items.flip(1) * 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_product_is_torchs(dtype: torch.dtype, with_bias: bool) -> None:
    features, weight = draw(2, 3, 5, 16, dtype=dtype, seed=1), draw(24, 16, dtype=dtype, seed=2)
    bias = draw(24, dtype=dtype, seed=3) if with_bias else None
    expected = F.linear(features, weight, bias)
    with torch.no_grad():
        product = linear(features, weight, bias)
    assert product.dtype == dtype
    torch.testing.assert_close(product, expected)


def strided(*shape: int, seed: int) -> dict[str, Tensor]:
    """Tensors of a shape that do not lie one number after the other."""
    return {
        "every third": draw(*shape, 3, dtype=torch.float32, seed=seed)[..., 0],
        "expanded": draw(*shape[:-1], 1, dtype=torch.float32, seed=seed).expand(shape),
        "turned": draw(*shape[::-1], dtype=torch.float32, seed=seed).permute(*reversed(range(len(shape)))),
    }


@pytest.mark.parametrize("layout", strided(1, seed=0))
@pytest.mark.parametrize("which", ["features", "weight", "bias"])
def test_a_product_of_strided_tensors(which: str, layout: str) -> None:
    shapes = {"features": (2, 5, 16), "weight": (12, 16), "bias": (12,)}
    tensors = {name: draw(*shape, dtype=torch.float32, seed=7) for name, shape in shapes.items()}
    tensors[which] = strided(*shapes[which], seed=8)[layout]
    torch.testing.assert_close(linear(**tensors), F.linear(*tensors.values()))


def test_a_bias_of_another_dtype_is_refused_as_by_torch() -> None:
    features, weight, bias = draw(4, 16).bfloat16(), draw(12, 16).bfloat16(), draw(12).float()
    with pytest.raises(RuntimeError, match="dtype"):
        linear(features, weight, bias)


class TestGradientsOfAProduct:
    """By another library, but torch's."""

    @staticmethod
    def leaves(dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Features, weight and bias; no size is a multiple of what processors like."""
        shapes = [(2, 3, 5, 17), (29, 17), (29,)]
        return [draw(*shape, dtype=dtype, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)]

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("frozen", [None, 0, 1, 2])
    def test_every_gradient(self, dtype: torch.dtype, frozen: int | None) -> None:
        leaves = self.leaves(dtype)
        if frozen is not None:
            leaves[frozen].requires_grad_(False)
        direction = draw(2, 3, 5, 29, dtype=dtype, seed=9)
        results = []
        for form in (linear, F.linear):
            form(*leaves).backward(direction)
            results.append([leaf.grad for leaf in leaves])
            for leaf in leaves:
                leaf.grad = None
        for index, (ours, theirs) in enumerate(zip(*results, strict=True)):
            assert (ours is None) == (theirs is None) == (index == frozen)
            if ours is not None:
                assert ours.dtype == dtype
                torch.testing.assert_close(ours, theirs)

    def test_a_gradient_of_a_gradient(self) -> None:
        results = []
        for form in (linear, F.linear):
            leaves = self.leaves()
            gradients = torch.autograd.grad(form(*leaves).square().sum(), leaves, create_graph=True)
            penalty = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
            results.append(torch.autograd.grad(penalty, leaves))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs)

    def test_many_gradients_at_once(self) -> None:
        leaves = self.leaves()
        directions = draw(4, 2, 3, 5, 29, dtype=torch.float32, seed=9)
        for ours, theirs in zip(
            torch.autograd.grad(linear(*leaves), leaves, directions, is_grads_batched=True),
            torch.autograd.grad(F.linear(*leaves), leaves, directions, is_grads_batched=True),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)

    def test_one_vector(self) -> None:
        _, weight, bias = self.leaves()
        vector = draw(17, dtype=torch.float32, seed=4).requires_grad_()
        for ours, theirs in zip(
            torch.autograd.grad(linear(vector, weight, bias).sum(), (vector, weight, bias)),
            torch.autograd.grad(F.linear(vector, weight, bias).sum(), (vector, weight, bias)),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)

    def test_a_counter_of_operations_counts_the_backward_pass(self) -> None:
        from torch.utils.flop_counter import FlopCounterMode

        counts = []
        for form in (linear, F.linear):
            leaves = self.leaves()
            product = form(*leaves)
            with FlopCounterMode(display=False) as counter:
                product.sum().backward()
            counts.append(counter.get_total_flops())
        assert counts[0] == counts[1] > 0

    def test_what_a_frozen_weight_does_not_need_is_not_kept(self) -> None:
        features, weight, bias = self.leaves()
        kept = linear(features, weight.detach(), bias.detach()).grad_fn.saved_tensors
        assert [tensor is None for tensor in kept] == [True, False]

    def test_no_tokens_at_all(self) -> None:
        features, weight, bias = self.leaves()
        empty = features.detach()[:0].requires_grad_()
        linear(empty, weight, bias).sum().backward()
        assert empty.grad.shape == empty.shape
        assert not weight.grad.any()


SHAPES = [(40, 16), (8, 16), (8,)]
"""Of features, weight and bias."""


class TestOneDNN:
    """Who multiplies, and in which dtype."""

    @staticmethod
    def operations(**autocast: object) -> set[str]:
        with torch.autocast("cpu", torch.bfloat16, **autocast), torch.profiler.profile() as profile:
            linear(torch.zeros(4, 16), torch.zeros(8, 16), None)
        return {event.key for event in profile.key_averages()}

    needs_onednn = pytest.mark.skipif(not _onednn_dtypes(), reason="this torch has no oneDNN linear layer")

    @needs_onednn
    def test_it_is_onednn(self) -> None:
        assert "mkldnn::_linear_pointwise" in self.operations(enabled=False)

    @needs_onednn
    def test_the_gradient_of_the_features_is_onednns_too(self) -> None:
        features = torch.zeros(4, 16, requires_grad=True)
        product = linear(features, torch.zeros(8, 16), None)
        with torch.profiler.profile() as profile:
            product.sum().backward()
        assert "mkldnn::_linear_pointwise" in {event.key for event in profile.key_averages()}

    @pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")  # torch's own, from asking for the flags
    def test_not_if_the_user_switched_it_off(self) -> None:
        with torch.backends.mkldnn.flags(enabled=False):
            assert "mkldnn::_linear_pointwise" not in self.operations(enabled=False)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float64], ids=str)
    def test_autocast_decides_the_dtype(self, given: torch.dtype, dtype: torch.dtype) -> None:
        results = []
        for form in (linear, F.linear):
            leaves = [draw(*shape, dtype=given, seed=size).requires_grad_() for size, shape in enumerate(SHAPES)]
            with torch.autocast("cpu", dtype):
                product = form(*leaves)
                # A backward pass outside autocast is the rule; inside, it must not change.
                product.backward(torch.ones_like(product))
            results.append([product, *(leaf.grad for leaf in leaves)])
        for ours, theirs in zip(*results, strict=True):
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)

    def test_the_sum_of_many_in_bf16_is_as_exact_as_torchs(self) -> None:
        grad = draw(40000, 24, dtype=torch.bfloat16, seed=1)
        bias = torch.zeros(24, dtype=torch.bfloat16, requires_grad=True)
        linear(torch.zeros(40000, 8, dtype=torch.bfloat16), torch.zeros(24, 8, dtype=torch.bfloat16), bias).backward(
            grad
        )
        exact = grad.double().sum(0)
        theirs = (grad.sum(0) - exact).abs().max()
        assert (bias.grad - exact).abs().max() <= theirs + exact.abs().max() * torch.finfo(torch.bfloat16).eps

    def test_no_tokens_at_all(self) -> None:
        with torch.no_grad():
            for form in (linear, linear_gelu):
                assert form(torch.zeros(0, 16), torch.zeros(48, 16), None).shape == (0, 48)

    @needs_onednn
    def test_the_gelu_is_onednns_too(self) -> None:
        with torch.no_grad(), torch.profiler.profile() as profile:
            linear_gelu(torch.zeros(4, 16), torch.zeros(8, 16), None)
        names = {event.key for event in profile.key_averages()}
        assert "mkldnn::_linear_pointwise" in names
        assert "aten::gelu" not in names

    @pytest.mark.parametrize("with_bias", [False, True])
    @pytest.mark.parametrize("autocast", [False, True])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
    def test_the_gelu_is_the_exact_one(self, dtype: torch.dtype, autocast: bool, with_bias: bool) -> None:
        exact = [4 * draw(*SHAPES[0], seed=1), draw(*SHAPES[1], seed=2), draw(*SHAPES[2], seed=3)]
        features, weight, bias = (tensor.to(dtype) for tensor in exact)
        bias = bias if with_bias else None
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            ours = linear_gelu(features, weight, bias)
            theirs = F.gelu(F.linear(features, weight, bias))
        assert ours.dtype == theirs.dtype
        truth = F.gelu(F.linear(features.double(), weight.double(), None if bias is None else bias.double()))
        errors = [(result.double() - truth).norm() for result in (ours, theirs)]
        assert errors[0] <= 1.5 * errors[1]


class TestFeedForward:
    """The MLP with a backward pass of its own."""

    @staticmethod
    def leaves(dtype: torch.dtype) -> list[Tensor]:
        """Features and the weights and biases of two layers."""
        scales = [(1, 7, 100, 8), (32, 8), (32,), (8, 32), (8,)]
        return [draw(*shape, dtype=dtype, seed=seed).requires_grad_() for seed, shape in enumerate(scales)]

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
        direction = draw(*expected.shape, seed=9)
        for ours, theirs in zip(
            torch.autograd.grad(actual, leaves, direction),
            torch.autograd.grad(expected, leaves, direction),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)

    @pytest.mark.parametrize("autocast", [False, True])
    def test_bf16_is_about_as_exact_as_torch(self, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pieces, "CACHE_BYTES", SMALL_CACHE // 8)
        exact = self.leaves(torch.float64)
        direction = draw(1, 7, 100, 8, seed=9)
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
            assert ours <= 2 * theirs

    @pytest.mark.parametrize("frozen", [0, 1, 2, 3, 4])
    def test_what_is_frozen_gets_no_gradient(self, frozen: int) -> None:
        leaves = self.leaves(torch.float64)
        leaves[frozen].requires_grad_(False)
        gradients = self.ours(*leaves).grad_fn.apply(draw(1, 7, 100, 8, seed=9))
        assert [gradient is None for gradient in gradients[1:]] == [index == frozen for index in range(5)]

    def test_no_tokens_at_all(self) -> None:
        leaves = self.leaves(torch.float64)
        empty = leaves[0].detach()[:0].requires_grad_()
        self.ours(empty, *leaves[1:]).sum().backward()
        assert empty.grad.shape == empty.shape
        assert not leaves[1].grad.any()

    def test_autocast_leaves_fp64_alone(self) -> None:
        leaves = self.leaves(torch.float64)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(self.ours(*leaves), self.plain(*leaves))

    @pytest.mark.parametrize("autocast", [False, True])
    def test_layers_without_bias(self, autocast: bool) -> None:
        x, w1, _, w2, _ = self.leaves(torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            expected, actual = self.plain(x, w1, None, w2, None), self.ours(x, w1, None, w2, None)
        torch.testing.assert_close(actual, expected)
        for ours, theirs in zip(
            torch.autograd.grad(actual.sum(), (x, w1, w2)),
            torch.autograd.grad(expected.sum(), (x, w1, w2)),
            strict=True,
        ):
            assert ours.dtype == torch.float32
            assert ((ours - theirs).norm() / theirs.norm()).item() < (2e-2 if autocast else 1e-5)

    def test_between_the_products_only_the_activation_input_is_kept(self) -> None:
        leaves = self.leaves(torch.float64)
        kept = self.ours(*leaves).grad_fn.saved_tensors
        assert sorted(tensor.numel() for tensor in kept) == sorted([700 * 8, 700 * 32, 32 * 8, 8 * 32])

    def test_features_are_kept_for_the_first_weight_only(self) -> None:
        leaves = self.leaves(torch.float64)
        leaves[1].requires_grad_(False)
        assert self.ours(*leaves).grad_fn.saved_tensors[0] is None


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
