"""The compiled kernels for CPUs, each against the same sums in float64."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attention_cases import CASES, IMPLEMENTATIONS, Case, draw
from swinv2.ops.cpu import blocks, kernels, library
from swinv2.ops.cpu.arguments import Norm, Weights, token_step
from swinv2.ops.precision import precise
from swinv2.ops.reference import AttentionInputs
from swinv2.ops.windows import WindowPlan

pytestmark = pytest.mark.skipif(library.refuse() is not None, reason=str(library.refuse()))

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=str)

ANY_THREADS = pytest.mark.usefixtures("threads")

BOUNDS = {torch.float32: 5e-6, torch.float64: 1e-13}
"""Of the error of each number, in units of the largest one."""


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    threads_before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(threads_before)


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Numbers that every dtype can hold, so that the truth starts from the same."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return numbers.bfloat16().to(dtype)


def holds(result: Tensor, truth: Tensor, times: float = 1.0, computed_in: torch.dtype = torch.float64) -> bool:
    """Whether a result is exact: computed in fp32 at least, and rounded once if it is stored in 16 bits.

    Args:
        times: How much larger than usual its error may be.
        computed_in: A dtype, if it is not the result's, in which the kernel computed.
    """
    assert result.shape == truth.shape
    bound = times * max(BOUNDS[precise(result.dtype)], BOUNDS[precise(computed_in)])
    # To the nearest number of 16 bits it is half a unit in the last place.
    rounding = 0.501 * torch.finfo(result.dtype).eps if result.dtype.itemsize == 2 else 0.0
    largest = truth.abs().max() if truth.numel() else 0.0
    return bool(
        ((result.double() - truth).abs() <= rounding * truth.abs() + bound * largest + 3e-8 * (rounding > 0)).all()
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
class TestNumbersOf16Bits:
    """They are read and written as torch does: every number, infinity, what is smaller than normal, what is none."""

    @staticmethod
    def copy(numbers: Tensor, dtype: torch.dtype) -> Tensor:
        """Numbers as a kernel reads them and writes them."""
        nothing, out = torch.zeros(1), torch.empty(len(numbers), 1, dtype=dtype)
        kernels.add_normalised(numbers[:, None], torch.zeros(len(numbers), 1), nothing, nothing, 1e-5, 1.0, out)
        return out[:, 0]

    def test_they_are_read(self, dtype: torch.dtype) -> None:
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        torch.testing.assert_close(self.copy(every, torch.float32), every.float(), rtol=0, atol=0, equal_nan=True)

    def test_they_are_written(self, dtype: torch.dtype) -> None:
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
        every = every[every.isfinite()].sort().values
        halfway = (every[1:] + every[:-1]) / 2
        beside = [torch.nextafter(halfway, halfway + sign) for sign in (-1, 1)]
        largest = torch.tensor([torch.finfo(torch.float32).max, torch.inf, torch.nan, 1e-40, 65519.9, 65520.0])
        numbers = torch.cat([halfway, *beside, largest, -largest])
        torch.testing.assert_close(self.copy(numbers, dtype), numbers.to(dtype), rtol=0, atol=0, equal_nan=True)


WIDTHS = [(1, 1), (3, 7), (130, 33), (70, 96), (0, 8)]
"""Tokens and channels."""


class TestGelu:
    """The exact one."""

    @ANY_THREADS
    @ALL_DTYPES
    @pytest.mark.parametrize("size", WIDTHS, ids=str)
    def test_it_and_its_gradient(self, size: tuple[int, int], dtype: torch.dtype) -> None:
        gelu_in, grad = 3 * random(*size, dtype=dtype), random(*size, dtype=dtype, seed=1)
        exact = gelu_in.double().requires_grad_()
        F.gelu(exact).backward(grad.double())
        out, gelu_out, grad_before = (torch.empty_like(gelu_in) for _ in range(3))
        sums = torch.ones(size[1], dtype=torch.float64)
        kernels.gelu(gelu_in, out)
        kernels.gelu_backward(gelu_in, grad, gelu_out, grad_before, sums)
        assert holds(out, F.gelu(exact.detach()))
        assert holds(gelu_out, F.gelu(exact.detach()))
        assert holds(grad_before, exact.grad)
        assert holds(sums, 1 + exact.grad.sum(0), computed_in=dtype)

    def test_it_is_exact_for_every_number(self) -> None:
        gelu_in = torch.cat([torch.linspace(-12, 12, 9999), torch.tensor([1e4, -1e4, 1e-30, 0.0])]).float()[None]
        exact, out, gelu_out, slope = gelu_in.double().requires_grad_(), *(torch.empty_like(gelu_in) for _ in range(3))
        F.gelu(exact).sum().backward()
        kernels.gelu(gelu_in, out)
        kernels.gelu_backward(gelu_in, torch.ones_like(gelu_in), gelu_out, slope, torch.zeros(gelu_in.numel()).double())
        for ours, truth in ((out, F.gelu(exact.detach())), (gelu_out, F.gelu(exact.detach())), (slope, exact.grad)):
            assert ((ours - truth).abs() <= 2e-7 * exact.detach().abs().clamp(min=1)).all()

    def test_it_may_be_done_in_place(self) -> None:
        gelu_in, grad = random(70, 33, dtype=torch.float32), random(70, 33, dtype=torch.float32, seed=1)
        out, gelu_out, slope = (torch.empty_like(gelu_in) for _ in range(3))
        kernels.gelu_backward(gelu_in, grad, gelu_out, slope, torch.zeros(33).double())
        kernels.gelu_backward(gelu_in, grad, gelu_out, grad, torch.zeros(33).double())
        assert torch.equal(grad, slope)
        kernels.gelu(gelu_in, out)
        kernels.gelu(gelu_in, gelu_in)
        assert torch.equal(gelu_in, out)

    def test_a_number_that_is_none_stays_none(self) -> None:
        gelu_in, grad = random(5, 19, dtype=torch.float32), torch.ones(5, 19)
        gelu_in[2, 3] = torch.nan
        out, gelu_out, slope, sums = (
            torch.zeros(5, 19),
            torch.zeros(5, 19),
            torch.zeros(5, 19),
            torch.zeros(19).double(),
        )
        kernels.gelu(gelu_in, out)
        kernels.gelu_backward(gelu_in, grad, gelu_out, slope, sums)
        for result in (out, gelu_out, slope):
            assert torch.equal(result.isnan(), gelu_in.isnan())
        assert torch.equal(sums.isnan(), gelu_in.isnan().any(0))


class TestResidualLine:
    """x + factor * norm(work)."""

    @ANY_THREADS
    @ALL_DTYPES
    @pytest.mark.parametrize("size", WIDTHS[1:], ids=str)
    def test_it_and_its_gradients(self, size: tuple[int, int], dtype: torch.dtype) -> None:
        x, branch_out, grad = (random(*size, dtype=dtype, seed=seed) for seed in range(3))
        weight, bias = random(size[1], dtype=dtype, seed=3), random(size[1], dtype=dtype, seed=4)
        leaves = [tensor.double().requires_grad_() for tensor in (branch_out, weight, bias)]
        truth = x.double() + 1.25 * F.layer_norm(leaves[0], size[1:], *leaves[1:], 1e-5)
        truth.backward(grad.double())
        out, grad_branch_out = torch.empty_like(x), torch.empty_like(x)
        sums = torch.ones(3, size[1], dtype=torch.float64)
        kernels.add_normalised(x, branch_out, weight, bias, 1e-5, 1.25, out)
        kernels.add_normalised_backward(grad, branch_out, weight, 1e-5, 1.25, grad_branch_out, sums)
        assert holds(out, truth.detach())
        assert holds(grad_branch_out, leaves[0].grad)
        expected = torch.stack([leaves[1].grad, leaves[2].grad, leaves[0].grad.sum(0)])
        assert holds(sums, 1 + expected, computed_in=dtype)

    def test_it_may_be_done_in_place_on_tokens_apart(self) -> None:
        wide, branch_out = random(70, 40, dtype=torch.float32), random(70, 60, dtype=torch.float32, seed=1)[:, 20:53]
        x, weight, bias = wide[:, :33], random(33, dtype=torch.float32), random(33, dtype=torch.float32, seed=1)
        truth, beyond = (
            x.double() + F.layer_norm(branch_out.double(), (33,), weight.double(), bias.double()),
            wide[:, 33:].clone(),
        )
        kernels.add_normalised(x, branch_out, weight, bias, 1e-5, 1.0, x)
        assert holds(x, truth)
        assert torch.equal(wide[:, 33:], beyond)

    def test_an_answer_that_cannot_be_written_is_refused(self) -> None:
        x, weight = torch.zeros(4, 6), torch.ones(3)
        with pytest.raises(ValueError, match="equal distances"):
            kernels.gelu(torch.zeros(4, 3), x[:, ::2])
        with pytest.raises(ValueError, match="equal distances"):
            kernels.add_normalised(*[torch.zeros(4, 3)] * 2, weight, weight, 1e-5, 1.0, x[:, ::2])

    def test_a_number_that_is_none_spoils_its_token_only(self) -> None:
        x, branch_out, weight = torch.zeros(90, 33), random(90, 33, dtype=torch.float32), torch.ones(33)
        branch_out[40, 7] = torch.nan
        out, grad_branch_out, sums = torch.zeros(90, 33), torch.zeros(90, 33), torch.zeros(3, 33).double()
        kernels.add_normalised(x, branch_out, weight, weight, 1e-5, 1.0, out)
        kernels.add_normalised_backward(torch.ones(90, 33), branch_out, weight, 1e-5, 1.0, grad_branch_out, sums)
        spoiled = torch.arange(90) == 40
        assert torch.equal(out.isnan().all(1), spoiled)
        assert torch.equal(out.isnan().any(1), spoiled)
        assert torch.equal(grad_branch_out.isnan().any(1), spoiled)


class TestAttention:
    """Alone; in the network `test_attention.py` holds it to the definition."""

    @staticmethod
    def results(case: Case, dtype: torch.dtype, is_strided: bool = False) -> dict[str, Tensor]:
        """Answer and gradients by name."""
        inputs = draw(case)
        q, k, v, table, scale, padding = (tensor.to(dtype) for tensor in inputs.tensors.values())
        grad = inputs.direction.to(dtype)
        if is_strided:
            # As they come out of one product.
            q, k, v, grad = torch.stack([q, k, v, grad], -3).unbind(-3)
        table, scale = table.to(precise(dtype)), scale.to(precise(dtype))
        out, maps = torch.empty_like(q), torch.empty(*q.shape[:-2], 3, *q.shape[-2:], dtype=dtype).unbind(-3)
        attention = AttentionInputs(q, k, v, table, scale, case.plan, padding)
        kernels.attend(attention, out)
        sums = kernels.attend_backward(grad, attention, maps, True)
        return dict(
            zip(("output", "q", "k", "v", "bias_table", "scale", "padded_value"), (out, *maps, *sums), strict=True)
        )

    @ANY_THREADS
    @ALL_DTYPES
    @pytest.mark.parametrize("is_strided", [False, True])
    @pytest.mark.parametrize("case", [CASES[2], CASES[3], *CASES[13::3]], ids=lambda case: case.name)
    def test_it_and_its_gradients(self, case: Case, is_strided: bool, dtype: torch.dtype) -> None:
        case = replace(case, batch=3)
        truth = draw(case).call(IMPLEMENTATIONS["reference"], case.plan, torch.float64)
        for name, result in self.results(case, dtype, is_strided).items():
            assert holds(result, truth[name], times=4, computed_in=dtype), name

    def test_no_images_at_all(self) -> None:
        case = replace(CASES[11], batch=0)
        for name, result in self.results(case, torch.float32).items():
            assert not result.any(), name

    def test_a_table_that_wants_no_gradient_gets_none(self) -> None:
        case = CASES[11]
        q, k, v, table, scale, padding = (tensor.float() for tensor in draw(case).tensors.values())
        maps = [torch.empty_like(q) for _ in range(3)]
        with_table = self.results(case, torch.float32)
        grad = draw(case).direction.float()
        inputs = AttentionInputs(q, k, v, table, scale, case.plan, padding)
        nothing, *_ = kernels.attend_backward(grad, inputs, maps, False)
        assert nothing is None
        for name, result in zip("qkv", maps, strict=True):
            assert torch.equal(result, with_table[name])

    @pytest.mark.parametrize("spoiled", ["q", "k", "v"])
    def test_a_number_that_is_none_spoils_its_window_and_head_only(self, spoiled: str) -> None:
        case = Case("two by two windows", (6, 6), (3, 3))
        tensors = {name: tensor.float() for name, tensor in draw(case).tensors.items()}
        tensors[spoiled][0, 4, 1, 1, 5] = torch.nan
        q, k, v, table, scale, padding = tensors.values()
        out = torch.zeros_like(q)
        kernels.attend(AttentionInputs(q, k, v, table, scale, case.plan, padding), out)
        expected = torch.zeros_like(q, dtype=torch.bool)
        area = expected[0, 4:5, 1:2, 1] if spoiled == "q" else expected[0, 3:, :3, 1]
        area[..., 5 if spoiled == "v" else slice(None)] = True
        assert torch.equal(out.isnan(), expected)


CHANNELS, HIDDEN = 24, 100


def layer(out: int, into: int, dtype: torch.dtype, seed: int, has_bias: bool = True) -> Weights:
    """Weight and bias of a linear layer."""
    weight = (random(out, into, dtype=dtype, seed=seed) / 4).to(dtype)
    return weight, random(out, dtype=dtype, seed=seed + 1) if has_bias else None


def qkv_layers(dtype: torch.dtype, has_bias: bool = True) -> list[Weights]:
    return [layer(CHANNELS, CHANNELS, dtype, seed, has_bias and seed != 11) for seed in (1, 11, 21)]


def table_for(plan: WindowPlan, dtype: torch.dtype) -> Tensor:
    """A bias table of two heads."""
    return random(2, *(2 * length - 1 for length in plan.window), dtype=dtype, seed=5)


def apply(layer: Weights, features: Tensor) -> Tensor:
    weight, bias = layer
    return F.linear(features, weight.double(), None if bias is None else bias.double())


@ALL_DTYPES
class TestBranches:
    """A whole branch in one call."""

    @staticmethod
    def norm(dtype: torch.dtype) -> Norm:
        return random(CHANNELS, dtype=dtype, seed=7), random(CHANNELS, dtype=dtype, seed=8), 1e-5, 1.25

    @staticmethod
    def normalised(branch_out: Tensor, norm: Norm) -> Tensor:
        return norm[3] * F.layer_norm(branch_out, (CHANNELS,), norm[0].double(), norm[1].double(), norm[2])

    @ANY_THREADS
    @pytest.mark.parametrize("tokens", [0, 1, 49, 300])
    @pytest.mark.parametrize("has_bias", [False, True])
    def test_the_mlp(self, has_bias: bool, tokens: int, dtype: torch.dtype) -> None:
        x, norm = random(tokens, CHANNELS, dtype=dtype), self.norm(dtype)
        fc1, fc2 = layer(HIDDEN, CHANNELS, dtype, 1, has_bias), layer(CHANNELS, HIDDEN, dtype, 3, has_bias)
        out, gelu_in, branch_out = torch.empty_like(x), x.new_empty(tokens, HIDDEN), torch.empty_like(x)
        blocks.add_mlp(x, fc1, fc2, norm, out, gelu_in, branch_out)
        hidden = apply(fc1, x.double())
        branch_rows = apply(fc2, F.gelu(hidden))
        assert holds(gelu_in, hidden)
        assert holds(branch_out, branch_rows)
        assert holds(out, x.double() + self.normalised(branch_rows, norm))
        blocks.add_mlp(x, fc1, fc2, norm, x)
        assert torch.equal(x, out)

    @ANY_THREADS
    @pytest.mark.parametrize("batch", [0, 3])
    @pytest.mark.parametrize("has_bias", [False, True])
    @pytest.mark.parametrize("case", [CASES[2], *CASES[13::4]], ids=lambda case: case.name)
    def test_the_attention(self, case: Case, has_bias: bool, batch: int, dtype: torch.dtype) -> None:
        plan, norm = case.plan, self.norm(dtype)
        x = random(batch, *plan.grid, CHANNELS, dtype=dtype)
        into, last = qkv_layers(dtype, has_bias), layer(CHANNELS, CHANNELS, dtype, 3, has_bias)
        table = table_for(plan, precise(dtype))
        scale = torch.tensor([5.0, 20.0], dtype=precise(dtype))
        qkv, attended, branch_out, out = (x.new_empty(*x.shape[:-1], wide * CHANNELS) for wide in (3, 1, 1, 1))
        blocks.add_attention(x, into, last, table, scale, plan, norm, out, qkv, attended, branch_out)
        joined = torch.cat([apply(each, x.double()) for each in into], -1)
        q, k, v = (part.unflatten(-1, (2, -1)) for part in joined.chunk(3, -1))
        padding = into[2][1].double().view(2, -1) if has_bias else None
        answer = IMPLEMENTATIONS["reference"](q, k, v, table.double(), scale.double(), plan, padding).flatten(-2)
        branch_rows = apply(last, answer)
        truths = {
            "qkv": joined,
            "attended": answer,
            "branch_out": branch_rows,
            "out": x.double() + self.normalised(branch_rows, norm),
        }
        for (name, truth), result in zip(truths.items(), (qkv, attended, branch_out, out), strict=True):
            assert holds(result, truth, times=4), name
        blocks.add_attention(x, into, last, table, scale, plan, norm, x)
        assert torch.equal(x, out)

    def test_a_number_that_is_none_spoils_no_other_token_or_window(self, dtype: torch.dtype) -> None:
        norm, table, scale = self.norm(dtype), torch.zeros(2, 5, 5), torch.ones(2)
        fc1, fc2 = layer(HIDDEN, CHANNELS, dtype, 1), layer(CHANNELS, HIDDEN, dtype, 3)
        into, last = qkv_layers(dtype), layer(CHANNELS, CHANNELS, dtype, 3)
        x = random(1, 6, 6, CHANNELS, dtype=dtype)
        x[0, 4, 1, 3] = torch.nan
        out = torch.zeros_like(x)
        blocks.add_mlp(x.flatten(0, 2), fc1, fc2, norm, out.flatten(0, 2))
        expected = torch.zeros(1, 6, 6, dtype=torch.bool)
        expected[0, 4, 1] = True
        assert torch.equal(out.isnan().any(-1), expected)
        plan = Case("two by two windows", (6, 6), (3, 3)).plan
        blocks.add_attention(x, into, last, table, scale, plan, norm, out)
        expected[0, 3:, :3] = True
        assert torch.equal(out.isnan().all(-1), expected)
        assert torch.equal(out.isnan().any(-1), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
class TestGradients:
    """Of a whole branch in one call, against torch's in fp64."""

    @staticmethod
    def of_the_mlp(
        tokens: int, dtype: torch.dtype, frozen: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Ours, and the truth, by name."""
        x, grad = (random(tokens, CHANNELS, dtype=dtype, seed=seed) for seed in (0, 9))
        norm = TestBranches.norm(dtype)
        layers = layer(HIDDEN, CHANNELS, dtype, 1), layer(CHANNELS, HIDDEN, dtype, 3)
        gelu_in, branch_out = x.new_empty(tokens, HIDDEN), torch.empty_like(x)
        blocks.add_mlp(x, *layers, norm, torch.empty_like(x), gelu_in, branch_out)
        ours = {"x": torch.empty_like(x), "in_proj": x.new_empty(HIDDEN, CHANNELS), "in_proj_bias": x.new_empty(HIDDEN)}
        ours |= {"out_proj": x.new_empty(CHANNELS, HIDDEN), "epilogue": x.new_empty(3, CHANNELS)}
        given = {name: None if frozen and name in ("x", "in_proj", "out_proj") else each for name, each in ours.items()}
        (fc1, _), (fc2, _) = layers
        blocks.mlp_backward(grad, x, gelu_in, branch_out, fc1, fc2, norm, blocks.Gradients(**given))
        leaves = [each.double().requires_grad_() for each in (x, *layers[0], layers[1][0], *norm[:2], layers[1][1])]
        hidden = F.gelu(F.linear(leaves[0], *leaves[1:3]))
        branch_rows = F.layer_norm(F.linear(hidden, leaves[3], leaves[6]), (CHANNELS,), *leaves[4:6], norm[2])
        *truth, weight, bias, last_bias = torch.autograd.grad(leaves[0] + norm[3] * branch_rows, leaves, grad.double())
        return ours, dict(zip(ours, [*truth, torch.stack([weight, bias, last_bias])], strict=True))

    @staticmethod
    def of_the_attention(
        case: Case, dtype: torch.dtype, frozen: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The same, for maps of a case's batch and plan."""
        plan, norm, size = case.plan, TestBranches.norm(dtype), (case.batch, *case.grid)
        x, grad = (random(*size, CHANNELS, dtype=dtype, seed=seed) for seed in (0, 9))
        into, last = qkv_layers(dtype), layer(CHANNELS, CHANNELS, dtype, 3)
        table = table_for(plan, dtype)
        scale = torch.tensor([5.0, 20.0], dtype=dtype)
        saved = [x.new_empty(*size, wide * CHANNELS) for wide in (3, 1, 1)]
        blocks.add_attention(x, into, last, table, scale, plan, norm, torch.empty_like(x), *saved)
        ours = {"x": torch.empty_like(x), "in_proj": x.new_empty(3 * CHANNELS, CHANNELS)}
        ours |= {"in_proj_bias": x.new_empty(3 * CHANNELS), "out_proj": torch.empty_like(last[0])}
        ours |= {
            "epilogue": x.new_empty(3, CHANNELS),
            "table": torch.empty_like(table),
            "scale": torch.empty_like(scale),
        }
        given = {n: None if frozen and n in ("x", "in_proj", "out_proj", "table") else each for n, each in ours.items()}
        weights, value_bias = [weight for weight, _ in (*into, last)], into[2][1]
        arguments = (grad, x, saved, weights, value_bias, table, scale, plan, norm, blocks.Gradients(**given))
        blocks.attention_backward(*arguments)
        joined = torch.cat([into[0][1], torch.zeros_like(into[0][1]), value_bias])
        given = (x, torch.cat(weights[:3]), joined, weights[3], table, scale, *norm[:2], last[1])
        leaves = [each.double().requires_grad_() for each in given]
        parts = F.linear(leaves[0], *leaves[1:3]).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (2, -1)) for part in parts)
        padding = leaves[2].chunk(3)[2].view(2, -1)
        answer = IMPLEMENTATIONS["reference"](q, k, v, *leaves[4:6], plan, padding).flatten(-2)
        branch_rows = F.layer_norm(F.linear(answer, leaves[3], leaves[8]), (CHANNELS,), *leaves[6:8], norm[2])
        truth = torch.autograd.grad(leaves[0] + norm[3] * branch_rows, leaves, grad.double())
        return ours, dict(zip(ours, [*truth[:4], torch.stack(truth[6:]), *truth[4:6]], strict=True))

    # More than two threads do at once.
    @ANY_THREADS
    @pytest.mark.parametrize("tokens", [0, 1, 49, 700])
    def test_of_the_mlp(self, tokens: int, dtype: torch.dtype) -> None:
        ours, truths = self.of_the_mlp(tokens, dtype)
        for name, truth in truths.items():
            assert holds(ours[name], truth, times=4), name

    @ANY_THREADS
    @pytest.mark.parametrize("batch", [0, 3, 40])
    @pytest.mark.parametrize("case", [CASES[2], *CASES[13::4]], ids=lambda case: case.name)
    def test_of_the_attention(self, case: Case, batch: int, dtype: torch.dtype) -> None:
        ours, truths = self.of_the_attention(replace(case, batch=batch), dtype)
        for name, truth in truths.items():
            # The keys' bias is none: its gradient is a sum that is zero.
            ours[name], truth = (each.clone() for each in (ours[name], truth))
            for each in (ours[name], truth) if name == "in_proj_bias" else ():
                each[CHANNELS : 2 * CHANNELS] = 0
            assert holds(ours[name], truth, times=8), name

    @ANY_THREADS
    def test_what_is_not_wanted_changes_nothing_and_another_call_gives_the_same(self, dtype: torch.dtype) -> None:
        case = replace(CASES[13], batch=40)
        for make in (
            lambda **rest: self.of_the_mlp(700, dtype, **rest),
            lambda **rest: self.of_the_attention(case, dtype, **rest),
        ):
            first, again, fewer = make()[0], make()[0], make(frozen=True)[0]
            for name, result in first.items():
                assert torch.equal(result, again[name]), name
                assert name in ("x", "in_proj", "out_proj", "table") or torch.equal(result, fewer[name]), name


