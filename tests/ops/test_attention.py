"""Every backend of cosine window attention against a definition in four loops, by one table of cases."""

import itertools
import math
from dataclasses import replace
from functools import cache
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_cases import (
    CASES,
    FAST_IMPLEMENTATIONS,
    IMPLEMENTATIONS,
    IMPLEMENTATIONS_WITH_DROPOUT,
    Case,
    Implementation,
    draw,
    error,
    random_cases,
)
from swinv2.ops import reference, sdpa
from swinv2.ops.backends import BACKENDS, Call, choose_backend, explain_backend, window_attention
from swinv2.ops.cpu import attention, library
from swinv2.ops.reference import AttentionInputs
from swinv2.ops.triton import launch
from swinv2.ops.windows import WindowPlan

FAST = "sdpa" if library.refuse() else "cpu"


def four_loops(
    q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, scale: Tensor, plan: WindowPlan, padded_value: Tensor
) -> Tensor:
    """The definition, without any of the package's geometry: loops over windows, heads, queries and keys.

    A window's tokens are found by counting. A query sees a key if the two lie in the map as they lie in the window;
    and a key that only fills up, if padding is not hidden.
    """
    padded = [math.ceil(length / side) * side for length, side in zip(plan.grid, plan.window, strict=True)]
    starts = itertools.product(*(range(0, length, side) for length, side in zip(padded, plan.window, strict=True)))
    inside = list(itertools.product(*map(range, plan.window)))
    zero = q.new_zeros(q.shape[-1])

    def unit(vector: Tensor) -> Tensor:
        return vector / vector.norm() if vector.any() else vector

    def beyond(token: tuple[int, ...]) -> list[bool]:
        return [position >= length for position, length in zip(token, plan.grid, strict=True)]

    def distance(one: tuple[int, ...], other: tuple[int, ...]) -> list[int]:
        return [first - second for first, second in zip(one, other, strict=True)]

    answers = {}
    for batch, start, head in itertools.product(range(q.shape[0]), starts, range(q.shape[-2])):
        place, keys, values = {}, {}, {}
        for spot in inside:
            moved = zip(start, spot, plan.shift, padded, strict=True)
            token = place[spot] = tuple((first + offset + shift) % length for first, offset, shift, length in moved)
            is_real = not any(beyond(token))
            keys[spot] = unit(k[batch, *token, head]) if is_real else zero
            values[spot] = v[batch, *token, head] if is_real else padded_value[head]
        for spot in inside:
            if any(beyond(place[spot])):
                continue
            query = unit(q[batch, *place[spot], head])
            logits, seen = [], []
            for key in inside:
                if distance(place[spot], place[key]) != distance(spot, key):
                    continue
                # Padding frames are always hidden.
                if any(beyond(place[key]) if plan.mask_padding else beyond(place[key])[:-2]):
                    continue
                entry = [apart + side - 1 for apart, side in zip(distance(spot, key), plan.window, strict=True)]
                logits.append(scale[head] * torch.dot(query, keys[key]) + bias_table[head, *entry])
                seen.append(values[key])
            answers[batch, *place[spot], head] = torch.stack(logits).softmax(0) @ torch.stack(seen)
    return torch.stack([answers[index] for index in itertools.product(*map(range, q.shape[:-1]))]).view(q.shape)


@cache
def truth(case: Case) -> dict[str, Tensor]:
    """The definition's answer and gradients, in float64."""
    return draw(case).call(four_loops, case.plan, torch.float64)


ALL_CASES = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.mark.parametrize(
    ("case", "backend"),
    [
        # The interpreter takes seconds.
        pytest.param(
            case,
            backend,
            marks=[pytest.mark.slow] if backend == "triton" and index % 3 else [],
            id=f"{backend}-{case.name}",
        )
        for backend in IMPLEMENTATIONS
        for index, case in enumerate(CASES)
    ],
)
def test_the_definition(backend: str, case: Case) -> None:
    """In float64 every backend gives the definition's answer and gradients."""
    results = draw(case).call(IMPLEMENTATIONS[backend], case.plan, torch.float64)
    errors = {name: error(result, truth(case)[name]) for name, result in results.items()}
    assert {name: value for name, value in errors.items() if not value < 1e-12} == {}


