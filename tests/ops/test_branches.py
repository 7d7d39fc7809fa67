"""The residual branches of a block on a CPU, in chunks and with gradients written by hand, against torch's layers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_cases import CASES, Case, error, random_cases
from swinv2.ops import reference
from swinv2.ops.cpu import arguments, blocks, by_torch, chunks, kernels, library, linear
from swinv2.ops.cpu.branches import Epilogue, add_attention, add_mlp
from swinv2.ops.precision import precise
from swinv2.ops.reference import AttentionInputs

pytestmark = pytest.mark.skipif(library.refuse() is not None, reason=str(library.refuse()))

HIDDEN = 20
SMALL_CACHE = 4000
"""Bytes: with it every image is a chunk of its own, and its tokens are several, of which none is large."""


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CACHE_BYTES", SMALL_CACHE)
    monkeypatch.setattr(by_torch, "SMALLEST_CHUNK", 10)


@dataclass(frozen=True)
class Branch:
    """Leaves by name, `x` first, and how they become an answer: by hand, and by torch's layers."""

    leaves: dict[str, Tensor]
    ours: Callable[..., Tensor]
    plain: Callable[..., Tensor]

    def results(
        self,
        backend: Callable[..., Tensor],
        dtype: torch.dtype = torch.float64,
        autocast: torch.dtype | None = None,
        frozen: tuple[str, ...] = (),
    ) -> dict[str, Tensor | None]:
        """The answer, and all gradients by name."""
        leaves = {
            # Bias and scale are never in 16 bits.
            name: leaf.detach().to(precise(dtype) if name in ("bias_table", "scale") else dtype, copy=True)
            for name, leaf in self.leaves.items()
        }
        for name, leaf in leaves.items():
            leaf.requires_grad_(name not in frozen)
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            answer = backend(**leaves)
        answer.backward(random(*answer.shape, seed=99).to(answer.dtype))
        return {"answer": answer.detach()} | {name: leaf.grad for name, leaf in leaves.items()}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16().double()


def parameters(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: random(*shape, seed=seed) / shape[-1] ** 0.5 for seed, (name, shape) in enumerate(shapes.items(), 1)}


def finish(
    x: Tensor, branch_out: Tensor, norm_weight: Tensor, norm_bias: Tensor, kept: Tensor | None, factor: float
) -> Tensor:
    """The residual line as a block has it."""
    branch = F.layer_norm(branch_out, branch_out.shape[-1:], norm_weight, norm_bias, 1e-5) * factor
    return x + (branch if kept is None else torch.where(kept.view(-1, *[1] * (x.ndim - 1)), branch, 0.0))


def attention_branch(case: Case, kept: Tensor | None = None, factor: float = 1.0, has_bias: bool = True) -> Branch:
    """Of a case's plan, batch and heads."""
    channels, table = case.heads * case.head_dim, [2 * length - 1 for length in case.window]
    shapes: dict[str, tuple[int, ...]] = {f"w_{name}": (channels, channels) for name in ("q", "k", "v", "last")}
    shapes |= {f"b_{name}": (channels,) for name in ("q", "v", "last") if has_bias or name == "last"}
    shapes |= {"bias_table": (case.heads, *table), "norm_weight": (channels,), "norm_bias": (channels,)}
    leaves = {"x": random(case.batch, *case.grid, channels)} | parameters(shapes)
    leaves["scale"] = torch.linspace(5, 20, case.heads).double()

    def layers(leaves: dict[str, Tensor]) -> list[tuple[Tensor, Tensor | None]]:
        return [(leaves[f"w_{name}"], leaves.get(f"b_{name}")) for name in ("q", "k", "v", "last")]

    def ours(**leaves: Tensor) -> Tensor:
        *qkv, out_proj = layers(leaves)
        epilogue = Epilogue(leaves["norm_weight"], leaves["norm_bias"], 1e-5, kept, factor)
        return add_attention(leaves["x"], qkv, out_proj, leaves["bias_table"], leaves["scale"], case.plan, epilogue)

    def plain(**leaves: Tensor) -> Tensor:
        x, heads = leaves["x"], (case.heads, -1)
        *qkv, out_proj = layers(leaves)
        q, k, v = (F.linear(x, *each).unflatten(-1, heads) for each in qkv)
        padding = None if qkv[2][1] is None else qkv[2][1].to(v.dtype).unflatten(-1, heads)
        inputs = AttentionInputs(q, k, v, leaves["bias_table"], leaves["scale"], case.plan, padding)
        attended, _ = reference.window_attention(inputs)
        branch_out = F.linear(attended.flatten(-2), *out_proj)
        return finish(x, branch_out, leaves["norm_weight"], leaves["norm_bias"], kept, factor)

    return Branch(leaves, ours, plain)


