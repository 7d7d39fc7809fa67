"""The fused backend: tiles of every size, the operations that torch sees, memory; on a GPU where there is one.

The table of cases that all backends share is in attention_cases.py.
"""

import itertools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attention_cases import IMPLEMENTATIONS, Case, draw, error
from swinv2.ops.reference import AttentionInputs
from swinv2.ops.triton import backward, forward, launch
from swinv2.ops.windows import WindowPlan

TILED = [
    Case("several tiles, shift", (6, 7), (5, 5), (2, 2)),
    Case("several tiles, padding hidden", (6, 6), (5, 7), (2, 3), mask_padding=True, heads=1),
    Case("window of one column", (19, 2), (18, 1), (9, 0)),
    Case("odd head_dim", (4, 5), (4, 5), head_dim=24),
    Case("even tiles", (8, 4), (8, 4), (4, 0)),
    Case("frames", (4, 3, 6), (3, 3, 4), (1, 0, 2), heads=1),
]


@pytest.fixture(params=[(32, 16), pytest.param((16, 32), marks=pytest.mark.slow)], ids=str)
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of few tokens in tiles of fewer, each kernel by itself."""
    monkeypatch.setattr(launch, "WHOLE_WINDOW", 0)
    monkeypatch.setattr(launch, "_tile_sizes", lambda plan, v: request.param)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """torch.use_deterministic_algorithms."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def excess(case: Case, dtype: torch.dtype = torch.float64) -> dict[str, float]:
    """What is further from the plain backend than rounding explains."""
    inputs = draw(case)
    plain, fused = (inputs.call(IMPLEMENTATIONS[backend], case.plan, dtype) for backend in ("reference", "triton"))
    errors = {name: error(result, plain[name]) for name, result in fused.items()}
    return {name: value for name, value in errors.items() if not value < 1e-12}


