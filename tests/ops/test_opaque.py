"""The operations that compilers call: what they say of themselves is true."""

import pytest
import torch
from torch import Tensor

from swinv2.ops.cpu import attention, copies, linear  # noqa: F401 - they register the operations
from swinv2.ops.windows import WindowPlan

PLAN = WindowPlan((7, 9), (4, 3), (2, 1), mask_padding=True)
HEADS, HEAD_DIM = 2, 4
CHANNELS, HIDDEN, TOKENS = HEADS * HEAD_DIM, 24, 30


def calls(dtype: torch.dtype) -> dict[str, tuple[object, ...]]:
    """Arguments by operation, features and weights in a dtype; what is precise stays fp32."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))

    def features(*shape: int) -> Tensor:
        return draw(*shape).to(dtype)

    padded_map = features(2, *PLAN.padded_grid, HEADS, HEAD_DIM)
    windows = features(2 * PLAN.counts[0] * PLAN.counts[1], HEADS, PLAN.tokens, HEAD_DIM)
    precise = torch.promote_types(torch.float32, dtype)
    factors, length = draw(*windows.shape[:-1], 1).to(precise), draw(HEADS, 1, 1).to(precise)
    table = draw(HEADS, 2 * PLAN.window[0] - 1, 2 * PLAN.window[1] - 1)
    feature_map, tokens, hidden = (
        features(2, *PLAN.grid, CHANNELS),
        features(TOKENS, CHANNELS),
        features(TOKENS, HIDDEN),
    )
    weight, bias = features(CHANNELS, CHANNELS), features(CHANNELS)
    w1, b1, w2, b2 = features(HIDDEN, CHANNELS), features(HIDDEN), features(CHANNELS, HIDDEN), features(CHANNELS)
    some = [True, False, False, True, True]
    return {
        "to_windows": (padded_map, PLAN.numbers),
        "to_map": (windows, PLAN.numbers),
        "to_scaled_windows": (padded_map, length, PLAN.numbers),
        "scaled_windows_backward": (windows, windows, length, factors, factors, True, PLAN.numbers),
        "scaled_windows_backward, frozen": (windows, windows, length, factors, factors, False, PLAN.numbers),
        "attend": (windows, windows, windows, table, PLAN.numbers),
        "attend_backward": (windows, windows, windows, windows, table, True, PLAN.numbers),
        "attend_backward, frozen": (windows, windows, windows, windows, table, False, PLAN.numbers),
        "project_and_attend": (
            *(feature_map, [weight] * 4, [bias, None, bias, bias]),
            *(table, length.flatten(), PLAN.numbers),
        ),
        "multiply": (feature_map, w1, b1, False),
        "multiply, gelu": (feature_map, w1, None, True),
        "gelu_mlp": (feature_map, w1, b1, w2, b2),
        "gelu_mlp_with_hidden": (tokens, w1, b1, w2, None),
        "gelu_mlp_backward": (tokens, tokens, w1, w2, hidden, [True] * 5),
        "gelu_mlp_backward, frozen": (tokens, None, w1, w2, hidden, some),
    }


@pytest.mark.parametrize("call", calls(torch.float32))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_an_operation_is_what_a_compiler_is_told(call: str, dtype: torch.dtype) -> None:
    """Shapes, dtypes and strides of the results; no argument is written to, or shares memory with a result."""
    operation = getattr(torch.ops.swinv2, call.split(",")[0])
    torch.library.opcheck(operation, calls(dtype)[call], test_utils=("test_schema", "test_faketensor"))


def test_every_operation_is_checked() -> None:
    registered = {name.removeprefix("swinv2::") for name in torch._C._dispatch_get_all_op_names() if "swinv2::" in name}
    assert registered == {call.split(",")[0] for call in calls(torch.float32)}


def test_a_plan_is_its_numbers() -> None:
    assert WindowPlan.of_numbers(PLAN.numbers) == PLAN
