"""A block that works in pieces and in joined products is the block that does not."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import peers
from swinv2 import Swinv2Config, Swinv2ForImageClassification
from swinv2.layers.block import SwinTransformerBlock
from swinv2.layers.linear import is_plain, project
from swinv2.ops.cpu import pieces

SMALL = {"image_size": 64, "window_size": 4, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "num_labels": 6}


def build(**fields: object) -> Swinv2ForImageClassification:
    return peers.draw_weights(Swinv2ForImageClassification(Swinv2Config(**SMALL, **fields))).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 50, 70, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_in_pieces_nothing_changes(dtype: torch.dtype, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build().to(dtype)
    with torch.no_grad():
        whole = model(images.to(dtype)).logits
        monkeypatch.setattr(pieces, "CACHE_BYTES", 2**17)
        tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}[dtype]
        assert peers.difference(model(images.to(dtype)).logits, whole) < tolerance


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


@pytest.mark.parametrize("name", ["", "attention.self.key", "intermediate", "intermediate.dense", "output.dense"])
@pytest.mark.parametrize("with_gradients", [False, True])
def test_a_hook_sees_the_whole_map_once(
    name: str, with_gradients: bool, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "CACHE_BYTES", 2**17)
    model = build()
    block = model.swinv2.encoder.layers[0].blocks[1]
    seen: list[torch.Size] = []
    block.get_submodule(name).register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    with torch.set_grad_enabled(with_gradients):
        hooked = model(images).logits
        expected = build()(images).logits
    # 50 x 70 pixels are 13 x 18 patches. A key of filling tokens is not asked for: it is zero.
    assert [tuple(shape) for shape in seen] in ([(6, 13, 18, channels)] for channels in (24, 96))
    assert peers.difference(hooked, expected) < 1e-5


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
        # Twice for a query: filling tokens have one too.
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
    model = build(attn_implementation="eager")
    pixels = images[:1].requires_grad_()
    (slope,) = torch.autograd.grad(model(pixels).logits.sum(), pixels, create_graph=True)
    slope.square().sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name.endswith("dense.weight"))


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