def mlp_branch(
    grid: tuple[int, int] = (5, 7),
    batch: int = 3,
    kept: Tensor | None = None,
    factor: float = 1.0,
    has_bias: bool = True,
) -> Branch:
    """The same of an MLP."""
    shapes: dict[str, tuple[int, ...]] = {"w1": (HIDDEN, 8), "w2": (8, HIDDEN), "norm_weight": (8,), "norm_bias": (8,)}
    shapes |= {"b1": (HIDDEN,), "b2": (8,)} if has_bias else {}
    leaves = {"x": random(batch, *grid, 8)} | parameters(shapes)

    def ours(**leaves: Tensor) -> Tensor:
        epilogue = Epilogue(leaves["norm_weight"], leaves["norm_bias"], 1e-5, kept, factor)
        return add_mlp(leaves["x"], (leaves["w1"], leaves.get("b1")), (leaves["w2"], leaves.get("b2")), epilogue)

    def plain(**leaves: Tensor) -> Tensor:
        hidden = F.gelu(F.linear(leaves["x"], leaves["w1"], leaves.get("b1")))
        branch_out = F.linear(hidden, leaves["w2"], leaves.get("b2"))
        return finish(leaves["x"], branch_out, leaves["norm_weight"], leaves["norm_bias"], kept, factor)

    return Branch(leaves, ours, plain)


CASE = Case("shifted", (7, 9), (3, 4), (1, 2), heads=2, head_dim=4, batch=3)
OF_FRAMES = Case("frames", (3, 5, 4), (2, 3, 4), (1, 1, 0), heads=2, head_dim=4, batch=3)
KINDS: dict[str, Callable[..., Branch]] = {
    "attention": lambda **rest: attention_branch(CASE, **rest),
    "attention of a video": lambda **rest: attention_branch(OF_FRAMES, **rest),
    "mlp": mlp_branch,
}
ALL = pytest.mark.parametrize("kind", KINDS)
BOTH = pytest.mark.parametrize("kind", ["attention", "mlp"])
"""The kinds of a branch of images."""


def agree(branch: Branch, **how: Any) -> None:
    """Holds answer and gradients to torch's, in fp64."""
    ours, theirs = branch.results(branch.ours, **how), branch.results(branch.plain, **how)
    for name, expected in theirs.items():
        result = ours[name]
        assert (result is None) == (expected is None), name
        if expected is not None:
            assert result.dtype == expected.dtype
            torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("case", CASES[::2], ids=lambda case: case.name)
def test_the_attention_is_torchs_layers(case: Case) -> None:
    agree(attention_branch(replace(case, batch=3)))


