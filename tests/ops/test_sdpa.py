"""Where the attention weights of all windows would take much memory, torch's operation attends in some at a time."""

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from attention_cases import CASES, IMPLEMENTATIONS, Case, draw, error
from swinv2.ops import sdpa
from swinv2.ops.reference import AttentionInputs


@pytest.mark.parametrize("case", [CASES[index] for index in (0, 5, 11)], ids=lambda case: case.name)
@pytest.mark.parametrize("at_once", [1, 3])
def test_some_windows_at_a_time_change_nothing(case: Case, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = draw(case)
    expected = inputs.call(IMPLEMENTATIONS["sdpa"], case.plan, torch.float64)
    monkeypatch.setattr(sdpa, "WEIGHTS_BYTES", at_once * case.heads * case.plan.tokens**2 * 8)
    with mock.patch.object(sdpa, "_attend_at_once", side_effect=sdpa._attend_at_once) as spy:
        found = inputs.call(IMPLEMENTATIONS["sdpa"], case.plan, torch.float64)
    assert max(len(call.args[0].query) for call in spy.call_args_list) <= max(at_once, 1) * case.batch
    for name, result in found.items():
        torch.testing.assert_close(result, expected[name])


def test_what_all_share_has_no_rounder_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bias has a gradient from each run of windows: they are summed in fp32."""
    case = Case("many windows", (64, 64), (4, 4), batch=1)
    inputs = draw(case)
    exact = inputs.call(IMPLEMENTATIONS["reference"], case.plan, torch.float64)
    errors = []
    for limit in (2**27, 1):
        monkeypatch.setattr(sdpa, "WEIGHTS_BYTES", limit)
        found = inputs.call(IMPLEMENTATIONS["sdpa"], case.plan, torch.bfloat16)
        errors.append(error(found["bias_table"], exact["bias_table"]))
    assert errors[1] <= 1.5 * errors[0] + 1e-3


def test_dropped_weights_are_the_same_in_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("dropped", (8, 8), (4, 4), batch=2)
    monkeypatch.setattr(sdpa, "WEIGHTS_BYTES", 1)
    q, k, v, table, scale, padded = draw(case).tensors.values()
    v = v.clone().requires_grad_()
    attended = sdpa.window_attention(AttentionInputs(q, k, v, table, scale, case.plan, padded, 0.5))
    (grad,) = torch.autograd.grad(attended.sum(), v)
    # The answer is linear in the values: their gradient gives it again, if the same weights were dropped.
    torch.testing.assert_close((grad * v).sum(), attended.sum())


def test_memory_is_linear_in_the_tokens_of_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what lives between the passes, the bias of all pairs left out, which is one for all windows."""

    def kept(side: int, limit: int) -> int:
        monkeypatch.setattr(sdpa, "WEIGHTS_BYTES", limit)
        case = Case("large", (64, 64), (side, side), heads=1, batch=1)
        leaves: list[Any] = [tensor.float().requires_grad_() for tensor in draw(case).tensors.values()]
        found: dict[int, Tensor] = {}

        def note(tensor: Tensor) -> Tensor:
            found[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            sdpa.window_attention(AttentionInputs(*leaves[:5], case.plan, leaves[5]))
        pairs = side**4
        return sum(t.untyped_storage().nbytes() for t in found.values() if t.numel() != pairs)

    assert kept(32, 1) < 1.2 * kept(8, 1)
    assert kept(32, 2**40) > 2 * kept(32, 1)