@pytest.mark.parametrize(
    ("case", "backend"),
    [
        # The interpreter takes seconds.
        pytest.param(
            case,
            backend,
            marks=[pytest.mark.slow] if backend == "triton" and index % 26 else [],
            id=f"{backend}-{case.name}",
        )
        for backend in FAST_IMPLEMENTATIONS
        for index, case in enumerate(CASES)
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_fast_backend_is_no_less_exact_than_the_plain_one(backend: str, dtype: torch.dtype, case: Case) -> None:
    """In lower precision a fast backend's error is at most twice that of the plain backend, three times for gradients.

    Errors are averages over many numbers: the maps are more than in the table, and as a scale's gradient has but a few
    numbers, which may by luck be exact, so are the draws. The floor: every number is rounded once.
    """
    case = replace(case, batch=2 if backend == "triton" else 8, heads=3)
    errors = {}
    for seed in range(1 if backend == "triton" else 4):
        inputs = draw(case, seed)
        exact = inputs.call(IMPLEMENTATIONS["reference"], case.plan, torch.float64)
        for name in ("reference", backend):
            for tensor, result in inputs.call(IMPLEMENTATIONS[name], case.plan, dtype).items():
                errors[name, tensor] = errors.get((name, tensor), 0.0) + error(result, exact[tensor])
    excess = {}
    for tensor in exact:
        allowed = (2 if tensor == "output" else 3) * errors["reference", tensor] + (seed + 1) * torch.finfo(dtype).eps
        if not errors[backend, tensor] <= allowed:
            excess[tensor] = (errors[backend, tensor], allowed)
    assert excess == {}


@pytest.mark.parametrize("backend", [backend for backend in FAST_IMPLEMENTATIONS if backend != "triton"])
@given(case=random_cases(), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=60)
def test_a_fast_backend_is_the_plain_one_on_random_plans(backend: str, case: Case, seed: int) -> None:
    """In float64 the backends agree on any map, window, shift and padding, in answer and gradients."""
    agree(backend, case, seed)


@given(case=random_cases(), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=4)
def test_the_fused_backend_is_the_plain_one_on_random_plans(case: Case, seed: int) -> None:
    """As the other backends; the interpreter is slow."""
    agree("triton", case, seed)


def agree(backend: str, case: Case, seed: int) -> None:
    """Holds a backend's answer and gradients to the plain backend's in float64."""
    inputs = draw(case, seed)
    plain, fast = (inputs.call(IMPLEMENTATIONS[name], case.plan, torch.float64) for name in ("reference", backend))
    for name, expected in plain.items():
        # Absolute: the gradient of a scale is a sum that may cancel to nothing (a window of one token).
        torch.testing.assert_close(fast[name], expected, rtol=1e-10, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("backend", [backend for backend in FAST_IMPLEMENTATIONS if backend != "triton"])
def test_windows_of_16_along_all_axes(backend: str) -> None:
    """The largest windows of the paper's video models."""
    agree(backend, Case("large", (18, 16, 20), (16, 16, 16), (8, 0, 8), heads=1), 0)


def test_no_images_at_all() -> None:
    """A batch of nothing comes back as nothing, with gradients of the right shapes."""
    case = replace(CASES[0], batch=0)
    results = draw(case).call(IMPLEMENTATIONS["sdpa"], case.plan, torch.float32)
    assert all(torch.isfinite(result).all() for result in results.values())


@ALL_CASES
@pytest.mark.parametrize("backend", IMPLEMENTATIONS)
def test_no_argument_is_changed(backend: str, case: Case) -> None:
    """The arguments are after the call what they were before."""
    tensors = {name: tensor.float() for name, tensor in draw(case).tensors.items()}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    q, k, v, bias_table, scale, padded_value = tensors.values()
    IMPLEMENTATIONS[backend](q, k, v, bias_table, scale, case.plan, padded_value)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, before[name]), name


@ALL_CASES
def test_weights_sum_to_one_and_do_not_cross_regions(case: Case) -> None:
    """Each row of attention weights is a distribution over the tokens it may see, and exactly zero on the others."""
    tensors = {name: tensor.float() for name, tensor in draw(case).tensors.items()}
    q, k, v, bias_table, scale, padded_value = tensors.values()
    _, weights = reference.window_attention(AttentionInputs(q, k, v, bias_table, scale, case.plan, padded_value))
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    assert (weights >= 0).all()
    hidden = case.plan.hidden_pairs(torch.device("cpu"))
    if hidden is not None:
        by_window = weights.unflatten(0, (case.batch, -1))
        assert (by_window.masked_select(hidden[:, None]) == 0).all()


@pytest.mark.parametrize("backend", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_nothing_leaks_across_regions_at_the_sharpest_scale(backend: str, dtype: torch.dtype) -> None:
    """Scale 100, allowed keys at cosine -1, hidden ones at +1: an additive -100 would give the hidden ones it all.

    Along a shifted axis of four tokens in windows of two, token 0 and token 3 share a window across the map's edge.
    """
    plan = WindowPlan((4, 1), (2, 1), (1, 0))
    q = torch.ones(1, 4, 1, 1, 16, dtype=dtype)
    k = torch.ones(1, 4, 1, 1, 16, dtype=dtype)
    k[:, 0] = -1
    v = torch.zeros(1, 4, 1, 1, 16, dtype=dtype)
    v[:, 0], v[:, 3] = 1, -1
    table_dtype = torch.promote_types(dtype, torch.float32)
    bias_table, scale = torch.zeros(1, 3, 1, dtype=table_dtype), torch.full((1,), 100.0, dtype=table_dtype)
    output = IMPLEMENTATIONS[backend](q, k, v, bias_table, scale, plan, None)
    assert (output[:, 0] == 1).all()
    assert (output[:, 3] == -1).all()


@pytest.mark.parametrize("backend", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("mask_padding", [False, True])
def test_keys_of_zero_give_numbers(backend: str, dtype: torch.dtype, mask_padding: bool) -> None:
    """Filling tokens have keys of exactly zero, and so may tokens of the map: no NaN, not in fp16 either."""
    case = Case("zeros", (5, 4), (4, 4), (2, 2), mask_padding=mask_padding)
    inputs = draw(case)
    for name, result in inputs.call(IMPLEMENTATIONS[backend], case.plan, dtype).items():
        assert result.isfinite().all(), name
    inputs.tensors["k"][:, :2] = 0
    inputs.tensors["q"][:, 0] = 0
    # Forwards only: the direction of a vector of zeros has no finite gradient.
    assert inputs.call(IMPLEMENTATIONS[backend], case.plan, dtype)["output"].isfinite().all()


@pytest.mark.parametrize(
    # The interpreter takes seconds.
    "backend",
    [pytest.param(backend, marks=[pytest.mark.slow] if backend == "triton" else []) for backend in IMPLEMENTATIONS],
)
def test_hidden_padding_does_not_matter(backend: str) -> None:
    """What padding tokens carry changes the answer by default, and neither answer nor gradient if they are hidden."""
    for mask_padding in (False, True):
        case = Case("padding", (5, 7), (4, 4), (2, 2), mask_padding=mask_padding)
        inputs = draw(case)
        before = inputs.call(IMPLEMENTATIONS[backend], case.plan, torch.float64)
        inputs.tensors["padded_value"] += 100
        after = inputs.call(IMPLEMENTATIONS[backend], case.plan, torch.float64)
        assert torch.equal(before["output"], after["output"]) == mask_padding
        assert (not before["padded_value"].any()) == mask_padding


@pytest.mark.parametrize("backend", IMPLEMENTATIONS)
def test_values_of_padding_tokens_are_zero_if_not_given(backend: str) -> None:
    """No padded_value is a padded_value of zeros."""
    case = Case("padding", (5, 7), (4, 4), (2, 2))
    q, k, v, bias_table, scale, padded_value = draw(case).tensors.values()
    without = IMPLEMENTATIONS[backend](q, k, v, bias_table, scale, case.plan)
    with_zeros = IMPLEMENTATIONS[backend](q, k, v, bias_table, scale, case.plan, torch.zeros_like(padded_value))
    assert torch.equal(without, with_zeros)


def test_a_padding_tokens_query_shows_in_the_weights_only() -> None:
    """The query of padding tokens decides rows of the attention weights that the map never uses."""
    case = Case("padding", (5, 7), (4, 4), (2, 2))
    q, k, v, bias_table, scale, padded_value = draw(case).tensors.values()
    inputs = AttentionInputs(q, k, v, bias_table, scale, case.plan, padded_value)
    output, weights = reference.window_attention(inputs)
    other_output, other_weights = reference.window_attention(replace(inputs, padded_query=padded_value))
    assert torch.equal(output, other_output)
    assert not torch.equal(weights, other_weights)


@pytest.mark.parametrize("backend", IMPLEMENTATIONS_WITH_DROPOUT)
def test_dropout_drops_weights_and_keeps_their_mean(backend: str) -> None:
    """Dropout changes the answer from call to call, and on average not at all."""
    case = Case("dropout", (4, 4), (4, 4))
    q, k, v, bias_table, scale, padded_value = (tensor.float() for tensor in draw(case).tensors.values())
    repeats = 2000
    many = [tensor.expand(repeats, *tensor.shape[1:]).contiguous() for tensor in (q, k, v)]
    torch.manual_seed(0)
    answers = IMPLEMENTATIONS[backend](*many, bias_table, scale, case.plan, padded_value, 0.3)
    plain = IMPLEMENTATIONS[backend](q, k, v, bias_table, scale, case.plan, padded_value, 0.0)
    assert not torch.equal(answers[0], answers[1])
    # Five standard errors of the mean.
    assert ((answers.mean(0) - plain[0]).abs() <= 5 * answers.std(0) / repeats**0.5 + 1e-6).all()


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU, on which Triton is not told to interpret."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU that the kernels are for."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


ON_GPU = Call(device=torch.device("cuda"), dtype=torch.bfloat16, shape=(8, 64, 64, 3, 32), window=(8, 8))


class TestDispatch:
    """Which backend runs is said, not guessed."""

    def test_weights_need_the_eager_backend(self) -> None:
        """Only the plain backend has attention weights."""
        assert choose_backend("sdpa") == FAST
        for requested in ("triton", "sdpa", "eager"):
            assert choose_backend(requested, Call(wants_weights=True)) == "eager"

    def test_an_unknown_backend_is_refused(self) -> None:
        """The error names the requested backend and the available ones."""
        with pytest.raises(ValueError, match=r"attn_implementation is 'flash_attention_2'.*'sdpa'.*'eager'"):
            choose_backend("flash_attention_2")

    @pytest.mark.parametrize("wants_weights", [False, True])
    def test_every_backend_is_explained(self, wants_weights: bool) -> None:
        """One line says what runs; every other backend has a line with the reason why not."""
        for backend in BACKENDS:
            lines = explain_backend(backend.name, Call(wants_weights)).splitlines()
            assert len(lines) == len(BACKENDS)
            assert sum(" runs: " in line for line in lines) == 1

    @pytest.mark.usefixtures("no_gpu")
    def test_without_a_gpu_the_next_backend_runs_and_says_why(self) -> None:
        """A model that asks for the kernels is answered on a CPU too."""
        on_cpu = replace(ON_GPU, device=torch.device("cpu"))
        assert choose_backend("triton", on_cpu) == FAST
        assert "triton does not: the maps are on cpu; it needs a GPU" in explain_backend("triton", on_cpu)
        assert "triton does not: there is no GPU" in explain_backend("triton")

    @pytest.mark.usefixtures("gpu")
    def test_a_gpu_runs_the_kernels(self) -> None:
        """If they are asked for; another choice is respected."""
        assert choose_backend("triton", ON_GPU) == "triton"
        assert choose_backend("sdpa", ON_GPU) == "sdpa"

    @pytest.mark.usefixtures("gpu")
    @pytest.mark.parametrize(
        ("call", "reason"),
        [
            (replace(ON_GPU, dtype=torch.float64), "the maps are float64"),
            (replace(ON_GPU, dropout=0.1), "attention_probs_dropout_prob is 0.1"),
            (replace(ON_GPU, shape=(8, 64, 64, 3, 256)), "heads have 256 channels"),
            (replace(ON_GPU, window=(8, 65)), "windows are 8 x 65"),
            (replace(ON_GPU, shape=(1, 2048, 2048, 48, 32)), "a map of 2048 x 2048 tokens"),
            (replace(ON_GPU, device=torch.device("cpu")), "the maps are on cpu"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_the_kernels_cannot_do_goes_to_the_next_backend(self, call: Call, reason: str) -> None:
        """With the reason in words."""
        assert choose_backend("triton", call) in ("cpu", "sdpa")
        assert reason in explain_backend("triton", call)

    @pytest.mark.usefixtures("gpu")
    def test_an_old_gpu_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before Ampere there is no bf16."""
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        assert "compute capability 7.5; it needs 8.0" in explain_backend("triton", ON_GPU)

    def test_all_backends_through_one_door(self) -> None:
        """`window_attention` returns the map of the backend asked for, and weights from the plain one."""
        case = CASES[11]
        arguments = list(draw(case).tensors.values())
        arguments.insert(5, case.plan)
        eager, weights = window_attention(*arguments, backend="eager")
        assert weights is not None
        for backend, door in (("sdpa", sdpa), ("triton", launch), ("cpu", attention)):
            with mock.patch.object(door, "window_attention", side_effect=door.window_attention) as spy:
                fast, nothing = window_attention(*arguments, backend=backend)
            assert spy.call_count == 1
            torch.testing.assert_close(fast, eager)
            assert nothing is None


class TestAutocast:
    """Maps that are fp32 where autocast says bf16, as from layers that answer in their input's dtype."""

    CASE = Case("autocast", (5, 7), (3, 3), (1, 1), batch=2, heads=3)

    @staticmethod
    def call(backend: Implementation, forward: bool, backward: bool) -> tuple[Tensor, ...]:
        """The answer and the gradients, with autocast around the passes that are named."""
        inputs = draw(TestAutocast.CASE)
        leaves = [tensor.float().requires_grad_() for tensor in inputs.tensors.values()]
        with torch.autocast("cpu", torch.bfloat16, enabled=forward):
            attended = backend(*leaves[:5], TestAutocast.CASE.plan, leaves[5])
        with torch.autocast("cpu", torch.bfloat16, enabled=backward):
            gradients = torch.autograd.grad(attended, leaves, inputs.direction.to(attended.dtype))
        return attended.detach(), *gradients

    @pytest.mark.parametrize(
        ("backend", "forward", "backward"),
        [
            # The interpreter takes seconds.
            pytest.param(
                backend, *passes, marks=[pytest.mark.slow] if backend == "triton" and passes != (True, True) else []
            )
            for backend in FAST_IMPLEMENTATIONS
            for passes in ((True, False), (False, True), (True, True))
        ],
    )
    def test_it_does_not_fail(self, backend: str, forward: bool, backward: bool) -> None:
        for ours, exact in zip(
            self.call(IMPLEMENTATIONS[backend], forward, backward),
            self.call(IMPLEMENTATIONS["reference"], False, False),
            strict=True,
        ):
            assert error(ours, exact) < 3e-2