@given(
    case=random_cases(),
    cache_bytes=st.sampled_from([1, SMALL_CACHE, 40_000]),
    has_bias=st.booleans(),
)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_attention_on_random_plans(
    case: Case, cache_bytes: int, has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(chunks, "CACHE_BYTES", cache_bytes)
        agree(attention_branch(case, has_bias=has_bias))


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("grid", [(1, 1), (5, 7), (30, 20)], ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_mlp_is_torchs_layers(grid: tuple[int, int], has_bias: bool) -> None:
    agree(mlp_branch(grid, has_bias=has_bias))


@BOTH
@pytest.mark.parametrize("size", [1, 300])
def test_a_pass_of_a_branch_of_any_size_is_one_call(kind: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    branch, called, run = KINDS[kind](), [], arguments.run
    branch.leaves["x"] = random(1, 7, 9, 8).repeat(size, 1, 1, 1)
    for module in (blocks, kernels):
        monkeypatch.setattr(module, "run", lambda name, *rest: (called.append(name), run(name, *rest)))
    with torch.no_grad():
        branch.ours(**branch.leaves)
    assert called == ["run_blocks"]
    branch.results(branch.ours)
    assert called[1:] == ["run_blocks", "run_backward"]


@pytest.mark.usefixtures("cache")
@ALL
@pytest.mark.parametrize("kept", [[True, True, True], [True, False, True], [False, False, True], [False] * 3], ids=str)
def test_dropped_images_pass_by(kind: str, kept: list[bool]) -> None:
    """As they are, to the bit; the others as without them."""
    branch = KINDS[kind](kept=torch.tensor(kept), factor=1.25)
    agree(branch)
    answer = branch.results(branch.ours)["answer"]
    for image, is_kept in enumerate(kept):
        assert torch.equal(answer[image], branch.leaves["x"][image]) is not is_kept


@pytest.mark.usefixtures("cache")
@ALL
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(kind: str) -> None:
    branch = KINDS[kind]()
    for name in branch.leaves:
        agree(branch, frozen=(name,))
        agree(branch, frozen=tuple(other for other in branch.leaves if other != name))


@pytest.mark.usefixtures("cache")
@ALL
def test_without_gradients_the_answer_is_the_same(kind: str) -> None:
    branch = KINDS[kind]()
    with torch.no_grad():
        torch.testing.assert_close(branch.ours(**branch.leaves), branch.plain(**branch.leaves), rtol=1e-9, atol=1e-9)


@pytest.fixture(params=[True, False], ids=["kernels", "products by torch"])
def multiplies(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the processor is one without instructions for 16 bits."""
    monkeypatch.setattr(linear, "is_slow_in", lambda dtype: request.param and dtype.itemsize == 2)


@pytest.mark.usefixtures("cache", "multiplies")
@BOTH
@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [
        *[(torch.float32, None), (torch.bfloat16, None), (torch.float16, None)],
        *[(torch.float32, torch.bfloat16), (torch.float32, torch.float16), (torch.bfloat16, torch.bfloat16)],
    ],
    ids=str,
)
def test_in_lower_precision_it_is_no_less_exact_than_torch(
    kind: str, dtype: torch.dtype, autocast: torch.dtype | None
) -> None:
    """And of torch's dtypes."""
    branch = KINDS[kind](kept=torch.tensor([True, False, True]), factor=1.25)
    exact = branch.results(branch.plain)
    ours, theirs = (branch.results(backend, dtype, autocast) for backend in (branch.ours, branch.plain))
    for name, expected in exact.items():
        assert ours[name].dtype == theirs[name].dtype, name
        allowed = (2 if name == "answer" else 3) * error(theirs[name], expected) + torch.finfo(autocast or dtype).eps
        assert error(ours[name], expected) <= allowed, name


@ALL
def test_of_the_norm_only_the_input_is_kept(kind: str) -> None:
    """And of what else lies between the products, their results: nothing that was computed from them. That of an
    attention of a video in fp32 is computed again; in 16 bits it is kept."""
    branch = KINDS[kind]()
    leaves = {name: leaf.requires_grad_() for name, leaf in branch.leaves.items()}
    answer = branch.ours(**leaves)
    saved = answer.grad_fn.saved_tensors
    # An empty tensor has the address 0: an MLP has no attended map.
    own = {0, *(leaf.data_ptr() for leaf in leaves.values())}
    tokens = leaves["x"][..., 0].numel()
    kept = sorted(tensor.numel() / tokens for tensor in saved if tensor is not None and tensor.data_ptr() not in own)
    expected = {"attention": [8, 8, 3 * 8], "attention of a video": [8, 3 * 8], "mlp": [8, HIDDEN]}
    assert kept == expected[kind]
    with torch.autocast("cpu", torch.bfloat16):
        in_bf16 = branch.ours(**{name: leaf.float() for name, leaf in leaves.items()})
    # The saved tensors live as long as the answer.
    rounded = in_bf16.grad_fn
    while not hasattr(rounded, "saved_tensors"):
        rounded = rounded.next_functions[0][0]
    kept = sorted(
        tensor.numel() / tokens
        for tensor in rounded.saved_tensors
        if tensor is not None and tensor.numel() and tensor.dtype == torch.bfloat16
    )
    assert kept == (expected["attention"] if kind != "mlp" else expected["mlp"])


@ALL
def test_no_images_at_all(kind: str) -> None:
    branch = KINDS[kind]()
    branch.leaves["x"] = branch.leaves["x"][:0]
    for name, result in branch.results(branch.ours).items():
        assert result.shape == branch.leaves[name if name != "answer" else "x"].shape
        assert not result.any(), name


@BOTH
def test_features_may_lie_in_any_way(kind: str) -> None:
    branch = KINDS[kind]()
    expected = branch.results(branch.ours)["answer"]
    x = branch.leaves["x"].permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    with torch.no_grad():
        torch.testing.assert_close(branch.ours(**{**branch.leaves, "x": x}), expected)


@ALL
def test_there_is_no_gradient_of_the_gradient_and_it_says_so(kind: str) -> None:
    branch = KINDS[kind]()
    x = branch.leaves["x"].requires_grad_()
    (slope,) = torch.autograd.grad(branch.ours(**branch.leaves).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()
