"""The residual line as one kernel: the plain line's numbers and gradients, in every dtype, on a GPU where there is one.

That a block uses it, and when not, is in test_model.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2.ops.triton import residual

Line = Callable[..., Tensor]

SHAPES = [(2, 3, 5, 24), (1, 1, 1, 1), (3, 7, 4, 96), (2, 9, 8, 130)]
"""Less than a tile, one number, whole tiles and a rest, more channels than a power of two."""


def plain(x: Tensor, branch_out: Tensor, weight: Tensor, bias: Tensor, eps: float, factors: Tensor | None) -> Tensor:
    """The line in torch's own operations."""
    branch = F.layer_norm(branch_out, branch_out.shape[-1:], weight, bias, eps)
    return x + (branch if factors is None else branch * factors.view(-1, 1, 1, 1).to(branch.dtype))


@dataclass(frozen=True)
class Drawn:
    """What a line is made of, and the gradient of its answer, in fp64."""

    x: Tensor
    branch_out: Tensor
    weight: Tensor
    bias: Tensor
    grad: Tensor
    factors: Tensor | None

    def to(self, dtype: torch.dtype, device: str = "cpu") -> "Drawn":
        """The same in another dtype."""
        factors = None if self.factors is None else self.factors.to(device, dtype)
        x, branch_out, grad = (each.to(device, dtype) for each in (self.x, self.branch_out, self.grad))
        return Drawn(x, branch_out, self.weight.to(device, dtype), self.bias.to(device, dtype), grad, factors)

    def run(self, line: Line) -> dict[str, Tensor]:
        """The answer and all gradients."""
        inputs = {name: vars(self)[name].detach().requires_grad_() for name in ("x", "branch_out", "weight", "bias")}
        answer = line(*inputs.values(), 1e-5, self.factors)
        gradients = torch.autograd.grad(answer, tuple(inputs.values()), self.grad)
        return {"answer": answer.detach(), **dict(zip(inputs, gradients, strict=True))}


def draw(shape: tuple[int, ...], drops: bool) -> Drawn:
    """The work has a mean that is large beside its deviation: a sum of squares would cancel."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    factors = torch.tensor([0.0, 1.25, 2.0][: shape[0]], dtype=torch.float64) if drops else None
    channels = shape[-1]
    return Drawn(
        normal(*shape), 3 * normal(*shape) + 20, 1 + normal(channels), normal(channels), normal(*shape), factors
    )


def excess(drawn: Drawn, dtype: torch.dtype, device: str = "cpu") -> dict[str, tuple[float, float]]:
    """The kernels' and the plain line's errors against fp64, of inputs in a dtype, where the kernels' are more than
    twice as large, of gradients three times; one rounding is always allowed."""
    drawn = drawn.to(dtype).to(torch.float64)
    truth = drawn.run(plain)
    results = [drawn.to(dtype, device).run(line) for line in (residual.add_normalised, plain)]
    found = {}
    for name, true in truth.items():
        error, usual = (((each[name].cpu().double() - true).norm() / true.norm()).item() for each in results)
        if not error <= (2 if name == "answer" else 3) * usual + torch.finfo(dtype).eps / 2:
            found[name] = error, usual
    return found


def assert_equal(drawn: Drawn) -> None:
    """The kernels' answer and gradients are the plain line's."""
    results, truth = drawn.run(residual.add_normalised), drawn.run(plain)
    for name, true in truth.items():
        torch.testing.assert_close(results[name], true, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernels_are_the_line(shape: tuple[int, ...], drops: bool) -> None:
    """In fp64: answer and gradients."""
    assert_equal(draw(shape, drops))


def test_a_program_takes_several_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward, with fewer programs than blocks, the last of them with rows that are not there."""
    monkeypatch.setattr(residual, "most_programs", lambda device: 2)
    monkeypatch.setattr(residual, "NUMBERS_AT_ONCE", 64)
    assert_equal(draw((3, 5, 3, 24), True))


def test_maps_that_lie_otherwise_in_memory() -> None:
    """Views: transposed maps, an expanded gradient."""
    drawn = draw((2, 3, 5, 24), True)
    x, branch_out = (each.transpose(1, 2).contiguous().transpose(1, 2) for each in (drawn.x, drawn.branch_out))
    assert_equal(replace(drawn, x=x, branch_out=branch_out, grad=drawn.grad[:, :1, :1].expand_as(x)))


def test_no_images() -> None:
    """Nothing in, nothing out, zero gradients."""
    drawn = draw((2, 3, 5, 24), False)
    results = replace(drawn, x=drawn.x[:0], branch_out=drawn.branch_out[:0], grad=drawn.grad[:0]).run(
        residual.add_normalised
    )
    assert results["answer"].shape == (0, 3, 5, 24)
    assert not results["weight"].any()
    assert not results["bias"].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("drops", [False, True])
def test_the_kernels_round_no_more_than_the_line(dtype: torch.dtype, drops: bool) -> None:
    """In each dtype."""
    assert excess(draw((3, 7, 4, 96), drops), dtype) == {}


def test_under_autocast_the_norm_is_in_fp32() -> None:
    """As torch's own is on a GPU: of a bf16 branch and a main branch in fp32 or bf16 comes fp32."""
    drawn = draw(SHAPES[2], False).to(torch.float32)
    for x in (drawn.x, drawn.x.bfloat16()):
        with torch.autocast("cpu", torch.bfloat16):
            answer = residual.add_normalised(x, drawn.branch_out.bfloat16(), drawn.weight, drawn.bias, 1e-5, None)
        expected = plain(x.float(), drawn.branch_out.bfloat16().float(), drawn.weight, drawn.bias, 1e-5, None)
        torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-5)


def test_gradients_have_the_dtypes_of_what_they_are_of() -> None:
    """Of a bf16 main branch and branch, and a norm in fp32, under autocast; they are those of fp32, rounded."""
    drawn = draw(SHAPES[2], True).to(torch.float32)
    half = {name: vars(drawn)[name].bfloat16() for name in ("x", "branch_out")}

    def run(line: Line, **inputs: Tensor) -> tuple[Tensor, ...]:
        leaves = [each.detach().requires_grad_() for each in (*inputs.values(), drawn.weight, drawn.bias)]
        with torch.autocast("cpu", torch.bfloat16, enabled=line is not plain):
            answer = line(*leaves, 1e-5, drawn.factors)
        return torch.autograd.grad(answer, leaves, drawn.grad)

    found = run(residual.add_normalised, **half)
    expected = run(plain, **{name: each.float() for name, each in half.items()})
    assert [each.dtype for each in found] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=1e-2, atol=1e-2 if one.dtype == torch.bfloat16 else 1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("channels", [96, 128, 1024, 4096])
def test_the_compiled_kernels_round_no_more_than_the_line(dtype: torch.dtype, drops: bool, channels: int) -> None:
    """On a GPU."""
    assert excess(draw((3, 17, 14, channels), drops), dtype, "cuda") == {}
