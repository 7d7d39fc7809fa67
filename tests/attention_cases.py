"""What backends of window attention are held to: the backends, a table of cases, drawn inputs and a measure of error.

To add a backend, add it to FORMS; what it returns besides the map is cut off there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from swinv2.lengths import Lengths
from swinv2.ops import reference, sdpa
from swinv2.ops.cpu import attention, library
from swinv2.ops.reference import AttentionInputs
from swinv2.ops.windows import WindowPlan

Implementation = Callable[..., Tensor]


def fused(*arguments: Any) -> Tensor:
    """The kernels, in Triton's interpreter where there is no GPU."""
    from swinv2.ops.triton import launch

    return launch.window_attention(AttentionInputs(*arguments))


IMPLEMENTATIONS: dict[str, Implementation] = {
    "reference": lambda *arguments: reference.window_attention(AttentionInputs(*arguments))[0],
    "sdpa": lambda *arguments: sdpa.window_attention(AttentionInputs(*arguments)),
    "cpu": lambda *arguments: attention.window_attention(AttentionInputs(*arguments)),
    "triton": fused,
}
if library.refuse():
    del IMPLEMENTATIONS["cpu"]
FAST_IMPLEMENTATIONS = [name for name in IMPLEMENTATIONS if name != "reference"]
IMPLEMENTATIONS_WITH_DROPOUT = ["reference", "sdpa"]
NAMES = ("q", "k", "v", "bias_table", "scale", "padded_value")


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    grid: Lengths
    window: Lengths
    shift: Lengths = ()
    mask_padding: bool = False
    head_dim: int = 16
    heads: int = 2
    batch: int = 1
    largest_scale: float = 20.0

    @property
    def plan(self) -> WindowPlan:
        """How the case's map is cut."""
        return WindowPlan(self.grid, self.window, self.shift, self.mask_padding)


CASES = [
    Case("whole windows", (4, 6), (2, 3), batch=2),
    Case("one window", (3, 3), (3, 3)),
    Case("window of one token", (3, 2), (1, 1)),
    Case("map of one token", (1, 1), (1, 1)),
    Case("map of one token in a larger window", (1, 1), (2, 3)),
    Case("shift", (4, 4), (2, 2), (1, 1), batch=2),
    Case("shift by less than half", (6, 6), (3, 3), (1, 1)),
    Case("shift by more than half", (6, 6), (3, 3), (2, 2)),
    Case("one axis unshifted", (4, 6), (4, 3), (0, 1)),
    Case("other axis unshifted", (6, 3), (3, 3), (1, 0)),
    Case("odd size", (5, 7), (3, 3)),
    Case("odd size, shift", (5, 7), (3, 3), (1, 1)),
    Case("odd size, shift beyond the padding", (5, 4), (3, 3), (2, 2)),
    Case("odd size, shift within the padding", (4, 4), (3, 3), (1, 1), batch=2),
    Case("padding hidden", (5, 4), (3, 3), mask_padding=True),
    Case("padding hidden, shift", (5, 7), (3, 3), (1, 1), mask_padding=True),
    Case("padding hidden, shift within it", (4, 4), (3, 3), (1, 1), mask_padding=True),
    Case("padding hidden where there is none", (4, 4), (2, 2), (1, 1), mask_padding=True),
    Case("rectangular windows", (5, 6), (2, 4), (1, 2)),
    Case("window larger than the map", (2, 3), (4, 4)),
    Case("window larger than the map, shift", (2, 3), (4, 4), (2, 2)),
    Case("window larger than the map, shift, padding hidden", (3, 2), (4, 4), (2, 2), mask_padding=True),
    Case("window larger on one axis", (2, 7), (4, 3), (0, 1)),
    Case("heads of 32", (5, 5), (3, 3), (1, 1), head_dim=32, heads=3),
    Case("heads of 64", (5, 5), (3, 3), (1, 1), head_dim=64, heads=1),
    Case("sharpest scale", (4, 4), (3, 3), (1, 1), largest_scale=100.0),
    Case("frames", (2, 4, 3), (2, 2, 3), batch=2),
    Case("frames, shift", (4, 4, 4), (2, 2, 2), (1, 1, 1), batch=2),
    Case("frames, shift of frames only", (4, 2, 3), (2, 2, 3), (1, 0, 0)),
    Case("frames, odd size, shift", (3, 5, 4), (2, 3, 3), (1, 1, 1)),
    Case("frames, odd size, shift, padding hidden", (3, 5, 4), (2, 3, 3), (1, 1, 1), mask_padding=True),
    Case("frames, windows of one frame", (3, 3, 5), (1, 3, 3), (0, 1, 1)),
    Case("frames, windows of one column", (3, 2, 3), (2, 2, 1), (1, 1, 0)),
    Case("fewer frames than a window has", (1, 3, 4), (3, 2, 2), (1, 1, 1)),
]


@st.composite
def random_cases(draw_value: st.DrawFn) -> Case:
    """Any small case, of images or videos."""
    axes = draw_value(st.integers(2, 3))
    longest_side, longest = (5, 11) if axes == 2 else (3, 5)
    window = tuple(draw_value(st.integers(1, longest_side)) for _ in range(axes))
    return Case(
        "random",
        grid=tuple(draw_value(st.integers(1, longest)) for _ in range(axes)),
        window=window,
        shift=tuple(draw_value(st.integers(0, length - 1)) for length in window),
        mask_padding=draw_value(st.booleans()),
        head_dim=draw_value(st.sampled_from([4, 16])),
        heads=draw_value(st.integers(1, 3)),
        batch=draw_value(st.integers(1, 2)),
    )


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call, and the direction in which the answer's gradients are taken."""

    tensors: dict[str, Tensor]
    direction: Tensor

    def call(self, backend: Implementation, plan: WindowPlan, dtype: torch.dtype) -> dict[str, Tensor]:
        """Runs a backend in a dtype; bias and scale stay fp32 at least, as a network passes them.

        Returns:
            The answer as "output", and the gradient of every argument by name, zeros where there is none.
        """
        table_dtype = torch.promote_types(dtype, torch.float32)
        leaves = {
            name: tensor.to(table_dtype if name in ("bias_table", "scale") else dtype, copy=True).requires_grad_()
            for name, tensor in self.tensors.items()
        }
        q, k, v, bias_table, scale, padded_value = leaves.values()
        output = backend(q, k, v, bias_table, scale, plan, padded_value)
        assert output.dtype == dtype
        output.backward(self.direction.to(dtype))
        results = {"output": output.detach()}
        for name, leaf in leaves.items():
            results[name] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        return results


def draw(case: Case, seed: int = 0) -> Inputs:
    """Draws a case's arguments: numbers that every dtype can hold, so that all backends start from the same."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).bfloat16().double()

    shape = (case.batch, *case.grid, case.heads, case.head_dim)
    table = (case.heads, *(2 * length - 1 for length in case.window))
    scale = torch.linspace(5.0, case.largest_scale, case.heads).bfloat16().double()
    tensors = (
        normal(*shape),
        normal(*shape),
        normal(*shape),
        (16 * torch.sigmoid(normal(*table))).bfloat16().double(),
        scale,
        normal(case.heads, case.head_dim),
    )
    return Inputs(dict(zip(NAMES, tensors, strict=True)), normal(*shape))


def error(result: Tensor, expected: Tensor) -> float:
    """Norm of the error over the norm of the truth; over 1 where the truth is zero."""
    expected = expected.double()
    return ((result.double() - expected).norm() / (expected.norm() if expected.any() else 1)).item()
