"""A block that works in pieces and in joined products is the block that does not."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from transformers.activations import ACT2FN

import peers
from swinv2 import Swinv2Config, Swinv2ForImageClassification
from swinv2.layers.block import SwinTransformerBlock
from swinv2.layers.linear import is_plain, project, project_and_activate
from swinv2.ops.cpu import pieces

SMALL = {"image_size": 64, "window_size": 4, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "num_labels": 6}


def build(**fields: object) -> Swinv2ForImageClassification:
    return peers.draw_weights(Swinv2ForImageClassification(Swinv2Config(**SMALL, **fields))).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 50, 70, generator=torch.Generator().manual_seed(1))


def test_in_pieces_nothing_changes(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "CACHE_BYTES", 2**17)
    with torch.no_grad():
        answers = [build(attn_implementation=form)(images).logits for form in ("sdpa", "eager")]
    assert peers.difference(*answers) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_pieces_half_precision_is_about_as_exact(
    dtype: torch.dtype, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "CACHE_BYTES", 2**17)
    with torch.no_grad():
        truth = build(attn_implementation="eager")(images).logits
        errors = [
            peers.difference(build(attn_implementation=form).to(dtype)(images.to(dtype)).logits, truth)
            for form in ("sdpa", "eager")
        ]
    assert errors[0] <= 2 * errors[1]


def test_pieces_are_made(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients, and with a small cache, the MLP sees a few tokens at a time; with gradients all of them."""
    monkeypatch.setattr(pieces, "CACHE_BYTES", 2**17)
    seen: list[int] = []
    block = build().swinv2.encoder.layers[0].blocks[0]
    plain = block._mlp_branch
    monkeypatch.setattr(block, "_mlp_branch", lambda x, backend: (seen.append(x.numel()), plain(x, backend))[1])
    x = torch.randn(6, 16, 16, 24)
    block(x, "sdpa")
    assert seen == [x.numel()]
    with torch.no_grad():
        seen.clear()
        block(x, "eager")
        assert seen == [x.numel()]
        seen.clear()
        block(x, "sdpa")
    assert len(seen) > 2
    assert sum(seen) == x.numel()


def test_the_attention_branch_sees_a_few_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "CACHE_BYTES", 2**17)
    seen: list[int] = []
    block = build().swinv2.encoder.layers[0].blocks[0]
    plain = block._attention_branch
    monkeypatch.setattr(block, "_attention_branch", lambda x, *rest: (seen.append(len(x)), plain(x, *rest))[1])
    with torch.no_grad():
        block(torch.randn(6, 16, 16, 24), "sdpa")
    assert len(seen) > 1
    assert sum(seen) == 6


def functions(output: Tensor) -> set[str]:
    """Names of the functions that the gradient will pass through."""
    names, todo = set(), [output.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and (node.name(), id(node)) not in names:
            names.add((node.name(), id(node)))
            todo += [parent for parent, _ in node.next_functions]
    return {name for name, _ in names}


def test_the_mlp_keeps_little_in_training() -> None:
    block = build().swinv2.encoder.layers[0].blocks[0]
    x = torch.randn(2, 16, 16, 24)
    assert "_FeedForwardBackward" in functions(block(x, "sdpa")[0])
    assert "_FeedForwardBackward" not in functions(block(x, "eager")[0])


def test_queries_keys_and_values_share_a_product_if_it_is_large() -> None:
    layers = [nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 24)]
    for tokens, shared in ((10, False), (100, True)):
        x = torch.randn(tokens, 8)
        results = project(x, *layers)
        assert ("SplitWithSizesBackward0" in functions(results[0])) is shared
        for layer, result in zip(layers, results, strict=True):
            torch.testing.assert_close(result, layer(x))


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
    monkeypatch.setattr(pieces, "CACHE_BYTES", 2**17)
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


@pytest.mark.parametrize(
    ("activation", "joined"),
    [(nn.GELU(), True), (nn.GELU("tanh"), False), (ACT2FN["gelu"], True), (ACT2FN["gelu_python"], False)],
    ids=["exact", "tanh", "transformers", "python"],
)
@pytest.mark.parametrize("with_gradients", [False, True])
def test_only_an_exact_gelu_without_gradients_joins_the_product(
    activation: nn.Module, joined: bool, with_gradients: bool
) -> None:
    layer, x = nn.Linear(8, 32), torch.randn(5, 8)
    calls: list[Tensor] = []
    # On the class: a hook, or a forward of its own, would keep the activation out of the product.
    with pytest.MonkeyPatch.context() as patch, torch.set_grad_enabled(with_gradients):
        forward = type(activation).forward
        patch.setattr(type(activation), "forward", lambda self, input: calls.append(input) or forward(self, input))
        result = project_and_activate(x, layer, activation)
        assert len(calls) == (0 if joined and not with_gradients else 1)
        torch.testing.assert_close(result, activation(layer(x)))


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
    monkeypatch.setattr(pieces, "CACHE_BYTES", 2**17)
    model = build()
    block = model.swinv2.encoder.layers[0].blocks[1]
    counting = Counting(block.get_submodule(name))
    block.set_submodule(name, counting)
    with torch.set_grad_enabled(with_gradients):
        replaced = model(images).logits
        assert peers.difference(replaced, build()(images).logits) < 1e-5
    assert [shape[:3] for shape in counting.shapes] == [(6, 13, 18)]


