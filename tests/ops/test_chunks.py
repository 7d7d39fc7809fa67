"""Attention some windows at a time: the same answers and gradients, in the memory of a few windows."""

import runpy
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import peers
from attention_cases import CASES, FORMS, NAMES, Case, draw, error
from swinv2 import Swinv2Config, Swinv2ForImageClassification
from swinv2.ops import chunks
from swinv2.ops.backends import Call, explain_backend, window_attention
from swinv2.train.memory import CHUNK_TENSORS_IN_FULL

IN_CHUNKS = ("reference", "sdpa-by-torch")
SIZES = (1, 2, 5, 1000)
"""One window at a time, two, a number that divides few counts of windows, more than there are."""

Living = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "living.py"))["Living"]

ODD = Case("odd", (5, 7), (3, 3), (1, 1), batch=2)
LARGE = Case("large", (32, 32), (8, 8), (4, 4), heads=2, head_dim=4)


def in_chunks(form: str, chunk_size: int) -> Callable[..., Tensor]:
    return partial(chunks.window_attention, FORMS[form], chunk_size)


@cache
def whole(case: Case) -> dict[str, Tensor]:
    """The specification's answer and gradients, all windows at once."""
    return draw(case).call(FORMS["reference"], case.plan, torch.float64)


@pytest.mark.parametrize(
    ("case", "form", "chunk_size"),
    [
        # Each case with one size; with the others they take a minute.
        pytest.param(
            *(case, form, chunk_size),
            marks=[pytest.mark.slow] if (index + turn) % len(SIZES) else [],
            id=f"{case.name}-{form}-{chunk_size}",
        )
        for index, case in enumerate(CASES)
        for form in IN_CHUNKS
        for turn, chunk_size in enumerate(SIZES)
    ],
)
def test_chunks_change_nothing(case: Case, form: str, chunk_size: int) -> None:
    """Neither the answer nor a gradient."""
    results = draw(case).call(in_chunks(form, chunk_size), case.plan, torch.float64)
    errors = {name: error(result, whole(case)[name]) for name, result in results.items()}
    assert {name: value for name, value in errors.items() if not value < 1e-12} == {}


def test_what_all_chunks_share_has_no_rounder_gradients() -> None:
    """Filling tokens, the bias and the scale have a gradient from each chunk: they are summed in fp32."""
    case = Case("filled", (6, 30), (4, 4), batch=16)
    inputs = draw(case)
    truth = inputs.call(FORMS["reference"], case.plan, torch.float64)
    plain = inputs.call(FORMS["reference"], case.plan, torch.bfloat16)
    ours = inputs.call(in_chunks("reference", 1), case.plan, torch.bfloat16)
    for name, expected in truth.items():
        assert error(ours[name], expected) <= 3 * error(plain[name], expected), name


@pytest.mark.parametrize("chunk_size", [1, 3])
def test_a_chunk_has_so_many_windows(chunk_size: int) -> None:
    """Of all images together, and no chunk is empty."""
    seen: list[int] = []

    def form(q: Tensor, *rest: Any) -> Tensor:
        seen.append(len(q))
        return FORMS["reference"](q, *rest)

    q, k, v, bias_table, scale, padded_value = draw(ODD).tensors.values()
    chunks.window_attention(form, chunk_size, q, k, v, bias_table, scale, ODD.plan, padded_value)
    assert max(seen) == chunk_size
    assert min(seen) > 0
    assert sum(seen) == 2 * ODD.plan.counts[0] * ODD.plan.counts[1]


def memory(form: Callable[..., Tensor], case: Case) -> tuple[float, float]:
    """How many numbers the forward pass keeps, and how many live together at the highest of both passes."""
    leaves = [tensor.float().requires_grad_() for tensor in draw(case).tensors.values()]
    with Living() as living:
        living.know(tuple(leaves))
        attended = form(*leaves[:5], case.plan, leaves[5])
        kept = living.now
        attended.sum().backward()
    return kept / attended.itemsize, living.highest / attended.itemsize


@pytest.mark.parametrize("form", IN_CHUNKS)
def test_the_weights_of_a_chunk_exist_at_a_time(form: str) -> None:
    """And none of them wait for the backward pass: what is kept are maps. A window at work has four T x T tensors at
    most, as `train.memory` reckons."""
    tokens, count = LARGE.plan.tokens, LARGE.plan.counts[0] * LARGE.plan.counts[1]
    weights, maps = LARGE.heads * tokens**2, LARGE.heads * LARGE.head_dim * tokens * count
    kept, highest = memory(FORMS[form], LARGE)
    assert kept > count * weights
    found = {size: memory(in_chunks(form, size), LARGE) for size in (1, 4)}
    for kept, _ in found.values():
        assert kept < 7.5 * maps
    assert found[4][1] < 0.7 * highest
    assert found[4][1] - found[1][1] < (CHUNK_TENSORS_IN_FULL + 0.5) * 3 * weights


