"""Linear layers on a CPU against torch's own, pieces, and who is left to torch."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from swinv2.ops.cpu import library, linear, pieces
from swinv2.ops.cpu.linear import (
    add_turned_product,
    join,
    may_project_patches,
    product,
    project_patches,
    sum_of_tokens,
)
from swinv2.ops.execution import Execution, execution

needs_kernels = pytest.mark.skipif(library.refuse() is not None, reason=str(library.refuse()))
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@given(count=st.integers(0, 1000), item_bytes=st.integers(1, 2**24), least=st.integers(1, 300))
def test_pieces_cover_every_item_once_and_fit(count: int, item_bytes: int, least: int) -> None:
    slices = pieces.pieces(count, item_bytes, least)
    assert [i for some in slices for i in range(count)[some]] == list(range(count))
    largest = max(pieces.CACHE_BYTES // item_bytes, least)
    assert all(0 < some.stop - some.start <= largest for some in slices)


@pytest.fixture(params=[True, False], ids=["slow in 16 bits", "fast in 16 bits"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the processor has no instructions for 16 bits."""
    monkeypatch.setattr(linear, "_is_slow_in", lambda dtype: request.param and dtype.itemsize == 2)
    return request.param


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Dtypes of the products that the kernels do."""
    seen: list[torch.dtype] = []
    matmul = linear.kernels.matmul

    def counting(left: Tensor, *rest: Tensor | None, **named: Tensor | None) -> None:
        seen.append(left.dtype)
        matmul(left, *rest, **named)

    monkeypatch.setattr(linear.kernels, "matmul", counting)
    return seen


@ALL_DTYPES
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_product_is_torchs(dtype: torch.dtype, with_bias: bool, processor: bool) -> None:
    features, weight = draw(2, 3, 5, 16, dtype=dtype, seed=1), draw(24, 16, dtype=dtype, seed=2)
    bias = draw(24, dtype=dtype, seed=3) if with_bias else None
    expected = F.linear(features, weight, bias)
    with torch.no_grad():
        answer = linear.linear(features, weight, bias)
    assert answer.dtype == dtype
    torch.testing.assert_close(answer, expected)


@needs_kernels
@ALL_DTYPES
def test_the_kernels_multiply_where_torch_is_slow(
    dtype: torch.dtype, processor: bool, products: list[torch.dtype]
) -> None:
    """In 16 bits where the processor has no instructions for them, else in 32 and 64."""
    features = draw(4, 16, dtype=dtype).requires_grad_()
    linear.linear(features, draw(8, 16, dtype=dtype), None).sum().backward()
    assert products == ([dtype] * 2 if processor or dtype.itemsize > 2 else [])


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
    torch.testing.assert_close(linear.linear(**tensors), F.linear(*tensors.values()))


def test_a_bias_of_another_dtype_is_refused_as_by_torch() -> None:
    features, weight, bias = draw(4, 16).bfloat16(), draw(12, 16).bfloat16(), draw(12).float()
    with pytest.raises(RuntimeError, match="dtype"):
        linear.linear(features, weight, bias)


class TestGradientsOfAProduct:
    """By the kernels, but torch's."""

    @staticmethod
    def leaves(dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Features, weight and bias; no size is a multiple of what processors like."""
        shapes = [(2, 3, 5, 17), (29, 17), (29,)]
        return [draw(*shape, dtype=dtype, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)]

    @ALL_DTYPES
    @pytest.mark.parametrize("frozen", [None, 0, 1, 2])
    def test_every_gradient(self, dtype: torch.dtype, frozen: int | None, processor: bool) -> None:
        leaves = self.leaves(dtype)
        if frozen is not None:
            leaves[frozen].requires_grad_(False)
        direction = draw(2, 3, 5, 29, dtype=dtype, seed=9)
        results = []
        for form in (linear.linear, F.linear):
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
        for form in (linear.linear, F.linear):
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
            torch.autograd.grad(linear.linear(*leaves), leaves, directions, is_grads_batched=True),
            torch.autograd.grad(F.linear(*leaves), leaves, directions, is_grads_batched=True),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)

    def test_one_vector(self) -> None:
        _, weight, bias = self.leaves()
        vector = draw(17, dtype=torch.float32, seed=4).requires_grad_()
        for ours, theirs in zip(
            torch.autograd.grad(linear.linear(vector, weight, bias).sum(), (vector, weight, bias)),
            torch.autograd.grad(F.linear(vector, weight, bias).sum(), (vector, weight, bias)),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)

    def test_a_counter_of_operations_counts_the_backward_pass(self) -> None:
        from torch.utils.flop_counter import FlopCounterMode

        counts = []
        for form in (linear.linear, F.linear):
            leaves = self.leaves()
            answer = form(*leaves)
            with FlopCounterMode(display=False) as counter:
                answer.sum().backward()
            counts.append(counter.get_total_flops())
        assert counts[0] == counts[1] > 0

    def test_what_a_frozen_weight_does_not_need_is_not_kept(self) -> None:
        features, weight, bias = self.leaves()
        answer = linear.linear(features, weight.detach(), bias.detach())
        assert [tensor is None for tensor in answer.grad_fn.saved_tensors] == [True, False]

    def test_no_tokens_at_all(self) -> None:
        features, weight, bias = self.leaves()
        empty = features.detach()[:0].requires_grad_()
        linear.linear(empty, weight, bias).sum().backward()
        assert empty.grad.shape == empty.shape
        assert not weight.grad.any()


SHAPES = [(40, 16), (8, 16), (8,)]
"""Of features, weight and bias."""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_autocast_decides_the_dtype(given: torch.dtype, dtype: torch.dtype, processor: bool) -> None:
    results = []
    for form in (linear.linear, F.linear):
        leaves = [draw(*shape, dtype=given, seed=size).requires_grad_() for size, shape in enumerate(SHAPES)]
        with torch.autocast("cpu", dtype):
            answer = form(*leaves)
            # A backward pass outside autocast is the rule; inside, it must not change.
            answer.backward(torch.ones_like(answer))
        results.append([answer, *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


def test_the_sum_of_many_in_bf16_is_as_exact_as_torchs(processor: bool) -> None:
    tokens = draw(40000, 24, dtype=torch.bfloat16, seed=1)
    exact = tokens.double().sum(0)
    theirs = (tokens.sum(0) - exact).abs().max()
    allowed = theirs + exact.abs().max() * torch.finfo(torch.bfloat16).eps
    assert (sum_of_tokens(tokens) - exact).abs().max() <= allowed


@ALL_DTYPES
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_patches_are_projected_as_by_torch(
    dtype: torch.dtype, with_bias: bool, autocast: bool, processor: bool
) -> None:
    """In fp32 where the processor has no instructions for 16 bits, and elsewhere not at all."""
    projection = nn.Conv2d(3, 8, (4, 2), (4, 2), bias=with_bias).to(dtype)
    pixels = draw(2, 3, 16, 10, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        multiplied = torch.bfloat16 if autocast and dtype != torch.float64 else dtype
        assert may_project_patches(pixels, projection) == linear._is_slow_in(multiplied)
        if not may_project_patches(pixels, projection):
            return
        ours, theirs = project_patches(pixels, projection), projection(pixels)
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs)


def test_joined_layers_are_the_layers() -> None:
    x = draw(9, 16)
    layers = [(draw(8, 16, seed=1), draw(8, seed=2)), (draw(4, 16, seed=3), None)]
    weight, bias = join([w for w, _ in layers], [b for _, b in layers])
    torch.testing.assert_close(F.linear(x, weight, bias), torch.cat([F.linear(x, *layer) for layer in layers], 1))
    assert join([w for w, _ in layers], [None, None])[1] is None


@needs_kernels
@ALL_DTYPES
def test_a_product_may_be_added_and_activated(dtype: torch.dtype) -> None:
    """Rounded to the dtype of what is given at most."""
    tokens, weight, bias = draw(9, 16, dtype=dtype), draw(24, 16, dtype=dtype, seed=1), draw(24, dtype=dtype, seed=2)
    base = draw(9, 24, dtype=dtype, seed=3)
    expected = F.linear(tokens, weight, bias)
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).eps}
    torch.testing.assert_close(product(tokens, weight, bias, dtype).to(dtype), expected, **tolerance)
    out, after = torch.empty(9, 24, dtype=dtype), torch.empty(9, 24, dtype=dtype)
    assert product(tokens, weight, bias, dtype, base=base, out=out, after=after) is out
    torch.testing.assert_close(out, base + expected, **tolerance)
    torch.testing.assert_close(after.to(dtype), F.gelu(base + expected), **tolerance)
    assert product(tokens, weight, None, dtype, out=base, base=base) is base


@needs_kernels
@pytest.mark.parametrize("left", DTYPES[1:], ids=str)
@pytest.mark.parametrize("right", DTYPES[1:], ids=str)
def test_a_turned_product_is_added_in_fp32(left: torch.dtype, right: torch.dtype) -> None:
    a, b, sums = draw(300, 9, dtype=left), draw(300, 5, dtype=right, seed=1), draw(9, 5, dtype=torch.float32, seed=2)
    expected = sums.double() + a.double().T @ b.double()
    dtype = min((left, right), key=lambda dtype: dtype.itemsize)
    add_turned_product(sums, a, b, dtype)
    assert sums.dtype == torch.float32
    assert ((sums - expected).norm() / expected.norm()) < (1e-6 if dtype == torch.float32 else 2e-2)


def test_who_watches_operations_sees_torchs() -> None:
    """Counters, fake tensors and other devices are left to the plain forms."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    assert execution(torch.zeros(1)) is Execution.EAGER
    with FlopCounterMode(display=False):
        assert execution(torch.zeros(1)) is not Execution.EAGER
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(torch.zeros(1))
    assert execution(fake) is not Execution.EAGER
