"""torch.compile and torch.export. Collected only where signatures are not checked: see `test_ecosystem.py`."""

import pytest
import torch
from torch import nn

from swinv2 import Swinv2Config, Swinv2ForImageClassification


@pytest.fixture
def model() -> Swinv2ForImageClassification:
    torch.compiler.reset()
    torch.manual_seed(0)
    config = Swinv2Config(
        image_size=64, window_size=4, embed_dim=24, depths=[2, 2], num_heads=[2, 4], num_labels=3, drop_path_rate=0.0
    )
    model = Swinv2ForImageClassification(config).eval()
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.3)
    return model


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(images).logits


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
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


@pytest.mark.parametrize("size", [(64, 64), (50, 70)])
def test_export_with_dynamic_batch(model, size):
    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.model(pixel_values).logits

    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        exported = torch.export.export(Logits(), (torch.randn(2, 3, *size),), dynamic_shapes=({0: batch},))
    for count in (1, 3):
        pixels = torch.randn(count, 3, *size)
        assert torch.allclose(exported.module()(pixels), logits(model, pixels), atol=1e-5)
