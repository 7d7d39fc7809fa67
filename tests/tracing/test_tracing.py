"""torch.compile and torch.export. Collected only where signatures are not checked: see `test_ecosystem.py`."""

import warnings
from dataclasses import replace

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional as F

from swinv2 import Swinv2Backbone, Swinv2Config, Swinv2ForImageClassification
from swinv2.layers.block import DropPath
from swinv2.ops import sdpa
from swinv2.ops.cpu import library
from swinv2.ops.cpu.branches import Epilogue, add_mlp

# What torch does while it traces and compiles.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

needs_kernels = pytest.mark.skipif(library.refuse() is not None, reason=str(library.refuse()))


@pytest.fixture
def model() -> Swinv2ForImageClassification:
    torch.compiler.reset()
    torch.manual_seed(0)
    config = Swinv2Config(
        image_size=64, window_size=4, embed_dim=24, depths=[2, 2], num_heads=[2, 4], num_labels=3, drop_path_rate=0.0
    )
    return draw_norms(Swinv2ForImageClassification(config).eval())


def draw_norms(model: Swinv2ForImageClassification) -> Swinv2ForImageClassification:
    """With fresh ones, zeros, a block would do nothing."""
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.3)
    return model


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(images).logits


@pytest.mark.parametrize("implementation", [pytest.param("eager", marks=pytest.mark.slow), "sdpa"])
def test_compile_has_no_break_and_follows_the_batch(model, implementation):
    model.set_attn_implementation(implementation)
    count = 0

    def counting(graph, inputs):
        nonlocal count
        count += 1
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=counting)
    batches = [torch.randn(size, 3, 64, 64) for size in (2, 5, 3)]
    with torch.no_grad():
        for batch in batches:
            torch._dynamo.mark_dynamic(batch, 0)
            assert torch.allclose(compiled(batch).logits, model(batch).logits, atol=1e-5)
    assert count == 1


@pytest.mark.slow
def test_compiled_training_step_equals_eager(model):
    images = torch.randn(2, 3, 50, 70)
    labels = torch.tensor([0, 2])
    model.train()
    model(images, labels=labels).loss.backward()
    eager = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    torch.compile(model, fullgraph=True)(images, labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, eager[name], atol=1e-5, rtol=1e-3), name


def few_windows() -> Swinv2ForImageClassification:
    """One plain block and one shifted, for maps of 7 x 6 tokens."""
    torch.compiler.reset()
    torch.manual_seed(0)
    fields = {"image_size": 64, "window_size": 4, "embed_dim": 8, "depths": [2], "num_heads": [2], "num_labels": 3}
    config = Swinv2Config(**fields, attn_implementation="sdpa")
    return draw_norms(Swinv2ForImageClassification(config).eval())


def test_what_is_exported_attends_in_all_windows(monkeypatch):
    """So it takes any number of images."""
    monkeypatch.setattr(sdpa, "WEIGHTS_BYTES", 1)
    model, batch = few_windows(), torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        dynamic = ({0: batch},)
        exported = torch.export.export(model, (torch.randn(2, 3, 28, 24),), dynamic_shapes=dynamic).module()
    for count in (1, 3):
        pixels = torch.randn(count, 3, 28, 24)
        assert torch.allclose(exported(pixels).logits, logits(model, pixels), atol=1e-5)


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("size", [pytest.param((64, 64), marks=pytest.mark.slow), (50, 70)])
def test_export_with_dynamic_batch(model, size, strict):
    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.model(pixel_values).logits

    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        exported = torch.export.export(
            Logits(), (torch.randn(2, 3, *size),), dynamic_shapes=({0: batch},), strict=strict
        )
    # It must run where this package is not.
    for module in exported.graph_module.modules():
        assert not operations(getattr(module, "graph", torch.fx.Graph()))
    for count in (1, 3):
        pixels = torch.randn(count, 3, *size)
        assert torch.allclose(exported.module()(pixels), logits(model, pixels), atol=1e-5)


def operations(graph: torch.fx.Graph) -> set[str]:
    """Names of this package's operations in a graph; those of a branch with the kind of branch."""
    found = set()
    for node in graph.nodes:
        if node.op == "call_function" and str(node.target).startswith("swinv2."):
            name = str(node.target).removeprefix("swinv2.").removesuffix(".default")
            bias_table = {"branch": 3, "branch_backward": 6}.get(name)
            is_mlp = bias_table is not None and node.args[bias_table] is None
            found.add(name if bias_table is None else f"{name} of {'mlp' if is_mlp else 'attention'}")
    return found


