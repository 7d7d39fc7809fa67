"""Products by torch on a CPU, chunks, and who is left to torch."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from swinv2.ops.cpu import chunks, library, linear
from swinv2.ops.cpu.linear import (
    add_transposed_product,
    in_fp32,
    is_slow,
    join,
    product,
    sum_of_tokens,
)
from swinv2.ops.execution import Execution, execution

needs_kernels = pytest.mark.skipif(library.refuse() is not None, reason=str(library.refuse()))
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@given(count=st.integers(0, 1000), item_bytes=st.integers(1, 2**24), least=st.integers(1, 300))
def test_chunks_cover_every_item_once_and_fit(count: int, item_bytes: int, least: int) -> None:
    slices = chunks.chunks(count, item_bytes, least)
    assert [i for some in slices for i in range(count)[some]] == list(range(count))
    largest = max(chunks.CACHE_BYTES // item_bytes, least)
    assert all(0 < some.stop - some.start <= largest for some in slices)


@pytest.fixture(params=[True, False], ids=["slow in 16 bits", "fast in 16 bits"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the processor has no instructions for 16 bits."""
    monkeypatch.setattr(linear, "is_slow_in", lambda dtype: request.param and dtype.itemsize == 2)
    return request.param


def test_the_sum_of_many_in_bf16_is_as_exact_as_torchs(processor: bool) -> None:
    tokens = draw(40000, 24, dtype=torch.bfloat16, seed=1)
    exact = tokens.double().sum(0)
    theirs = (tokens.sum(0) - exact).abs().max()
    allowed = theirs + exact.abs().max() * torch.finfo(torch.bfloat16).eps
    assert (sum_of_tokens(tokens) - exact).abs().max() <= allowed


OPERATIONS = {
    "linear": (F.linear, (2, 5, 12), (8, 12)),
    "convolution": (partial(F.conv2d, stride=(4, 2)), (2, 3, 16, 10), (8, 3, 4, 2)),
}


@ALL_DTYPES
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_in_fp32_it_is_the_operation(
    name: str, dtype: torch.dtype, with_bias: bool, autocast: bool, processor: bool
) -> None:
    """What the processor has no instructions for is computed in fp32, with torch's answer and gradients."""
    operation, *shapes = OPERATIONS[name]
    shapes = [*shapes, (8,)][: 2 + with_bias]
    tensors = [draw(*shape, dtype=dtype, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        multiplied = torch.bfloat16 if autocast and dtype != torch.float64 else dtype
        assert is_slow(*tensors) == (processor and multiplied.itemsize == 2)
        if not is_slow(*tensors):
            return
        answers = [in_fp32(operation, *tensors), operation(*tensors)]
    gradients = [torch.autograd.grad(answer, tensors, torch.ones_like(answer)) for answer in answers]
    for ours, theirs in zip((answers[0], *gradients[0]), (answers[1], *gradients[1]), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


def test_joined_layers_are_the_layers() -> None:
    x = draw(9, 16)
    layers = [(draw(8, 16, seed=1), draw(8, seed=2)), (draw(4, 16, seed=3), None)]
    weight, bias = join(layers)
    torch.testing.assert_close(F.linear(x, weight, bias), torch.cat([F.linear(x, *layer) for layer in layers], 1))
    assert join([(weight, None) for weight, _ in layers])[1] is None
    assert join(layers[:1]) is layers[0]


@needs_kernels
@ALL_DTYPES
def test_a_product_may_be_added(dtype: torch.dtype) -> None:
    """Rounded to the dtype of what is given at most."""
    tokens, weight, bias = draw(9, 16, dtype=dtype), draw(24, 16, dtype=dtype, seed=1), draw(24, dtype=dtype, seed=2)
    base = draw(9, 24, dtype=dtype, seed=3)
    expected = F.linear(tokens, weight, bias)
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).eps}
    torch.testing.assert_close(product(tokens, weight, bias, dtype).to(dtype), expected, **tolerance)
    out = torch.empty(9, 24, dtype=dtype)
    assert product(tokens, weight, bias, dtype, base=base, out=out) is out
    torch.testing.assert_close(out, base + expected, **tolerance)
    assert product(tokens, weight, None, dtype, out=base, base=base) is base


@needs_kernels
@pytest.mark.parametrize("left", DTYPES[1:], ids=str)
@pytest.mark.parametrize("right", DTYPES[1:], ids=str)
def test_a_turned_product_is_added_in_fp32(left: torch.dtype, right: torch.dtype) -> None:
    a, b, sums = draw(300, 9, dtype=left), draw(300, 5, dtype=right, seed=1), draw(9, 5, dtype=torch.float32, seed=2)
    expected = sums.double() + a.double().T @ b.double()
    dtype = min((left, right), key=lambda dtype: dtype.itemsize)
    add_transposed_product(sums, a, b, dtype)
    assert sums.dtype == torch.float32
    assert ((sums - expected).norm() / expected.norm()) < (1e-6 if dtype == torch.float32 else 2e-2)


def test_who_watches_operations_sees_torchs() -> None:
    """Counters, fake tensors and other devices are left to the plain backends."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    assert execution(torch.zeros(1)) is Execution.EAGER
    with FlopCounterMode(display=False):
        assert execution(torch.zeros(1)) is not Execution.EAGER
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(torch.zeros(1))
    assert execution(fake) is not Execution.EAGER
