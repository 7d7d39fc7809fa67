"""The operations that compilers call: what they say of themselves is true, and they are the functions."""

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2.ops.cpu import attention, copies, linear, mlp, pieces, position
from swinv2.ops.windows import WindowPlan

PLAN = WindowPlan((7, 9), (4, 3), (2, 1), mask_padding=True)
HEADS, HEAD_DIM = 2, 4
CHANNELS, HIDDEN, TOKENS = HEADS * HEAD_DIM, 24, 700


def calls(dtype: torch.dtype, batch: int = 2) -> dict[str, tuple[object, ...]]:
    """Arguments by operation, features and weights in a dtype; what is precise stays fp32."""
    seeds = itertools.count()

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(next(seeds)))

    def features(*shape: int) -> Tensor:
        return draw(*shape).to(dtype)

    def windows() -> Tensor:
        return features(batch * PLAN.counts[0] * PLAN.counts[1], HEADS, PLAN.tokens, HEAD_DIM)

    def padded_map() -> Tensor:
        # As it comes out of one product for queries, keys and values.
        return features(batch, *PLAN.padded_grid, 3 * CHANNELS)[..., :CHANNELS].unflatten(-1, (HEADS, HEAD_DIM))

    precise = torch.promote_types(torch.float32, dtype)
    factors = [draw(*windows().shape[:-1], 1).to(precise) for _ in range(2)]
    length = draw(HEADS, 1, 1).to(precise)
    table = draw(HEADS, 2 * PLAN.window[0] - 1, 2 * PLAN.window[1] - 1)
    feature_map, tokens = features(batch, *PLAN.grid, CHANNELS), features(batch * TOKENS, CHANNELS)
    grad, hidden = features(batch * TOKENS, CHANNELS), features(batch * TOKENS, HIDDEN)
    weights, bias = [features(CHANNELS, CHANNELS) for _ in range(4)], features(CHANNELS)
    w1, b1, w2, b2 = features(HIDDEN, CHANNELS), features(HIDDEN), features(CHANNELS, HIDDEN), features(CHANNELS)
    some = [True, False, False, True, True]
    # More than are taken at once.
    field, small = draw(600, HEADS).to(precise), [draw(HIDDEN, 2), draw(HIDDEN), draw(HEADS, HIDDEN)]
    network = [draw(600, 2).to(precise), *(each.to(precise) for each in small)]
    return {
        "to_windows": (padded_map(), PLAN),
        "to_map": (windows(), PLAN),
        "to_scaled_windows": (padded_map(), length, PLAN),
        "scaled_windows_backward": (windows(), windows(), length, *factors, True, PLAN),
        "scaled_windows_backward, frozen": (windows(), windows(), length, *factors, False, PLAN),
        "attend": (windows(), windows(), windows(), table, PLAN),
        "attend_backward": (windows(), windows(), windows(), windows(), table, True, PLAN),
        "attend_backward, frozen": (windows(), windows(), windows(), windows(), table, False, PLAN),
        "project_and_attend": (feature_map, weights, [bias, None, b2, bias], table, length.flatten(), PLAN),
        "multiply": (feature_map, w1, b1, False),
        "multiply, turned weight": (feature_map, w2.T, None, False),
        "multiply, gelu": (feature_map, w1, None, True),
        "gelu_mlp": (feature_map, w1, b1, w2, b2),
        "gelu_mlp_with_hidden": (tokens, w1, b1, w2, None),
        "gelu_mlp_backward": (grad, tokens, w1, w2, hidden, [True] * 5),
        "gelu_mlp_backward, frozen": (grad, None, w1, w2, hidden, some),
        "evaluate_field": tuple(network),
        "evaluate_field_backward": (field, *network),
    }


CALLS = list(calls(torch.float32))


def operation(call: str) -> Callable[..., object]:
    run = getattr(torch.ops.swinv2, call.split(",")[0])
    return lambda *arguments: run(*with_numbers(arguments))


def with_numbers(arguments: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(argument.numbers if isinstance(argument, WindowPlan) else argument for argument in arguments)


def function(call: str) -> Callable[..., object]:
    name = call.split(",")[0]
    return next(getattr(module, name) for module in (copies, mlp, attention, linear, position) if hasattr(module, name))


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "CACHE_BYTES", 2**14)
    monkeypatch.setattr(attention, "WEIGHTS_BYTES", 2**12)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_an_operation_is_what_a_compiler_is_told(call: str, dtype: torch.dtype, small_pieces: None) -> None:
    """Shapes, dtypes and strides of the results; no argument is written to, or shares memory with a result."""
    arguments = with_numbers(calls(dtype)[call])
    run = getattr(torch.ops.swinv2, call.split(",")[0])
    torch.library.opcheck(run, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_an_operation_is_its_function(call: str, batch: int, small_pieces: None) -> None:
    arguments = calls(torch.float32, batch)[call]
    torch.testing.assert_close(operation(call)(*arguments), function(call)(*arguments), rtol=0, atol=0)


def test_every_operation_is_checked() -> None:
    registered = {name.removeprefix("swinv2::") for name in torch._C._dispatch_get_all_op_names() if "swinv2::" in name}
    # Those that start kernels are checked in test_triton.py.
    assert registered - {"attend_fused", "attend_fused_backward"} == {call.split(",")[0] for call in CALLS}


def test_a_plan_is_its_numbers() -> None:
    assert WindowPlan.of_numbers(PLAN.numbers) == PLAN


@pytest.mark.parametrize(
    "frozen", [(), (0,), (1,), (2,), (3, 4), (0, 1, 2), (1, 2, 3, 4), (0, 3, 4)], ids=lambda frozen: f"without{frozen}"
)
def test_the_mlp_of_compiled_graphs_has_the_right_gradients(frozen: tuple[int, ...], small_pieces: None) -> None:
    leaves = [tensor.double().requires_grad_() for tensor in calls(torch.float64)["gelu_mlp"]]
    for index in frozen:
        leaves[index].requires_grad_(False)
    x, w1, b1, w2, b2 = leaves
    results = []
    for output in (mlp.gelu_feed_forward(x, (w1, b1), (w2, b2)), F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)):
        for leaf in leaves:
            leaf.grad = None
        output.square().sum().backward()
        results.append([output.detach(), *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
