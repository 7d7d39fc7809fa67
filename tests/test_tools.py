"""Tools that watch a model from outside: summaries, attributions, Grad-CAM. What they see is what transformers shows.

Nothing that a hook or a wrapper sees depends on whether gradients are on, on how images lie in memory, or on how many
there are.
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree
from transformers.models.swinv2 import modeling_swinv2 as theirs

import peers
from swinv2 import Swinv2Backbone, Swinv2Config, Swinv2ForImageClassification, Swinv2ForMaskedImageModeling, Swinv2Model
from swinv2.layers.block import SwinTransformerBlock

# What the tools themselves use.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

FIELDS: dict[str, Any] = {
    "image_size": 64,
    "window_size": 4,
    "embed_dim": 24,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "num_labels": 3,
    "encoder_stride": 8,
}
FORMS = ["eager", "sdpa"]
MODELS = [Swinv2Model, Swinv2ForImageClassification, Swinv2ForMaskedImageModeling, Swinv2Backbone]


def build(model_class: Any = Swinv2ForImageClassification, backend: str = "sdpa", **fields: Any) -> Any:
    config = Swinv2Config(**FIELDS | fields)
    return peers.draw_weights(model_class._from_config(config, attn_implementation=backend)).eval()


def transformers_twin(model: Any) -> Any:
    """transformers' class with the same weights."""
    twin = theirs.Swinv2ForImageClassification(theirs.Swinv2Config(**FIELDS)).eval()
    twin.load_state_dict(model.state_dict(), strict=False)
    return twin


@contextlib.contextmanager
def watching(model: nn.Module) -> Iterator[list[tuple[str, Any, Any]]]:
    """Every call of every module: its name, what goes in and what comes out, shapes without the number of images."""
    calls: list[tuple[str, Any, Any]] = []

    def shapes(values: Any) -> Any:
        return _pytree.tree_map(lambda each: tuple(each.shape[1:]) if isinstance(each, Tensor) else each, values)

    def hook(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        calls.append((name, shapes(inputs), shapes(tuple(output.items()) if isinstance(output, dict) else output)))

    handles = [module.register_forward_hook(partial(hook, name)) for name, module in model.named_modules()]
    yield calls
    for handle in handles:
        handle.remove()


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda images: images,
    "one image": lambda images: images[:1],
    "channels last": lambda images: images.contiguous(memory_format=torch.channels_last),
    "a view": lambda images: torch.cat([images, images], 3)[..., : images.shape[3]],
}


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize("model_class", MODELS)
def test_hooks_see_one_thing(model_class: Any, backend: str) -> None:
    """Whatever the images and the mode."""
    model, images = build(model_class, backend), torch.randn(2, 3, 50, 70)
    seen: dict[str, Any] = {}
    for is_recording in (True, False):
        for name, way in WAYS.items():
            with torch.set_grad_enabled(is_recording), watching(model) as calls:
                model(way(images))
            seen[f"{name}, gradients {is_recording}"] = calls
    first = next(iter(seen.values()))
    # A module stands where transformers has one, and is called.
    assert {name for name, *_ in first} == {name for name, part in model.named_modules() if _is_called(part)}
    for name, calls in seen.items():
        assert calls == first, name


def _is_called(part: nn.Module) -> bool:
    return not isinstance(part, nn.ModuleList)


@pytest.mark.parametrize("asked", [{}, {"output_attentions": True, "output_hidden_states": True}], ids=str)
@pytest.mark.parametrize("model_class", MODELS)
def test_a_module_returns_tensors_and_nothing_else(model_class: Any, asked: dict[str, bool]) -> None:
    """A tensor, or tuples of tensors, without None; the model itself returns an output of transformers."""
    model = build(model_class, "eager")
    outputs: dict[str, Any] = {}
    for name, module in model.named_modules():
        if name not in ("", "swinv2"):
            module.register_forward_hook(lambda module, inputs, output, name=name: outputs.update({name: output}))
    model(torch.zeros(1, 3, 50, 70), **asked)
    for name, output in outputs.items():
        assert all(isinstance(leaf, Tensor) for leaf in _pytree.tree_leaves(output)), name
        assert isinstance(output, Tensor | tuple), name


def test_summary_of_torchinfo() -> None:
    """It walks through every module and counts every parameter."""
    torchinfo = pytest.importorskip("torchinfo")
    model = build()
    found = torchinfo.summary(model, input_size=(1, 3, 64, 64), depth=10, verbose=0)
    assert found.total_params == sum(parameter.numel() for parameter in model.parameters())
    assert {"SwinTransformerBlock", "Stage", "PatchMerging"} <= {layer.class_name for layer in found.summary_list}
    assert "Linear" in io.StringIO(str(found)).read()