def test_a_random_activation_has_its_own_gradient() -> None:
    """What is not computed twice the same way is not computed twice."""
    block = build().swinv2.encoder.layers[0].blocks[0]
    block.intermediate.activation = nn.Sequential(nn.GELU(), nn.Dropout(0.5))
    assert "_FeedForwardBackward" not in functions(block.train()(torch.randn(2, 16, 16, 24), "sdpa")[0])


def test_drop_path_alone_in_training_mode_still_drops_whole_images() -> None:
    """As in estimates of uncertainty: the model evaluates, its dropping layers do not."""
    block = build(drop_path_rate=0.5).swinv2.encoder.layers[1].blocks[1]
    block.drop_path.train()
    with torch.no_grad():
        block.layernorm_before.weight.zero_()
        block.layernorm_before.bias.zero_()
        x = torch.randn(16, 8, 8, 48)
        changed = (block(x, "sdpa")[0] != x).flatten(1).float().mean(1)
    assert set(changed.round(decimals=2).tolist()) == {0.0, 1.0}


def test_a_hook_on_all_modules_is_heeded(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "CACHE_BYTES", 2**17)
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


def test_what_is_no_plain_linear_layer_is_called() -> None:
    plain = nn.Linear(4, 4)
    x = torch.randn(3, 4)
    assert is_plain(plain)
    doubled = Doubled(4, 4)
    doubled.load_state_dict(plain.state_dict())
    replaced, pruned, scaled = (copy.deepcopy(plain) for _ in range(3))
    replaced.forward = lambda input: 2 * nn.functional.linear(input, replaced.weight, replaced.bias)
    prune.identity(pruned, "weight")
    parametrize.register_parametrization(scaled, "weight", nn.Identity())
    for layer, factor in ((doubled, 2), (replaced, 2), (pruned, 1), (scaled, 1)):
        assert not is_plain(layer)
        with torch.no_grad():
            once, again = project(x, plain, layer)
        torch.testing.assert_close(once, plain(x).detach())
        torch.testing.assert_close(again, factor * plain(x).detach())


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


def test_the_eager_form_has_gradients_of_gradients(images: Tensor) -> None:
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


def test_the_fast_form_says_that_it_has_none(images: Tensor) -> None:
    pixels = images[:1].requires_grad_()
    (slope,) = torch.autograd.grad(build()(pixels).logits.sum(), pixels, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()


def test_operations_are_counted_in_full(images: Tensor) -> None:
    """torch's counter of floating-point operations gives what it gives for transformers' model."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Swinv2Config as TheirConfig
    from transformers import Swinv2ForImageClassification as TheirModel

    counts = []
    for model in (build(), TheirModel(TheirConfig(**SMALL)).eval()):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, 64, 64))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


class TestDroppedSamples:
    """Branches of samples that drop path drops are not computed; nothing else changes."""

    @staticmethod
    def run(form: str, seed: int, rate: float) -> tuple[int, list[Tensor]]:
        """Samples that the attention branch saw, and the answer with the gradients of input and parameters."""
        block = build(drop_path_rate=0.5, attn_implementation=form).double().train().swinv2.encoder.layers[1].blocks[1]
        block.drop_path.rate = rate
        seen: list[int] = []
        plain = block._attention_branch
        block._attention_branch = lambda x, *rest: (seen.append(len(x)), plain(x, *rest))[1]
        x = torch.randn(6, 8, 8, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
        torch.manual_seed(seed)
        answer, _ = block(x, form)
        after = torch.rand(1)
        answer.square().sum().backward()
        gradients = [parameter.grad for parameter in block.parameters()]
        assert all(gradient is not None for gradient in gradients)
        return seen[0], [answer.detach(), after, x.grad, *gradients]

    @pytest.mark.parametrize("rate", [0.1, 0.5, 1 - 1e-9], ids=["few", "half", "all"])
    @pytest.mark.parametrize("seed", range(3))
    def test_answer_gradients_and_draws_are_the_same(self, rate: float, seed: int) -> None:
        _, plain = self.run("eager", seed, rate)
        _, fast = self.run("sdpa", seed, rate)
        for ours, expected in zip(fast, plain, strict=True):
            torch.testing.assert_close(ours, expected)

    def test_they_are_left_out(self) -> None:
        torch.manual_seed(0)
        kept = int((torch.rand(6) < 0.5).sum())
        assert 0 < kept < 6
        assert self.run("sdpa", 0, 0.5)[0] == kept
        assert self.run("eager", 0, 0.5)[0] == 6
        assert self.run("sdpa", 0, 1 - 1e-9)[0] == 1

    @pytest.mark.parametrize("autocast", [False, True])
    def test_the_answers_dtype(self, autocast: bool) -> None:
        block = build(drop_path_rate=0.5).train().swinv2.encoder.layers[1].blocks[1]
        x = torch.randn(6, 8, 8, 48)
        dtypes = set()
        for form in ("sdpa", "eager"):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                dtypes.add(block(x, form)[0].dtype)
        assert len(dtypes) == 1

    def test_who_watches_sees_all(self) -> None:
        block = build(drop_path_rate=0.5).train().swinv2.encoder.layers[1].blocks[1]
        seen: list[int] = []
        block.attention.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
        torch.manual_seed(0)
        block(torch.randn(6, 8, 8, 48), "sdpa")
        assert seen == [6]
