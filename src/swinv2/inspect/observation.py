"""Records one forward pass.

In: a model and pixels of images or videos. Out: the map after the patch embedding and after every block, the values
that the two branches of each block add, and the attention weights of the last block of each stage. Hooks record them
and are removed, and the attention backend is "eager" meanwhile, the only one that returns weights; nothing else in the
model is changed.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from swinv2.config import Swinv2Config
from swinv2.heads import Swinv2Backbone
from swinv2.layers.block import SwinTransformerBlock
from swinv2.lengths import Pair, as_pair
from swinv2.model import Swinv2Model
from swinv2.ops.backends import EAGER
from swinv2.ops.windows import WindowPlan


@dataclass(frozen=True)
class BlockTrace:
    """The record of a block.

    Attributes:
        stage, block: Stage and block, counted from 1.
        plan: Windows and shift of the block.
        after: The map after the block.
        attention, mlp: The values that each branch adds to the map.
        weights: Attention weights of all windows, image after image; None unless the block is the last of its stage.
    """

    stage: int
    block: int
    plan: WindowPlan
    after: Float[Tensor, "B *map C"]
    attention: Float[Tensor, "B *map C"]
    mlp: Float[Tensor, "B *map C"]
    weights: Float[Tensor, "N heads tokens tokens"] | None


@dataclass(frozen=True)
class Observation:
    """The record of a forward pass, on the CPU. Maps are (B, H, W, C), of videos (B, frames, H, W, C).

    Attributes:
        embedded: The map after the patch embedding.
        blocks: The record of each block, in order.
    """

    embedded: Float[Tensor, "B *map C"]
    blocks: tuple[BlockTrace, ...]

    @property
    def attentions(self) -> tuple[BlockTrace, ...]:
        """The last block of each stage, in order: the blocks with attention weights."""
        return tuple(trace for trace in self.blocks if trace.weights is not None)

    def stage_maps(self) -> dict[str, Float[Tensor, "B *map C"]]:
        """The map after the patch embedding ("stem"), and each stage's map before merging ("stage1" and so on)."""
        return {"stem": self.embedded} | {f"stage{trace.stage}": trace.after for trace in self.blocks}


def token_size_of(config: Swinv2Config, stage: int) -> Pair:
    """Size (height, width) in pixels of a token of a stage, which is counted from 1."""
    down, across = as_pair("patch_size", config.patch_size)
    return down << (stage - 1), across << (stage - 1)


def blocks_of(model: Swinv2Model | Swinv2Backbone) -> list[tuple[int, int, SwinTransformerBlock]]:
    """All blocks to observe in order, as (stage, number in the stage, block); both numbers count from 1."""
    found: list[tuple[int, int, SwinTransformerBlock]] = []
    for stage_number, stage in enumerate(model.encoder.layers, 1):
        blocks = [module for module in stage.modules() if isinstance(module, SwinTransformerBlock)]
        found += [(stage_number, number, block) for number, block in enumerate(blocks, 1)]
    return found


@torch.no_grad()
def observe(
    model: Swinv2Model | Swinv2Backbone,
    pixel_values: Float[Tensor, "B *frames channels height width"],
    ends: tuple[str, str] = ("layernorm_before", "layernorm_after"),
) -> Observation:
    """Runs a model once and records it.

    Args:
        model: The network, in evaluation mode.
        pixel_values: Images or videos, on the model's device and of its type.
        ends: The modules of a block whose outputs are the values that attention and MLP add (without drop path).
    """
    blocks = blocks_of(model)
    ends_of = {block: [block.get_submodule(end) for end in ends] for _, _, block in blocks}
    outputs: dict[nn.Module, Tensor] = {}

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs[module] = (output[0] if isinstance(output, tuple) else output).detach().float().cpu()

    with ExitStack() as hooks:
        hooks.callback(setattr, model.config, "_attn_implementation", model.config._attn_implementation)
        model.config._attn_implementation = EAGER
        for module in (model.embeddings, *ends_of, *chain.from_iterable(ends_of.values())):
            hooks.enter_context(module.register_forward_hook(record))
        attentions = model(pixel_values, output_attentions=True, return_dict=True).attentions

    last = {stage: block for stage, _, block in blocks}
    weights = {block: each.float().cpu() for block, each in zip(last.values(), attentions, strict=True)}
    traces: list[BlockTrace] = []
    for stage, number, block in blocks:
        after, (attention, mlp) = outputs[block], (outputs[end] for end in ends_of[block])
        plan = block.attention.self.geometry.plan(tuple(after.shape[1:-1]))
        traces.append(BlockTrace(stage, number, plan, after, attention, mlp, weights.get(block)))
    return Observation(outputs[model.embeddings], tuple(traces))
