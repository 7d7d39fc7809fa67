"""What one forward pass leaves behind."""

import pytest
import torch
from torch import Tensor, nn

import peers
from swinv2 import Swinv2Config, Swinv2Model
from swinv2.inspect.observation import Observation, observe
from swinv2.layers.block import SwinTransformerBlock


class Before(SwinTransformerBlock):
    """Branches that are normalised before their work, and call no drop path."""

    def attention_branch(self, x: Tensor, backend: str, output_attentions: bool) -> tuple[Tensor, ...]:
        attended, *weights = self.attention(self.layernorm_before(x), backend, output_attentions)
        return x + attended, *weights

    def mlp_branch(self, x: Tensor, backend: str) -> Tensor:
        return x + self.output(self.intermediate(self.layernorm_after(x)))


def model() -> Swinv2Model:
    fields = {"image_size": 32, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4}
    built = Swinv2Model._from_config(Swinv2Config(**fields), attn_implementation="eager")
    return peers.draw_weights(built).eval()


def assert_adds_up(seen: Observation) -> None:
    """Within a stage, a map is the one before and what two branches added."""
    pairs = [(seen.embedded, seen.blocks[0])]
    pairs += [(a.after, b) for a, b in zip(seen.blocks, seen.blocks[1:], strict=False) if a.stage == b.stage]
    for before, trace in pairs:
        torch.testing.assert_close(before + trace.attention + trace.mlp, trace.after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("has_drop_path", [True, False])
def test_what_branches_add_adds_up(has_drop_path: bool) -> None:
    """Whatever stands behind the norms."""
    watched = model()
    for module in watched.modules():
        if isinstance(module, SwinTransformerBlock) and not has_drop_path:
            module.drop_path = nn.Sequential(nn.Identity(), nn.Identity())
    seen = observe(watched, torch.randn(1, 3, 32, 32))
    assert [(trace.stage, trace.block) for trace in seen.blocks] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert_adds_up(seen)
    assert not any(module._forward_hooks for module in watched.modules())


def test_blocks_of_another_kind() -> None:
    """They say which modules end their branches; a drop path that nobody calls is not missed."""
    watched = model()
    for module in watched.modules():
        if type(module) is SwinTransformerBlock:
            module.__class__ = Before
    assert_adds_up(observe(watched, torch.randn(1, 3, 32, 32), ends=("attention", "output")))
