"""A block whose branches are functions of their own is the block whose parts are called."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from transformers.activations import ACT2FN

import peers
from swinv2 import Swinv2Config, Swinv2ForImageClassification
from swinv2.layers.block import SwinTransformerBlock
from swinv2.ops.backends import CPU, choose_backend
from swinv2.ops.cpu import blocks, chunks, kernels, library

FAST = choose_backend("sdpa")
"""The kernels for CPUs where they are compiled."""

needs_kernels = pytest.mark.skipif(library.refuse() is not None, reason=str(library.refuse()))
SMALL = {"image_size": 64, "window_size": 4, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "num_labels": 6}


def build(**fields: object) -> Swinv2ForImageClassification:
    return peers.draw_weights(Swinv2ForImageClassification(Swinv2Config(**SMALL, **fields))).eval()


def cut(patch: pytest.MonkeyPatch) -> None:
    """Has branches be computed in several pieces."""
    patch.setattr(chunks, "CACHE_BYTES", 2**17)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 50, 70, generator=torch.Generator().manual_seed(1))


def test_in_chunks_nothing_changes(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch)
    with torch.no_grad():
        answers = [build(attn_implementation=backend)(images).logits for backend in ("sdpa", "eager")]
    assert peers.difference(*answers) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_chunks_half_precision_is_about_as_exact(
    dtype: torch.dtype, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(monkeypatch)
    with torch.no_grad():
        truth = build(attn_implementation="eager")(images).logits
        errors = [
            peers.difference(build(attn_implementation=backend).to(dtype)(images.to(dtype)).logits, truth)
            for backend in ("sdpa", "eager")
        ]
    assert errors[0] <= 2 * errors[1]


def functions(output: Tensor) -> set[str]:
    """Names of the functions that the gradient will pass through."""
    names, todo = set(), [output.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and (node.name(), id(node)) not in names:
            names.add((node.name(), id(node)))
            todo += [parent for parent, _ in node.next_functions]
    return {name for name, _ in names}


def one_function(block: SwinTransformerBlock, backend: str = CPU) -> set[str]:
    """Which of a block's branches are functions of their own."""
    found = functions(block(torch.randn(2, 16, 16, block.layernorm_before.normalized_shape[0]), backend))
    return {name for name in ("Attention", "Mlp") if f"_Add{name}Backward" in found}


@needs_kernels
def test_each_branch_is_one_function_in_the_fast_backend_only() -> None:
    block = build().swinv2.encoder.layers[0].blocks[0]
    assert one_function(block) == {"Attention", "Mlp"}
    assert one_function(block, "eager") == set()


@needs_kernels
@pytest.mark.parametrize(
    ("change", "left"),
    [
        ({"hidden_act": "silu"}, ["Attention"]),
        ({"hidden_act": "gelu_pytorch_tanh"}, ["Attention"]),
        ({"hidden_dropout_prob": 0.1}, ["Attention"]),
        ({"attention_probs_dropout_prob": 0.1}, ["Mlp"]),
        ({"drop_path_rate": 0.5}, ["Attention", "Mlp"]),
    ],
    ids=str,
)
def test_what_the_kernels_cannot_do_in_training_is_done_by_the_parts(
    change: dict[str, object], left: list[str]
) -> None:
    assert sorted(one_function(build(**change).train().swinv2.encoder.layers[1].blocks[0])) == left


@pytest.mark.parametrize("channels", [12, 20, 48])
def test_a_map_of_other_channels_is_refused(channels: int) -> None:
    """As torch refuses it: a kernel would read what is not there."""
    block = build().swinv2.encoder.layers[0].blocks[0]
    with torch.no_grad(), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        block(torch.randn(1, 8, 8, channels), FAST)