class TestTiles:
    """Windows of several tiles."""

    @pytest.mark.usefixtures("tiles")
    @pytest.mark.parametrize(
        "case", [pytest.param(TILED[0], marks=pytest.mark.slow), *TILED[1:]], ids=lambda case: case.name
    )
    def test_they_change_nothing(self, case: Case) -> None:
        """In float64, answer and gradients are the plain backend's."""
        assert excess(case) == {}

    @pytest.mark.usefixtures("tiles", "deterministic")
    @pytest.mark.parametrize(
        "case", [pytest.param(TILED[0], marks=pytest.mark.slow), TILED[1], TILED[-1]], ids=lambda case: case.name
    )
    def test_sums_in_a_fixed_order(self, case: Case) -> None:
        """The deterministic sum over programs' parts is the same sum."""
        assert excess(case) == {}

    @pytest.mark.usefixtures("deterministic")
    def test_sums_in_a_fixed_order_of_whole_windows(self) -> None:
        """As above, where a window is one tile."""
        assert excess(Case("whole windows", (7, 6), (3, 4), (1, 2), batch=2)) == {}

    @pytest.mark.parametrize("tokens", [1, 16, 36, 49, 64, 100, 144, 256, 400, 576, 1024, 2304])
    def test_little_is_empty(self, tokens: int) -> None:
        """Tiles of the chosen size leave less than half of their rows empty, unless they are the smallest there are."""
        size = launch._rows_of_tile(tokens, 128)
        assert size >= launch.SMALLEST_BLOCK
        assert size == launch.SMALLEST_BLOCK or -(-tokens // size) * size < 2 * tokens


def arguments(case: Case, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """Of the operation `attend_fused`."""
    tensors = draw(case).tensors
    q, k, v, padded_value = (tensors[name].to(dtype) for name in ("q", "k", "v", "padded_value"))
    padded = case.plan.grid != case.plan.padded_grid
    table, scale = tensors["bias_table"].float(), tensors["scale"].float()
    return q, k, v, table, scale, padded_value if padded else None, case.plan


class TestOperations:
    """What torch, its compilers and autograd see."""

    CASE = Case("small", (3, 4), (2, 3), (1, 1), heads=1)

    @pytest.mark.filterwarnings("ignore:The .grad attribute")
    def test_forward_is_a_good_operation(self) -> None:
        """Schema, fake and tracing, by torch's own checks."""
        *tensors, plan = arguments(self.CASE)
        torch.library.opcheck(torch.ops.swinv2.attend_fused.default, (*tensors, plan.numbers))

    @pytest.mark.parametrize("wants_bias", [True, False])
    def test_backward_is_a_good_operation(self, wants_bias: bool) -> None:
        """As above."""
        *tensors, plan = arguments(self.CASE)
        attended, softmax_stats = launch.attend_fused(*tensors, plan)
        inputs = (torch.ones_like(attended), *tensors, attended, softmax_stats, wants_bias, plan.numbers)
        torch.library.opcheck(torch.ops.swinv2.attend_fused_backward.default, inputs)

    def test_what_needs_no_gradient_has_none(self) -> None:
        """A frozen bias costs nothing, and the other gradients are the same."""
        *tensors, plan = arguments(self.CASE)
        gradients = []
        for frozen in (False, True):
            leaves = [each.detach().requires_grad_(not (frozen and index == 3)) for index, each in enumerate(tensors)]
            launch.window_attention(AttentionInputs(*leaves[:5], plan, leaves[5])).square().sum().backward()
            gradients.append([leaf.grad for leaf in leaves])
        assert gradients[1].pop(3) is None
        assert gradients[0].pop(3) is not None
        assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))

    def test_maps_of_any_strides(self) -> None:
        """Queries, keys and values may be parts of one product, or lie differently each."""
        q, k, v, table, scale, padded_value, plan = arguments(replace(self.CASE, heads=2))
        expected = launch.attend_fused(q, k, v, table, scale, padded_value, plan)[0]
        together = torch.cat([q, k, v], -1)
        parts = together.split(q.shape[-1], -1)
        assert torch.equal(launch.attend_fused(*parts, table, scale, padded_value, plan)[0], expected)
        turned = q.transpose(1, 2).contiguous().transpose(1, 2)
        assert torch.equal(launch.attend_fused(turned, k, v, table, scale, padded_value, plan)[0], expected)

    def test_a_padded_value_of_any_strides(self) -> None:
        """One vector for all heads, say."""
        *tensors, padded_value, plan = arguments(Case("padded", (3, 4), (2, 3), (1, 1)))
        one = padded_value[:1].expand(2, -1)
        expected = launch.attend_fused(*tensors, one.clone(), plan)[0]
        assert torch.equal(launch.attend_fused(*tensors, one, plan)[0], expected)

    @pytest.mark.parametrize(
        "switch",
        [
            pytest.param("torch.set_float32_matmul_precision('high')", marks=pytest.mark.slow),
            "torch.backends.fp32_precision = 'tf32'",
        ],
    )
    def test_tf32_is_used_where_torch_may(self, switch: str) -> None:
        """By the old switch and by the new one, which forbid each other; for fp32 only."""
        program = f"""
import torch
from swinv2.ops.triton import launch
from swinv2.ops.windows import WindowPlan
def precision(dtype):
    v = torch.zeros(1, 2, 2, 1, 16, dtype=dtype)
    return launch._constants(WindowPlan((2, 2), (2, 2)), v, 16, 16).input_precision
print(precision(torch.float32))
{switch}
print(precision(torch.float32), precision(torch.bfloat16))
"""
        said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        assert said.split() == ["ieee", "tf32", "ieee"]

    def test_wide_vectors_go_by_tiles(self) -> None:
        """What one kernel would need is more than a GPU has beside its cores."""
        case = replace(self.CASE, head_dim=64)
        with mock.patch.object(launch._BackwardPass, "whole_windows", side_effect=AssertionError):
            draw(case).call(IMPLEMENTATIONS["triton"], case.plan, torch.float32)
        with (
            pytest.raises(AssertionError),
            mock.patch.object(launch._BackwardPass, "whole_windows", side_effect=AssertionError),
        ):
            draw(case).call(IMPLEMENTATIONS["triton"], case.plan, torch.bfloat16)

    def test_no_images_at_all(self) -> None:
        """A batch of nothing comes back as nothing, with gradients."""
        case = replace(self.CASE, batch=0)
        results = draw(case).call(IMPLEMENTATIONS["triton"], case.plan, torch.float32)
        assert all(torch.isfinite(result).all() for result in results.values())

    def test_no_gradient_of_the_gradient(self) -> None:
        """It is refused, not wrong."""
        *tensors, plan = arguments(self.CASE)
        q = tensors[0].requires_grad_()
        attended = launch.window_attention(AttentionInputs(*tensors[:5], plan, tensors[5]))
        (grad,) = torch.autograd.grad(attended.square().sum(), q, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.square().sum().backward()


class Allocations(TorchDispatchMode):
    """Adds up the bytes of all tensors that operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not func.is_view and not func._schema.is_mutable:
            self.bytes += result.numel() * result.element_size()
        return result


KERNELS = ("whole_windows", "to_queries", "to_keys", "to_bias")


@pytest.mark.parametrize("window", [8, 16, 32, 48])
def test_memory_is_linear_in_the_tokens(window: int) -> None:
    """Beside maps, a forward pass allocates two numbers for each token and head, a backward pass one more: for the
    first stage of SwinV2-L on a picture of 1536 pixels less than five maps, and at most two tables of bias."""
    plan = WindowPlan((384, 384), (window, window), (window // 2, window // 2))
    feature_map = torch.empty(1, *plan.grid, 6, 32, dtype=torch.bfloat16, device="meta")
    table, scale = (torch.empty(*shape, device="meta") for shape in ((6, 2 * window - 1, 2 * window - 1), (6,)))
    no_kernel = mock.MagicMock()
    with (
        mock.patch.object(forward, "attend", no_kernel),
        mock.patch.multiple(backward, **dict.fromkeys(KERNELS, no_kernel)),
        Allocations() as made,
    ):
        inputs = (feature_map, feature_map, feature_map, table, scale, None)
        attended, softmax_stats = launch.attend_fused.__wrapped__(*inputs, plan)
        launch.attend_fused_backward.__wrapped__(attended, *inputs, attended, softmax_stats, True, plan)
    map_bytes = feature_map.numel() * feature_map.element_size()
    assert made.bytes < 5 * map_bytes + 2 * table.numel() * table.element_size()


@pytest.mark.gpu
class TestOnGpu:
    """The kernels as they are compiled. Run with `pytest -m gpu tests/ops`."""

    CASES = [
        Case("window 8", (32, 24), (8, 8), (4, 4), head_dim=32, heads=3, batch=4),
        Case("window 16", (32, 32), (16, 16), (8, 8), head_dim=32, heads=4, batch=2),
        Case("window 24, padding", (40, 30), (24, 24), (12, 12), head_dim=32, heads=2),
        Case("window 24, padding hidden", (40, 30), (24, 24), (12, 12), mask_padding=True, head_dim=32, heads=2),
        Case("window 32", (64, 32), (32, 32), (16, 16), head_dim=32, heads=2),
        Case("window 48", (48, 96), (48, 48), (24, 24), head_dim=32, heads=1),
        Case("window 64", (64, 64), (64, 64), head_dim=16, heads=1),
        Case("window 7, heads of 64", (15, 14), (7, 7), (3, 3), head_dim=64, heads=2, batch=3),
        Case("rectangular, heads of 128", (20, 33), (10, 11), (5, 5), head_dim=128, heads=2),
        Case("odd head_dim", (20, 20), (5, 10), (2, 5), head_dim=24, heads=2),
        Case("window 8, heads of 128", (16, 16), (8, 8), (4, 4), head_dim=128, heads=2),
        Case("one window, one head", (8, 8), (8, 8), head_dim=32, heads=1),
        Case("shift by one", (9, 9), (3, 3), (1, 1), head_dim=32, heads=1),
        Case("one token", (3, 3), (1, 1), head_dim=32),
        Case("frames 8, window 7", (16, 14, 15), (8, 7, 7), (4, 3, 3), head_dim=32, heads=3),
        Case("frames 5 of 8", (5, 16, 8), (8, 8, 8), (0, 4, 0), head_dim=32, heads=2, batch=2),
        Case("frames, windows of one frame", (4, 8, 8), (1, 8, 8), head_dim=32, heads=2),
        Case("window 16 along all axes", (16, 16, 32), (16, 16, 16), (0, 0, 8), head_dim=32, heads=1),
    ]

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_no_less_exact_than_the_plain_backend(self, case: Case, dtype: torch.dtype) -> None:
        """Errors against float64 are at most twice those of the plain backend, three times for gradients, in the mean
        of some draws: the scale's gradient is a few numbers, and how well one of them is met is luck."""
        found: dict[str, list[tuple[float, float]]] = {}
        for seed in range(4):
            inputs = draw(case, seed)
            tensors = {name: tensor.cuda() for name, tensor in inputs.tensors.items()}
            inputs = replace(inputs, tensors=tensors, direction=inputs.direction.cuda())
            exact = inputs.call(IMPLEMENTATIONS["reference"], case.plan, torch.float64)
            plain, fused = (
                inputs.call(IMPLEMENTATIONS[backend], case.plan, dtype) for backend in ("reference", "triton")
            )
            for name, expected in exact.items():
                found.setdefault(name, []).append((error(fused[name], expected), error(plain[name], expected)))
        too_much = {}
        for name, errors in found.items():
            ours, plain_ones = (sum(each) / len(errors) for each in zip(*errors, strict=True))
            allowed = (2 if name == "output" else 3) * plain_ones + torch.finfo(dtype).eps
            if not ours <= allowed:
                too_much[name] = (ours, allowed)
        assert too_much == {}

    def test_replayed_as_a_cuda_graph(self) -> None:
        """A captured forward pass gives the answer again for other pictures."""
        case = self.CASES[0]
        inputs = [each.cuda() if isinstance(each, Tensor) else each for each in arguments(case, torch.bfloat16)]
        launch.attend_fused(*inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            answer = launch.attend_fused(*inputs)[0]
        inputs[0].copy_(inputs[0].flip(0))
        graph.replay()
        assert torch.equal(answer, launch.attend_fused(*inputs)[0])

    def test_a_backward_pass_can_be_captured(self, deterministic: None) -> None:
        """With sums in a fixed order too."""
        *tensors, plan = [each.cuda() if isinstance(each, Tensor) else each for each in arguments(self.CASES[0])]
        attended, softmax_stats = launch.attend_fused(*tensors, plan)
        inputs = (torch.ones_like(attended), *tensors, attended, softmax_stats, True, plan)
        expected = launch.attend_fused_backward(*inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = launch.attend_fused_backward(*inputs)
        graph.replay()
        assert all(torch.equal(one, other) for one, other in zip(captured, expected, strict=True))

    def test_two_passes_are_equal_where_that_is_asked_for(self, deterministic: None) -> None:
        """With torch.use_deterministic_algorithms, to the bit."""
        case = replace(self.CASES[1], batch=8)
        runs = [self._gradients(case) for _ in range(3)]
        for one, other in itertools.pairwise(runs):
            assert all(torch.equal(left, right) for left, right in zip(one, other, strict=True))

    @staticmethod
    def _gradients(case: Case) -> list[Tensor]:
        *tensors, plan = arguments(case, torch.bfloat16)
        leaves = [each.cuda().requires_grad_() for each in tensors if each is not None]
        padded = [*leaves, None][5]
        launch.window_attention(AttentionInputs(*leaves[:5], plan, padded)).float().square().sum().backward()
        return [leaf.grad for leaf in leaves]
