"""torch.compile and torch.export of the models for videos. Collected only where signatures are not checked."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swinv2 import Swinv2ForVideoClassification, Swinv2VideoConfig

# What torch does while it traces and compiles.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


@pytest.fixture
def model() -> Any:
    """With drawn norms: with fresh ones, zeros, a block would do nothing."""
    torch.compiler.reset()
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "num_labels": 3}
    config = Swinv2VideoConfig(num_frames=8, image_size=48, window_size=(2, 6, 6), drop_path_rate=0.0, **sizes)
    built = Swinv2ForVideoClassification(config).eval()
    for name, parameter in built.named_parameters():
        if "layernorm" in name:
            nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.3)
    return built


def videos(*size: int) -> Tensor:
    batch, frames, height, width = size
    return torch.randn(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("implementation", [pytest.param("eager", marks=pytest.mark.slow), "sdpa"])
@pytest.mark.parametrize("wants_gradients", [False, True])
def test_a_compiled_model_gives_the_same_answer(model: Any, wants_gradients: bool, implementation: str) -> None:
    """In one graph, with padding in space and time."""
    model.set_attn_implementation(implementation)
    compiled, clips = torch.compile(model, fullgraph=True, backend="aot_eager"), videos(1, 7, 52, 48)
    with torch.set_grad_enabled(wants_gradients):
        torch.testing.assert_close(compiled(clips).logits, model(clips).logits, rtol=1e-4, atol=1e-4)


def test_an_exported_model_gives_the_same_answer_for_other_batches(model: Any) -> None:
    """Its graph has no operation of this package."""
    shapes = {"pixel_values": {0: torch.export.Dim("batch", min=1, max=8)}}
    with torch.no_grad():
        program = torch.export.export(model, (videos(2, 8, 48, 48),), dynamic_shapes=shapes, strict=False)
        clips = videos(3, 8, 48, 48)
        torch.testing.assert_close(program.module()(clips).logits, model(clips).logits, rtol=1e-4, atol=1e-4)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not [name for name in called if name.startswith("swinv2")]