def collecting(found: set[str]):
    """A compiler's backend that notes which of our operations are in its graphs."""

    def collect(graph, inputs):
        found.update(operations(graph.graph))
        return make_boxed_func(graph.forward)

    return aot_autograd(fw_compiler=collect, bw_compiler=collect)


@needs_kernels
def test_without_gradients_a_compiled_block_is_three_operations(model):
    images = torch.randn(2, 3, 50, 70)
    found: set[str] = set()
    with torch.no_grad():
        answer = torch.compile(model, fullgraph=True, backend=collecting(found))(images).logits
    assert found == {"branch of attention", "branch of mlp", "evaluate_table"}
    assert torch.allclose(answer, logits(model, images), atol=1e-6)


def test_a_compiled_model_has_the_position_bias_of_its_present_weights(model):
    images = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        before = logits(model, images)  # remembers its tables
        assert torch.allclose(compiled(images).logits, before, atol=1e-5)
        for block in model.swinv2.encoder.layers[0].blocks:
            block.attention.self.continuous_position_bias_mlp[2].weight.data.normal_(generator=torch.Generator())
        after = logits(model, images)
        assert torch.allclose(compiled(images).logits, after, atol=1e-5)
    assert not torch.allclose(after, before, atol=1e-4)


@needs_kernels
def test_in_training_no_wide_tensor_is_in_the_graph(model):
    found: set[str] = set()
    compiled = torch.compile(model.train(), fullgraph=True, backend=collecting(found))
    compiled(torch.randn(2, 3, 50, 70), labels=torch.tensor([0, 2])).loss.backward()
    assert found == {
        *("branch of attention", "branch_backward of attention", "branch of mlp", "branch_backward of mlp"),
        *("evaluate_table", "evaluate_table_backward"),
    }


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_in_training_the_fused_backend_is_two_operations():
    model, images, labels = few_windows(), torch.randn(1, 3, 28, 12), torch.tensor([2])
    model.train().set_attn_implementation("triton")
    expected = model(images, labels=labels).loss
    expected.backward()
    eager = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    found: set[str] = set()
    loss = torch.compile(model, fullgraph=True, backend=collecting(found))(images, labels=labels).loss
    loss.backward()
    assert {"attend_fused", "attend_fused_backward"} <= found
    assert not found & {"attend_map", "attend_map_backward", "branch of attention"}
    assert torch.allclose(loss, expected)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, eager[name], atol=1e-5, rtol=1e-3), name


def test_a_refusal_of_the_fused_backend_is_traced(model, monkeypatch):
    model.set_attn_implementation("triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    images = torch.randn(2, 3, 64, 64)
    found: set[str] = set()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend=collecting(found))
        assert torch.allclose(compiled(images).logits, logits(model, images), atol=1e-5)
    assert "attend_fused" not in found


@pytest.mark.slow
@needs_kernels
def test_the_eager_backend_and_another_activation_stay_what_they_are(model):
    for change in ("form", "activation"):
        if change == "form":
            model.set_attn_implementation("eager")
        else:
            model.set_attn_implementation("sdpa")
            for block in (block for stage in model.swinv2.encoder.layers for block in stage.blocks):
                block.intermediate.activation = nn.SiLU()
        found: set[str] = set()
        torch.compiler.reset()
        with torch.no_grad():
            torch.compile(model, fullgraph=True, backend=collecting(found))(torch.randn(2, 3, 64, 64))
        assert "branch of mlp" not in found
        assert ("branch of attention" in found) is (change == "activation")


def checkpoint(model):
    with warnings.catch_warnings():
        # Deprecated in new versions of transformers; old ones know nothing else.
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable()


def freeze(*names):
    def run(model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not any(part in name for part in names))

    return run


def hide_padding(model):
    for module in model.modules():
        if hasattr(module, "geometry"):
            module.geometry = replace(module.geometry, mask_padding=True)


def drop_attention(model):
    """One branch is no operation of its own; what it drops is drawn with another generator in a compiled graph."""
    for module in model.modules():
        if hasattr(module, "geometry"):
            module.dropout = 1e-9


def drop_images(model):
    for module in model.modules():
        if isinstance(module, DropPath):
            module.rate = 1e-9


