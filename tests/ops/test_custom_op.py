"""The operations that compilers call: what they say of themselves is true, and they are the functions."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from swinv2.ops.cpu import attention, branches, chunks, library, position
from swinv2.ops.cpu.attention import attend_map
from swinv2.ops.cpu.branches import NO_WINDOWS, branch
from swinv2.ops.precision import precise
from swinv2.ops.windows import WindowPlan

needs_kernels = pytest.mark.skipif(library.refuse() is not None, reason=str(library.refuse()))

PLAN = WindowPlan((7, 9), (4, 3), (2, 1), mask_padding=True)
HEADS, HEAD_DIM = 2, 4
CHANNELS, HIDDEN = HEADS * HEAD_DIM, 24


def calls(dtype: torch.dtype, batch: int = 2) -> dict[str, tuple[object, ...]]:
    """Arguments by operation, features and weights in a dtype; what is precise stays fp32."""
    seeds = itertools.count()

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(next(seeds)))

    def features(*shape: int) -> Tensor:
        return draw(*shape).to(dtype)

    def feature_map() -> Tensor:
        return features(batch, *PLAN.grid, CHANNELS)

    def vectors() -> Tensor:
        # As they come out of one product for queries, keys and values.
        return features(batch, *PLAN.grid, 3 * CHANNELS)[..., :CHANNELS].unflatten(-1, (HEADS, HEAD_DIM))

    table = draw(HEADS, 2 * PLAN.window[0] - 1, 2 * PLAN.window[1] - 1).to(precise(dtype))
    scale = torch.tensor([5.0, 20.0], dtype=precise(dtype))
    maps = (vectors(), vectors(), vectors(), table, scale)
    padding = features(HEADS, HEAD_DIM)

    norm = (features(CHANNELS), features(CHANNELS), 1e-5)
    kept = torch.arange(batch) % 2 == 0
    x, grad = feature_map(), feature_map()
    everything, nothing = (None, 1.0), (kept, 1.25)

    weights, biases = [features(CHANNELS, CHANNELS) for _ in range(4)], [features(CHANNELS) for _ in range(4)]
    biases[1] = None
    attention = (weights, biases, table, scale)
    layers = ([features(HIDDEN, CHANNELS), features(CHANNELS, HIDDEN)], [features(HIDDEN), features(CHANNELS)])
    mlp = (*layers, None, None)

    def backward(
        given: tuple[object, ...], end: tuple[object, ...], wants: list[bool], plan: WindowPlan
    ) -> tuple[object, ...]:
        _, *saved = branch(x, *given, *norm, *end, dtype, plan, True)
        weights, biases, *rest = given
        value_bias = biases[2] if len(biases) > 2 else None
        return (grad, x, saved, weights, value_bias, biases[-1], *rest, norm[0], norm[2], *end, wants, plan)

    # More positions than are taken at once.
    grad_table, *network = (
        draw(*shape).to(precise(dtype)) for shape in ((HEADS, 25, 23), (HIDDEN, 2), (HIDDEN,), (HEADS, HIDDEN))
    )
    return {
        "attend_map": (*maps, padding, PLAN),
        "attend_map, no padding": (*maps, None, PLAN),
        "attend_map_backward": (vectors(), *maps, padding, True, PLAN),
        "attend_map_backward, frozen": (vectors(), *maps, None, False, PLAN),
        "branch, attention": (x, *attention, *norm, *everything, dtype, PLAN, False),
        "branch, attention, training": (x, *attention, *norm, *nothing, dtype, PLAN, True),
        "branch_backward, attention": backward(attention, everything, [True] * 4, PLAN),
        "branch_backward, attention, frozen": backward(attention, nothing, [False, True, False, False], PLAN),
        "branch, mlp": (x, *mlp, *norm, *everything, dtype, NO_WINDOWS, False),
        "branch, mlp, training": (x, layers[0], [None, None], None, None, *norm, *nothing, dtype, NO_WINDOWS, True),
        "branch_backward, mlp": backward(mlp, everything, [True] * 3 + [False], NO_WINDOWS),
        "branch_backward, mlp, frozen": backward(mlp, nothing, [True, False, False, False], NO_WINDOWS),
        "evaluate_table": (*network, [13, 12, 8, 8]),
        "evaluate_table_backward": (grad_table, *network, grad_table.sigmoid(), [13, 12, 8, 8]),
    }


CALLS = list(calls(torch.float32)) if library.refuse() is None else []


def operation(call: str) -> Callable[..., object]:
    run = getattr(torch.ops.swinv2, call.split(",")[0])
    return lambda *arguments: run(*with_numbers(arguments))


def with_numbers(arguments: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(argument.numbers if isinstance(argument, WindowPlan) else argument for argument in arguments)


def function(call: str) -> Callable[..., object]:
    name = call.split(",")[0]
    return next(getattr(module, name) for module in (attention, branches, position) if hasattr(module, name))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_an_operation_is_what_a_compiler_is_told(
    call: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes, dtypes and strides of the results; no argument is written to, or shares memory with a result."""
    monkeypatch.setattr(chunks, "CACHE_BYTES", 2**12)
    arguments = with_numbers(calls(dtype)[call])
    run = getattr(torch.ops.swinv2, call.split(",")[0])
    torch.library.opcheck(run, arguments, test_utils=("test_schema", "test_faketensor"))


@needs_kernels
@pytest.mark.parametrize("call", ["branch, attention, training", "branch, mlp, training"])
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
def test_so_it_is_under_autocast(call: str, autocast: torch.dtype) -> None:
    arguments = tuple(autocast if each == torch.float32 else each for each in with_numbers(calls(torch.float32)[call]))
    run = getattr(torch.ops.swinv2, call.split(",")[0])
    torch.library.opcheck(run, arguments, test_utils=("test_schema", "test_faketensor"))


def written(call: str, arguments: tuple[object, ...], results: object) -> object:
    """Results without what belongs to dropped images, which nobody writes."""
    if "training" not in call:
        return results
    kept = next(each for each in arguments if isinstance(each, Tensor) and each.dtype == torch.bool).sum()
    answer, *saved = results
    return [answer, *(each[:kept] for each in saved)]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_an_operation_is_its_function(call: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CACHE_BYTES", 2**12)
    arguments = calls(torch.float32, batch)[call]
    results = [written(call, arguments, run(*arguments)) for run in (operation(call), function(call))]
    torch.testing.assert_close(*results, rtol=0, atol=0)


@needs_kernels
def test_every_operation_is_checked() -> None:
    registered = {name.removeprefix("swinv2::") for name in torch._C._dispatch_get_all_op_names() if "swinv2::" in name}
    # Those that start kernels are checked in test_triton.py.
    assert registered - {"attend_fused", "attend_fused_backward"} == {call.split(",")[0] for call in CALLS}


@needs_kernels
def test_in_eager_mode_nothing_stands_between_the_caller_and_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = calls(torch.float32)["attend_map"]
    with torch.profiler.profile(acc_events=True) as profile:
        attend_map(*arguments)
    assert not [event.key for event in profile.key_averages() if "swinv2::" in event.key]


def test_a_plan_is_its_numbers() -> None:
    assert WindowPlan.of_numbers(PLAN.numbers) == PLAN