def test_a_weight_that_is_elsewhere_is_refused() -> None:
    """Not read, as torch refuses it."""
    block = build().swinv2.encoder.layers[0].blocks[0]
    block.layernorm_after.to("meta")
    with torch.no_grad(), pytest.raises(RuntimeError, match="meta"):
        block(torch.randn(1, 8, 8, 24), FAST)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "change",
    [{"kernel_size": 7, "padding": 3}, {"kernel_size": 4, "dilation": 2}, {"kernel_size": 4, "groups": 3}],
    ids=str,
)
def test_a_replaced_patch_projection_is_what_it_is(change: dict[str, int], dtype: torch.dtype) -> None:
    """Overlapping, padded or grouped, it is called as a module."""
    embeddings = build().swinv2.embeddings.patch_embeddings.to(dtype)
    embeddings.projection = nn.Conv2d(3, 24, stride=4, dtype=dtype, **change)
    images = torch.randn(2, 3, 32, 32).to(dtype)
    expected = embeddings.projection(images).permute(0, 2, 3, 1)
    torch.testing.assert_close(embeddings(images), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("", 24),
        ("attention.self.key", 24),
        ("intermediate", 24),
        ("intermediate.dense", 24),
        ("intermediate.activation", 96),
        ("output.dense", 96),
    ],
)
@pytest.mark.parametrize("with_gradients", [False, True])
def test_a_hook_sees_the_whole_map_once(
    name: str, channels: int, with_gradients: bool, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(monkeypatch)
    model = build()
    block = model.swinv2.encoder.layers[0].blocks[1]
    seen: list[torch.Size] = []
    block.get_submodule(name).register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    with torch.set_grad_enabled(with_gradients):
        hooked = model(images).logits
        expected = build()(images).logits
    # 50 x 70 pixels are 13 x 18 patches.
    assert seen == [(6, 13, 18, channels)]
    assert peers.difference(hooked, expected) < 1e-5


@needs_kernels
@pytest.mark.parametrize(
    ("activation", "joined"),
    [(nn.GELU(), True), (nn.GELU("tanh"), False), (ACT2FN["gelu"], True), (ACT2FN["gelu_python"], False)],
    ids=["exact", "tanh", "transformers", "python"],
)
def test_only_an_exact_gelu_is_part_of_the_function(
    activation: nn.Module, joined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Swinv2Config, "make_activation", lambda config: activation)
    block = build().swinv2.encoder.layers[0].blocks[0]
    assert ("Mlp" in one_function(block)) is joined
    x = torch.randn(2, 16, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(block(x, FAST), block(x, "eager"), rtol=1e-4, atol=1e-5)


class Counting(nn.Module):
    """A module in another one's place."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, features: Tensor) -> Tensor:
        self.shapes.append(tuple(features.shape))
        return self.module(features)


@pytest.mark.parametrize("name", ["intermediate", "intermediate.dense", "intermediate.activation", "output"])
@pytest.mark.parametrize("with_gradients", [False, True])
def test_a_module_in_anothers_place_is_called_once_with_the_whole_map(
    name: str, with_gradients: bool, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(monkeypatch)
    model = build()
    block = model.swinv2.encoder.layers[0].blocks[1]
    counting = Counting(block.get_submodule(name))
    block.set_submodule(name, counting)
    with torch.set_grad_enabled(with_gradients):
        replaced = model(images).logits
        assert peers.difference(replaced, build()(images).logits) < 1e-5
    assert [shape[:3] for shape in counting.shapes] == [(6, 13, 18)]


REPLACED = {
    "layernorm_before": nn.Identity(),
    "layernorm_after": nn.LayerNorm(24, elementwise_affine=False),
    "drop_path": nn.Identity(),
    "attention.output": nn.Identity(),
    "attention.self.query": nn.Identity(),
    "attention.self.value": nn.LayerNorm(24),
    "attention.output.dropout": nn.GELU(),
    "intermediate": nn.LayerNorm(24),
    "intermediate.activation": nn.Sequential(nn.GELU(), nn.Tanh()),
    "output.dropout": nn.Tanh(),
    "output": nn.Linear(96, 24),
}


@pytest.mark.parametrize("name", REPLACED)
def test_whatever_stands_in_a_parts_place_is_called(name: str, images: Tensor) -> None:
    """Things too that a block consists of in other places."""
    answers = []
    for backend in ("sdpa", "eager"):
        model = build(attn_implementation=backend)
        block = model.swinv2.encoder.layers[0].blocks[0]
        if name == "intermediate":
            block.output = nn.Identity()
        block.set_submodule(name, peers.draw_weights(copy.deepcopy(REPLACED[name])))
        with torch.no_grad():
            answers.append(model(images).logits)
    assert peers.difference(*answers) < 1e-5
    with torch.no_grad():
        assert peers.difference(answers[0], build()(images).logits) > 1e-4 or name == "drop_path"


def test_drop_path_alone_in_training_mode_still_drops_whole_images() -> None:
    """As in estimates of uncertainty: the model evaluates, its dropping layers do not."""
    block = build(drop_path_rate=0.5).swinv2.encoder.layers[1].blocks[1]
    block.drop_path.train()
    with torch.no_grad():
        block.layernorm_before.weight.zero_()
        block.layernorm_before.bias.zero_()
        x = torch.randn(16, 8, 8, 48)
        changed = (block(x, FAST) != x).flatten(1).float().mean(1)
    assert set(changed.round(decimals=2).tolist()) == {0.0, 1.0}


def test_a_hook_on_all_modules_is_heeded(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch)
    calls: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: calls.append(module))
    model = build()
    try:
        with torch.no_grad():
            model(images)
    finally:
        handle.remove()
    for block in (module for module in model.modules() if isinstance(module, SwinTransformerBlock)):
        assert [calls.count(m) for m in (block, block.attention, block.intermediate.dense)] == [1, 1, 1]


class Doubled(nn.Linear):
    """A linear layer that somebody has made another one of."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def replace_forward(layer: nn.Linear) -> None:
    layer.forward = lambda input: 2 * nn.functional.linear(input, layer.weight, layer.bias)


def parametrise(layer: nn.Linear) -> None:
    parametrize.register_parametrization(layer, "weight", nn.Identity())


def double(layer: nn.Linear) -> None:
    layer.__class__ = Doubled


@needs_kernels
@pytest.mark.parametrize(
    "change", [replace_forward, parametrise, double, lambda layer: prune.random_unstructured(layer, "weight", 0.5)]
)
@pytest.mark.parametrize("name", ["attention.self.query", "intermediate.dense"])
def test_what_is_no_plain_linear_layer_is_called(name: str, change: Callable[[nn.Linear], object]) -> None:
    block = build().swinv2.encoder.layers[0].blocks[1]
    change(block.get_submodule(name))
    assert len(one_function(block)) == 1
    x = torch.randn(2, 16, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(block(x, CPU), block(x, "eager"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", ["attention.self.query", "intermediate", "output.dense"])
def test_frozen_layers_get_no_gradient_and_change_no_other(frozen: str, images: Tensor) -> None:
    gradients = []
    for freeze in (False, True):
        model = build()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not (freeze and f".{frozen}." in name))
        model(images).logits.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[1].items():
        if f".{frozen}." in name:
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, gradients[0][name])


def test_the_eager_backend_has_gradients_of_gradients(images: Tensor) -> None:
    """A penalty on the gradient of the pixels can be trained with."""
    model = build(attn_implementation="eager").double()
    pixels = images[:1].double().requires_grad_()
    (slope,) = torch.autograd.grad(model(pixels).logits.sum(), pixels, create_graph=True)
    slope.square().sum().backward()
    for name, parameter in model.named_parameters():
        if name.endswith("dense.weight"):
            step = 1e-4 * parameter.grad / parameter.grad.norm()
            penalties = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.add_(sign * step)
                (slope,) = torch.autograd.grad(model(pixels).logits.sum(), pixels)
                penalties.append(slope.square().sum())
                with torch.no_grad():
                    parameter.sub_(sign * step)
            slope_of_penalty = ((penalties[0] - penalties[1]) / 2e-4).item()
            assert slope_of_penalty == pytest.approx(parameter.grad.norm().item(), rel=1e-4)


def test_the_fast_backend_says_that_it_has_none(images: Tensor) -> None:
    pixels = images[:1].requires_grad_()
    (slope,) = torch.autograd.grad(build()(pixels).logits.sum(), pixels, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_operations_are_counted_in_full(backend: str) -> None:
    """torch's counter of floating-point operations gives what it gives for transformers' model.

    Its table has no line for torch's attention on a CPU: in the fast backend, what is left is all but the attention.
    """
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Swinv2Config as TheirConfig
    from transformers import Swinv2ForImageClassification as TheirModel

    counts = []
    for model in (build(attn_implementation=backend), TheirModel(TheirConfig(**SMALL)).eval()):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, 64, 64))
        by_operation = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
        counts.append({name: n for name, n in by_operation.items() if backend == "eager" or "bmm" not in name})
    assert {name: n for name, n in counts[0].items() if "attention" not in name} == counts[1]


class TestDroppedSamples:
    """Branches of samples that drop path drops are not computed; nothing else changes."""

    @staticmethod
    def run(backend: str, seed: int, rate: float) -> list[Tensor]:
        """The answer with the gradients of input and parameters."""
        block = build(drop_path_rate=0.5).double().train().swinv2.encoder.layers[1].blocks[1]
        block.drop_path.rate = rate
        x = torch.randn(6, 8, 8, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
        torch.manual_seed(seed)
        answer = block(x, backend)
        after = torch.rand(1)
        answer.square().sum().backward()
        gradients = [parameter.grad for parameter in block.parameters()]
        assert all(gradient is not None for gradient in gradients)
        return [answer.detach(), after, x.grad, *gradients]

    @pytest.mark.parametrize("rate", [0.1, 0.5, 1 - 1e-9], ids=["few", "half", "all"])
    @pytest.mark.parametrize("seed", range(3))
    def test_answer_gradients_and_draws_are_the_same(self, rate: float, seed: int) -> None:
        for ours, expected in zip(self.run(FAST, seed, rate), self.run("eager", seed, rate), strict=True):
            torch.testing.assert_close(ours, expected)

    @needs_kernels
    def test_they_are_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[int] = []
        for room, name in ((blocks, "add_attention"), (kernels, "attend")):
            kernel = getattr(room, name)
            monkeypatch.setattr(room, name, lambda x, *rest, kernel=kernel: (seen.append(len(x)), kernel(x, *rest))[1])
        torch.manual_seed(0)
        kept = int((torch.rand(6) < 0.5).sum())
        assert 0 < kept < 6
        self.run(FAST, 0, 0.5)
        assert seen == [kept]
        self.run(FAST, 0, 1 - 1e-9)
        assert sum(seen) == kept

    @pytest.mark.parametrize("autocast", [False, True])
    def test_the_answers_dtype(self, autocast: bool) -> None:
        block = build(drop_path_rate=0.5).train().swinv2.encoder.layers[1].blocks[1]
        x = torch.randn(6, 8, 8, 48)
        dtypes = set()
        for backend in (FAST, "eager"):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                dtypes.add(block(x, backend).dtype)
        assert len(dtypes) == 1

    def test_who_watches_sees_all(self) -> None:
        block = build(drop_path_rate=0.5).train().swinv2.encoder.layers[1].blocks[1]
        seen: list[int] = []
        block.attention.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
        torch.manual_seed(0)
        block(torch.randn(6, 8, 8, 48), FAST)
        assert seen == [6]