class TestTokenStep:
    """Where tokens lie, whatever torch calls the strides of axes of length 1."""

    def test_it_is_known_where_tokens_lie_at_equal_distances(self) -> None:
        x = torch.zeros(2, 3, 5, 4, 6)
        assert token_step(x, 2) == 24
        assert token_step(x[..., :2, :], 2) == 24
        assert token_step(x.flatten(-2), 1) == 24
        assert token_step(x[:1, :1, :1], 2) == 24
        assert token_step(x[:1, :1, :1].transpose(0, 1), 2) == 24
        assert token_step(x[:1, :1].as_strided((1, 1, 5, 4, 6), (7, 9, 24, 6, 1)), 2) == 24
        assert token_step(x[..., :1].transpose(-1, -2)[..., 0, :1], 1) == 24

    def test_it_is_none_where_they_do_not(self) -> None:
        x = torch.zeros(2, 3, 5, 4, 6)
        assert token_step(x[:, :, :4], 2) is None
        assert token_step(x.transpose(1, 2), 2) is None
        assert token_step(x[..., :3], 2) is None
        assert token_step(x[..., ::2], 1) is None


def test_threads_of_a_program_do_not_disturb_each_other() -> None:
    """Each has memory of its own to work in."""
    x, weight = random(1, 300, 200, 16, dtype=torch.float32), random(8, 64, dtype=torch.float32, seed=1)
    layer = blocks.PreparedProjection((weight, None), (torch.ones(8), torch.zeros(8), 1e-5, 1.0), (2, 2))
    sizes = [300, 8, 100, 300]
    expected = {rows: blocks.project(layer, x[:, :rows]) for rows in sizes}

    def project(rows: int) -> bool:
        return all(torch.equal(blocks.project(layer, x[:, :rows]), expected[rows]) for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(project, sizes))