LAYERS: dict[str, Callable[[Any], nn.Module]] = {
    "patches": lambda model: model.swinv2.embeddings,
    "block": lambda model: model.swinv2.encoder.layers[1].blocks[1],
    "attention": lambda model: model.swinv2.encoder.layers[1].blocks[0].attention,
    "merging": lambda model: model.swinv2.encoder.layers[0].downsample,
    "last norm": lambda model: model.swinv2.layernorm,
}


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize("layer", LAYERS)
def test_layer_attributions_of_captum(layer: str, backend: str) -> None:
    """Gradient times activation of a layer: at the last norm, that of transformers' class."""
    attribution = pytest.importorskip("captum.attr")
    model, images = build(backend=backend), torch.randn(2, 3, 64, 64)

    def attribute(model: Any, layer: nn.Module) -> Tensor:
        method = attribution.LayerGradientXActivation(lambda pixels: model(pixels).logits, layer)
        found = method.attribute(images, target=1)
        return found[0] if isinstance(found, tuple) else found

    found = attribute(model, LAYERS[layer](model))
    assert found.abs().sum() > 0
    if layer == "last norm":
        twin = transformers_twin(model)
        torch.testing.assert_close(found, attribute(twin, twin.swinv2.layernorm), rtol=1e-3, atol=1e-5)


def published_transform(tokens: Tensor, height: int, width: int) -> Tensor:
    """What a recipe for transformers' Swin makes of the last norm's tokens: channels first."""
    return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


class Logits(nn.Module):
    """What such recipes wrap a model in."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values).logits


def own_cam(model: nn.Module, layer: nn.Module, images: Tensor, label: int, as_map: Callable[[Tensor], Tensor]) -> Any:
    """Grad-CAM in its own few lines."""
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    scores = Logits(model)(images)
    handle.remove()
    (gradient,) = torch.autograd.grad(scores[:, label].sum(), kept[0])
    activation, gradient = as_map(kept[0]), as_map(gradient)
    return (gradient.mean((2, 3), keepdim=True) * activation).sum(1).relu().detach()


@pytest.mark.parametrize("backend", FORMS)
def test_published_grad_cam(backend: str) -> None:
    """At the last norm, with the transform that is published for transformers' Swin: the same picture."""
    model, images = build(backend=backend), torch.randn(1, 3, 64, 64)
    twin, as_map = transformers_twin(model), partial(published_transform, height=8, width=8)
    found = own_cam(model, model.swinv2.layernorm, images, 1, as_map)
    assert tuple(found.shape) == (1, 8, 8)
    torch.testing.assert_close(found, own_cam(twin, twin.swinv2.layernorm, images, 1, as_map), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("layer", ["last norm", "block", "merging"])
def test_pytorch_grad_cam(layer: str) -> None:
    """The package itself, at the last norm's tokens and at the maps inside."""
    cam_of = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    model, images = build(), torch.randn(1, 3, 64, 64)
    as_map = partial(published_transform, height=8, width=8) if layer == "last norm" else channels_first
    part = LAYERS[layer](model)
    with cam_of.GradCAM(model=Logits(model), target_layers=[part], reshape_transform=as_map) as cam:
        found = torch.from_numpy(cam(images, [targets.ClassifierOutputTarget(1)]))
    expected = own_cam(model, part, images, 1, as_map)
    expected = nn.functional.interpolate((expected / expected.max())[None], size=(64, 64), mode="bilinear")[0]
    assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1] > 0.95


def channels_first(feature_map: Tensor) -> Tensor:
    """The transform of the guide for the maps inside."""
    return feature_map.permute(0, 3, 1, 2)


def test_checkpointing_finds_the_blocks() -> None:
    """By transformers' class, as Trainer and PEFT do; one unit is one block, as before."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    model = build()
    units = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert [type(unit) for unit in units] == [SwinTransformerBlock] * 4
    assert "_set_gradient_checkpointing" not in vars(type(model).__mro__[1])


def test_the_guide_runs() -> None:
    """Its block of code, as it stands."""
    pytest.importorskip("captum")
    pytest.importorskip("pytorch_grad_cam")
    guide = Path(__file__).parents[1] / "docs" / "guides" / "inspect.md"
    code = guide.read_text().partition("## Grad-CAM")[2].partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["heatmap"].shape == (1, 64, 64)
    assert tuple(names["attribution"].shape) == (1, 8, 8)
