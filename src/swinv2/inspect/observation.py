"""Records one forward pass.

In: a model and pixels. Out: the map after the patch embedding and after every block, the values that the two branches
of each block add, and the attention weights of the last block of each stage. Hooks record them and are removed; nothing
else in the model is changed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from swinv2.layers.block import SwinTransformerBlock
from swinv2.model import Swinv2Model
from swinv2.ops.windows import WindowPlan


@dataclass(frozen=True)
class BlockTrace:
    """The record of a block.

    Attributes:
        stage, block: Stage and block, counted from 1.
        after: The map after the block.
        attention, mlp: The values that each branch adds to the map.
    """

    stage: int
    block: int
    after: Float[Tensor, "B H W C"]
    attention: Float[Tensor, "B H W C"]
    mlp: Float[Tensor, "B H W C"]


@dataclass(frozen=True)
class StageAttention:
    """The attention of a stage's last block.

    Attributes:
        stage, block: Stage and block, counted from 1.
        plan: Windows and shift of the block.
        weights: Attention weights of all windows, image after image.
    """

    stage: int
    block: int
    plan: WindowPlan
    weights: Float[Tensor, "N heads tokens tokens"]


@dataclass(frozen=True)
class Observation:
    """The record of a forward pass, on the CPU.

    Attributes:
        embedded: The map after the patch embedding.
        blocks: The record of each block, in order.
        attentions: The attention of each stage, in order.
    """

    embedded: Float[Tensor, "B H W C"]
    blocks: tuple[BlockTrace, ...]
    attentions: tuple[StageAttention, ...]

    def stage_maps(self) -> dict[str, Float[Tensor, "B H W C"]]:
        """The map after the patch embedding ("stem"), and each stage's map before merging ("stage1" and so on)."""
        return {"stem": self.embedded} | {f"stage{trace.stage}": trace.after for trace in self.blocks}


def blocks_of(model: Swinv2Model) -> list[tuple[int, int, SwinTransformerBlock]]:
    """All blocks in order, as (stage, number in the stage, block); both numbers count from 1."""
    found: list[tuple[int, int, SwinTransformerBlock]] = []
    for stage_number, stage in enumerate(model.encoder.layers, 1):
        blocks = [module for module in stage.modules() if isinstance(module, SwinTransformerBlock)]
        found += [(stage_number, number, block) for number, block in enumerate(blocks, 1)]
    return found


@torch.no_grad()
def observe(
    model: Swinv2Model,
    pixel_values: Float[Tensor, "B channels height width"],
    ends: tuple[str, str] = ("layernorm_before", "layernorm_after"),
) -> Observation:
    """Runs a model once and records it.

    Args:
        model: The network, in evaluation mode, with `attn_implementation="eager"`: only that backend returns attention
            weights.
        pixel_values: Images, on the model's device and of its type.
        ends: The modules of a block whose outputs are the values that attention and MLP add (without drop path).
    """
    blocks = blocks_of(model)
    embedded: list[Tensor] = []
    after: list[Tensor] = []
    attended: list[Tensor] = []
    computed: list[Tensor] = []

    def record(outputs: list[Tensor]) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            outputs.append((output[0] if isinstance(output, tuple) else output).detach().float().cpu())

        return hook

    handles = [model.embeddings.register_forward_hook(record(embedded))]
    for _, _, block in blocks:
        handles.append(block.register_forward_hook(record(after)))
        for end, outputs in zip(ends, (attended, computed), strict=True):
            handles.append(block.get_submodule(end).register_forward_hook(record(outputs)))
    try:
        output = model(pixel_values, output_attentions=True, return_dict=True)
    finally:
        for handle in handles:
            handle.remove()

    traces = tuple(
        BlockTrace(stage, number, map_after, attention, mlp)
        for (stage, number, _), map_after, attention, mlp in zip(blocks, after, attended, computed, strict=True)
    )
    last = {stage: (number, block) for stage, number, block in blocks}
    grids = {trace.stage: trace.after.shape[1:3] for trace in traces}
    attentions = tuple(
        StageAttention(
            stage, number, block.attention.self.geometry.plan((grids[stage][0], grids[stage][1])), weights.float().cpu()
        )
        for (stage, (number, block)), weights in zip(last.items(), output.attentions, strict=True)
    )
    return Observation(embedded[0], traces, attentions)