CHANGES = {
    "nothing": lambda model: None,
    "checkpointing": checkpoint,
    "frozen beginning": freeze("embeddings", "layers.0"),
    # Gradients pass through what has none.
    "frozen end": freeze("layers.1", "classifier", "value", "intermediate"),
    "hidden padding": hide_padding,
    "dropped attention": drop_attention,
    "dropped images": drop_images,
    "autocast": lambda model: None,
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_compiled_training_step_is_the_eager_one(model, change):
    images, labels = torch.randn(2, 3, 50, 70), torch.tensor([0, 2])
    CHANGES[change](model.train())
    gradients = []
    for backend in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
            loss = backend(images, labels=labels).loss
        loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    tolerance = 0.1 if change == "autocast" else 1e-5
    for name, expected in gradients[0].items():
        actual = gradients[1][name]
        assert (actual is None) == (expected is None), name
        if expected is not None:
            assert (actual - expected).norm() <= tolerance * expected.norm() + 1e-7, name


def test_norms_of_maps_in_a_compiled_backbone():
    torch.compiler.reset()
    torch.manual_seed(0)
    config = Swinv2Config(
        image_size=64, window_size=4, embed_dim=24, depths=[2, 2], num_heads=[2, 4], norm_feature_maps=True
    )
    backbone, images = draw_norms(Swinv2Backbone(config).eval()), torch.randn(2, 3, 64, 64)
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    with torch.no_grad():
        for ours, expected in zip(compiled(images).feature_maps, backbone(images).feature_maps, strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_sizes_of_images_may_change_in_a_compiled_model(model):
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for size in ((2, 50, 70), (3, 90, 66), (5, 130, 61)):
            images = torch.randn(size[0], 3, *size[1:])
            assert torch.allclose(compiled(images).logits, model(images).logits, atol=1e-5)


@pytest.mark.slow
def test_another_batch_needs_no_other_graph_in_training(model):
    """On both sides of the number of tokens from which products are joined in eager mode."""
    graphs = 0

    def counting(graph, inputs):
        nonlocal graphs
        graphs += 1
        return graph.forward

    compiled = torch.compile(model.train(), fullgraph=True, dynamic=False, backend=counting)
    for size in (2, 5, 40):
        batch = torch.randn(size, 3, 64, 64)
        torch._dynamo.mark_dynamic(batch, 0)
        compiled(batch).logits.sum().backward()
    assert graphs == 1


def hook(block):
    block.intermediate.dense.register_forward_hook(lambda *call: 2 * call[-1])


def replace_forward(name):
    def run(block):
        module = block.get_submodule(name)
        forward = module.forward
        module.forward = lambda features: 2 * forward(features)

    return run


def replace_module(block):
    block.output.dense = nn.Sequential(block.output.dense, nn.GELU())


CHANGED = {
    "hook": hook,
    "forward of a linear layer": replace_forward("attention.self.value"),
    "forward of the wide layer": replace_forward("intermediate.dense"),
    "forward of the activation": replace_forward("intermediate.activation"),
    "another module": replace_module,
}


@pytest.mark.slow
@pytest.mark.parametrize("compiled_before", [True, False])
@pytest.mark.parametrize("change", CHANGED)
def test_who_watches_or_replaces_a_layer_is_heard_in_a_compiled_model(model, change, compiled_before):
    if change == "hook" and compiled_before:
        pytest.skip("torch.compile does not look for hooks again, unless skip_nnmodule_hook_guards is off")
    images = torch.randn(2, 3, 64, 64)
    before = logits(model, images)
    compiled = torch.compile(model, backend="aot_eager")
    if compiled_before:
        assert torch.allclose(logits(compiled, images), before, atol=1e-6)
    CHANGED[change](model.swinv2.encoder.layers[0].blocks[0])
    after = logits(model, images)
    assert not torch.allclose(after, before, atol=3e-5)
    assert torch.allclose(logits(compiled, images), after, atol=1e-6)


@needs_kernels
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own
def test_a_backward_pass_may_be_compiled_where_the_forward_was_not():
    shapes = ((2, 5, 7, 8), (32, 8), (32,), (8, 32), (8,), (8,), (8,))
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    x, w1, b1, w2, b2, weight, bias = leaves
    work = F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)
    expected = torch.autograd.grad((x + F.layer_norm(work, (8,), weight, bias)).square().sum(), leaves)
    loss = add_mlp(x, (w1, b1), (w2, b2), Epilogue(weight, bias, 1e-5)).square().sum()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        loss.backward()
    for leaf, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, gradient)