ONES = {size: torch.ones(size) for size in ((4, 8), (4, 6), (8, 6), (7, 6), (8,), (6,), (5,), (3, 8), (2, 8))}
MAP, PLAN = torch.ones(1, 4, 4, 2, 3), WindowPlan((4, 4), (2, 2))


def attend_ones(k: Tensor = MAP, table: Tensor | None = None, plan: WindowPlan = PLAN) -> None:
    table = torch.ones(2, 3, 3) if table is None else table
    kernels.attend(AttentionInputs(MAP, k, MAP, table, torch.ones(2), plan), MAP)


@pytest.mark.parametrize(
    "call",
    [
        lambda: kernels.gelu(ONES[4, 8], ONES[4, 6]),
        lambda: kernels.gelu_backward(*[ONES[4, 8]] * 4, ONES[6,]),
        lambda: kernels.add_normalised(ONES[4, 8], ONES[4, 8], ONES[6,], ONES[8,], 1e-5, 1.0, ONES[4, 8]),
        lambda: kernels.add_normalised_backward(*[ONES[4, 8]] * 2, ONES[8,], 1e-5, 1.0, ONES[4, 8], ONES[2, 8]),
        lambda: blocks.project(
            blocks.PreparedProjection((ONES[4, 8], None), (torch.ones(4), torch.ones(4), 1e-5, 1.0), (2, 2)),
            MAP[..., 0, :],
        ),
        lambda: blocks.add_mlp(
            ONES[4, 8], (ONES[3, 8], None), (ONES[8, 6], None), (ONES[8,], ONES[8,], 1e-5, 1.0), ONES[4, 8]
        ),
        lambda: attend_ones(table=torch.ones(2, 3, 5)),
        lambda: attend_ones(k=MAP[:, :2]),
        lambda: attend_ones(plan=WindowPlan((4, 6), (2, 2))),
    ],
)
@pytest.mark.usefixtures("as_a_user")
def test_sizes_that_do_not_fit_are_refused(call: Callable[[], None]) -> None:
    """A kernel would read or write beyond a tensor."""
    with pytest.raises(ValueError, match=r"has shape .*; expected"):
        call()


def test_what_is_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match="is on meta; the kernels for CPUs"):
        kernels.gelu(ONES[4, 8], ONES[4, 8].to("meta"))