def test_without_gradients_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """No checkpoint is made where no backward pass can follow."""
    arguments = [tensor.float() for tensor in draw(ODD).tensors.values()]
    monkeypatch.setattr(chunks, "checkpoint", mock.Mock(side_effect=AssertionError))
    in_chunks("reference", 2)(*arguments[:5], ODD.plan, arguments[5])
    arguments[0].requires_grad_()
    with torch.no_grad():
        in_chunks("reference", 2)(*arguments[:5], ODD.plan, arguments[5])
    with pytest.raises(AssertionError):
        in_chunks("reference", 2)(*arguments[:5], ODD.plan, arguments[5])


@pytest.mark.parametrize("form", IN_CHUNKS)
def test_the_backward_pass_drops_the_same_weights(form: str) -> None:
    """The answer is linear in the values, with the weights that were dropped in the forward pass."""
    leaves = [tensor.requires_grad_() for tensor in draw(ODD).tensors.values()]
    torch.manual_seed(0)
    attended = in_chunks(form, 2)(*leaves[:5], ODD.plan, leaves[5], 0.4)
    direction = torch.randn_like(attended)
    grad_value, grad_padded = torch.autograd.grad(attended, (leaves[2], leaves[5]), direction)
    linear = (grad_value * leaves[2]).sum() + (grad_padded * leaves[5]).sum()
    torch.testing.assert_close(linear, (attended * direction).sum(), rtol=1e-12, atol=1e-12)
    other = in_chunks(form, 2)(*leaves[:5], ODD.plan, leaves[5], 0.4)
    assert not torch.equal(other, attended)


def test_gradients_of_gradients_and_function_transforms() -> None:
    """As in the plain form: a chunk that is computed again is differentiable again."""
    case = Case("small", (3, 3), (2, 2), (1, 1), heads=1, head_dim=2)
    inputs = draw(case)
    leaves = [tensor.requires_grad_() for tensor in inputs.tensors.values()]

    def slope(form: Callable[..., Tensor]) -> list[Tensor]:
        attended = form(*leaves[:5], case.plan, leaves[5])
        gradients = torch.autograd.grad(attended, leaves, inputs.direction, create_graph=True)
        return list(torch.autograd.grad(sum(each.square().sum() for each in gradients), leaves))

    for ours, expected in zip(slope(in_chunks("reference", 1)), slope(FORMS["reference"]), strict=True):
        assert error(ours, expected) < 1e-12

    def loss(form: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        return (form(*tensors[:5], case.plan, tensors[5]) * inputs.direction).sum()

    plain = [leaf.detach() for leaf in leaves]
    ours, expected = (
        torch.func.grad(partial(loss, form), argnums=tuple(range(6)))(*plain)
        for form in (in_chunks("reference", 1), FORMS["reference"])
    )
    assert all(error(a, b) < 1e-12 for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("form", IN_CHUNKS)
def test_autocast_holds_in_the_backward_pass(form: str) -> None:
    """A chunk is computed again in the precision in which it was computed."""
    inputs, results = draw(ODD), []
    for run in (in_chunks(form, 2), FORMS[form]):
        leaves = [tensor.float().requires_grad_() for tensor in inputs.tensors.values()]
        with torch.autocast("cpu", torch.bfloat16):
            attended = run(*leaves[:5], ODD.plan, leaves[5])
        results.append((attended, *torch.autograd.grad(attended, leaves, inputs.direction.to(attended.dtype))))
    assert results[0][0].dtype == results[1][0].dtype
    for name, ours, expected in zip(("output", *NAMES), *results, strict=True):
        assert error(ours, expected) < 1e-2, name


class TestDispatch:
    """Which forms attend in chunks."""

    @pytest.mark.parametrize(
        ("backend", "dropout", "expected"),
        [("eager", 0.0, True), ("sdpa", 0.0, False), ("sdpa", 0.1, True)],
    )
    def test_forms_that_hold_less_are_left_alone(self, backend: str, dropout: float, expected: bool) -> None:
        """The form for a CPU; with dropout torch's operation runs in its place."""
        arguments = [tensor.float() for tensor in draw(CASES[3]).tensors.values()]
        arguments.insert(5, CASES[3].plan)
        with mock.patch.object(chunks, "window_attention", side_effect=chunks.window_attention) as spy:
            attended, weights = window_attention(*arguments, dropout=dropout, backend=backend, chunk_size=1)
        assert spy.called == expected
        assert attended.shape == arguments[0].shape
        assert weights is None

    def test_it_is_explained(self) -> None:
        """With the number, where it matters."""
        assert "eager runs, 8 windows at a time: " in explain_backend("eager", Call(chunk_size=8))
        assert "sdpa runs, torch's operation 1 window at a time: " in explain_backend("sdpa", Call(chunk_size=1))
        assert "at a time" not in explain_backend("eager").splitlines()[0]
        assert "at a time" not in explain_backend("eager", Call(wants_weights=True, chunk_size=8)).splitlines()[0]


class TestNetwork:
    """`attention_chunk_size` of a model, on maps that need padding and a shift."""

    FIELDS = {
        "image_size": 64,
        "embed_dim": 24,
        "depths": [2, 2],
        "num_heads": [1, 2],
        "window_size": 4,
        "num_labels": 5,
        "drop_path_rate": 0.0,
    }
    IMAGES = peers.images((50, 70))

    def build(self, **fields: Any) -> Swinv2ForImageClassification:
        """A small network with drawn weights, in training."""
        config = Swinv2Config(**self.FIELDS, **fields)
        return peers.draw_weights(Swinv2ForImageClassification(config)).train()

    def step(self, model: Swinv2ForImageClassification) -> dict[str, Tensor]:
        """The answer and all gradients."""
        model.zero_grad()
        outputs = model(self.IMAGES, labels=torch.tensor([1, 2]))
        outputs.loss.backward()
        return {"logits": outputs.logits.detach()} | peers.gradients(model)

    @pytest.mark.parametrize("fields", [{}, {"mask_padding": True}], ids=str)
    @pytest.mark.parametrize("reentrant", [None, False, True])
    def test_it_is_the_network(self, fields: dict[str, Any], reentrant: bool | None) -> None:
        """With blocks that are computed again in the backward pass, too: a chunk is then computed twice more."""
        expected = self.step(self.build(attn_implementation="eager", **fields))
        model = self.build(attn_implementation="eager", attention_chunk_size=3, **fields)
        if reentrant is not None:
            model._set_gradient_checkpointing(True, partial(checkpoint, use_reentrant=reentrant))
        with mock.patch.object(chunks, "window_attention", side_effect=chunks.window_attention) as spy:
            results = self.step(model)
        assert spy.call_count == (4 if reentrant is None else 8)
        for name, result in results.items():
            assert (result - expected[name]).norm() <= 1e-5 * expected[name].norm() + 1e-6, name

    def test_attention_weights_are_those_of_all_windows(self) -> None:
        """Who wants them gets them; the others do not pay for them."""
        model = self.build(attn_implementation="eager", attention_chunk_size=2).eval()
        plain = self.build(attn_implementation="eager").eval()
        with torch.no_grad():
            ours, expected = (each(self.IMAGES, output_attentions=True) for each in (model, plain))
            assert model(self.IMAGES).attentions is None
        assert torch.equal(ours.logits, expected.logits)
        assert len(ours.attentions) == 2
        assert all(torch.equal(a, b) for a, b in zip(ours.attentions, expected.attentions, strict=True))

    def test_it_may_be_given_at_loading_and_changed_later(self, tmp_path: Path) -> None:
        """It is no part of the weights; a file keeps it, and transformers reads that file."""
        self.build().save_pretrained(tmp_path)
        model = Swinv2ForImageClassification.from_pretrained(
            tmp_path, attention_chunk_size=8, attn_implementation="eager"
        )
        with mock.patch.object(chunks, "window_attention", side_effect=chunks.window_attention) as spy, torch.no_grad():
            before = model(self.IMAGES).logits
            assert (spy.call_count, spy.call_args.args[1]) == (4, 8)
            model.config.attention_chunk_size = None
            after = model(self.IMAGES).logits
            assert spy.call_count == 4
        torch.testing.assert_close(before, after)
        model.config.attention_chunk_size = 0
        for output_attentions in (False, True):
            with pytest.raises(ValueError, match="attention_chunk_size is 0; expected how many windows"):
                model(self.IMAGES, output_attentions=output_attentions)
        model.config.attention_chunk_size = 8
        model.save_pretrained(tmp_path)
        assert Swinv2Config.from_pretrained(tmp_path).attention_chunk_size == 8
        theirs = transformers.Swinv2ForImageClassification.from_pretrained(tmp_path).eval()
        with torch.no_grad():
            torch.testing.assert_close(theirs(self.IMAGES).logits, before, rtol=1e-4, atol=1e-5)
