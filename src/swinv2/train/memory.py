"""What a training takes in memory, worked out before it begins and without computing anything.

In: a model, on any device, and how it would be trained. Out: MiB by what they are for, on each process.
"""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from swinv2.config import StageSpec
from swinv2.heads import Swinv2ForMaskedImageModeling
from swinv2.layers.block import SwinTransformerBlock
from swinv2.layers.stage import Stage
from swinv2.lengths import as_pair
from swinv2.model import Swinv2PreTrainedModel
from swinv2.ops.backends import SDPA, TRITON

MIB = 2**20
FULL_BYTES, HALF_BYTES = 4, 2
GATHERED_BLOCKS = 3
"""Blocks that a process holds whole under FSDP2: the weights of the one at work and of the next, and the gradients of
the one at work."""


@dataclass(frozen=True)
class Training:
    """How a model would be trained.

    Args:
        batch_size: Images of a forward pass on each process.
        in_half: Whether autocast computes in 16 bits; weights, gradients and the optimiser stay in fp32.
        checkpointed: Whether the backward pass computes each block again.
        with_average: Whether an average of the weights is kept.
        moments: Numbers that the optimiser keeps of all parameters that learn; two of each for AdamW unless given.
        shards: Processes that share weights, gradients and optimiser under FSDP2; 0 if each has all of them.
        fused: Whether activations are those of the fused kernels, which keep no weights of attention, instead of those
            of torch's plain operations, an upper bound for every backend.
    """

    batch_size: int
    in_half: bool = True
    checkpointed: bool = False
    with_average: bool = False
    moments: int | None = None
    shards: int = 0
    fused: bool = False


def training_memory(model: nn.Module, training: Training) -> dict[str, float]:
    """Works out what training takes on each process: the state exactly, if the optimiser is AdamW or Muon; activations
    as torch's plain operations would keep them, an upper bound where other forms run and where stages are frozen, or as
    the fused kernels keep them.

    Returns:
        MiB of `weights`, `gradients`, `optimizer`, `average`, `activations`, and `gathered` where the rest is sharded.
    """
    adapted: Any = model
    plain = adapted.get_base_model() if hasattr(model, "peft_config") else adapted
    activations = activations_of_an_image(plain, training.checkpointed, training.fused) * training.batch_size
    total = _count(model)
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    moments = 2 * learning if training.moments is None else training.moments
    width = HALF_BYTES if training.in_half else FULL_BYTES
    share = FULL_BYTES / max(training.shards, 1) / MIB
    found = {
        "weights": total * share,
        "gradients": learning * share,
        "optimizer": moments * share,
        "average": total * share if training.with_average else 0.0,
        "activations": activations * width / MIB,
    }
    if training.shards:
        blocks = [_count(module) for module in model.modules() if isinstance(module, SwinTransformerBlock)]
        # What is outside the blocks is gathered once a step, and its gradients stay whole until its end.
        found["gathered"] = (GATHERED_BLOCKS * max(blocks) + 2 * (total - sum(blocks))) * width / MIB
    return found


def ways_to_train(model: Swinv2PreTrainedModel, batch_size: int, processes: int) -> list[dict[str, Any]]:
    """What training takes on each process in 16 bits with AdamW, by what decides on the activations.

    Args:
        model: The model, on any device.
        batch_size: Images of a forward pass on each process.
        processes: How many share weights, gradients and optimiser by FSDP2; 1 has all of them.

    Returns:
        For attention in fused kernels and in plain operations, each without and with checkpointing of blocks: the MiB
        of `training_memory`, and `all` of them.
    """
    plain = Training(batch_size, shards=processes if processes > 1 else 0)
    kinds = {"fused": replace(plain, fused=True), "plain": plain}
    ways: list[dict[str, Any]] = []
    for (kind, training), checkpointed in product(kinds.items(), (False, True)):
        found = training_memory(model, replace(training, checkpointed=checkpointed))
        rounded = {name: round(mib, 1) for name, mib in found.items() if name != "average"}
        ways.append(
            {"attention": kind, "checkpointed": checkpointed} | rounded | {"all": round(sum(found.values()), 1)}
        )
    return ways


def activations_of_an_image(model: Swinv2PreTrainedModel, checkpointed: bool, fused: bool = False) -> float:
    """Numbers that a forward pass keeps of each image for the backward pass; see `Training`. Of checkpointed blocks it
    keeps the inputs; the largest block is added, which the backward pass computes again."""
    config: Any = model.config
    with torch.device("meta"):
        twin = type(model)(copy.deepcopy(config)).train()
    # Not set_attn_implementation, which asks whether this machine can run it: nothing is run.
    twin.config._attn_implementation = backend = TRITON if fused else SDPA
    inside = 0.0
    if checkpointed:
        blocks = _kinds_of_block(twin)
        inside = max(_of_an_image(partial(_kept_inside, block, spec, backend)) for block, spec in blocks)
        twin._set_gradient_checkpointing(True, partial(checkpoint, use_reentrant=False, preserve_rng_state=False))
    return inside + _of_an_image(partial(_kept_by_all, twin))


def _of_an_image(kept: Callable[[int], int]) -> float:
    """Numbers that one image more costs, given bytes by the number of images."""
    return (kept(2) - kept(1)) / FULL_BYTES


def _kept_by_all(model: Swinv2PreTrainedModel, count: int) -> int:
    config: Any = model.config
    height, width = as_pair("image_size", config.image_size)
    inputs = {"pixel_values": torch.empty(count, config.num_channels, height, width, device="meta")}
    if isinstance(model, Swinv2ForMaskedImageModeling):
        patches = config.patch_grid[0] * config.patch_grid[1]
        inputs["bool_masked_pos"] = torch.zeros(count, patches, dtype=torch.bool, device="meta")
    return saved_bytes(model, inputs)


def _kept_inside(block: SwinTransformerBlock, spec: StageSpec, backend: str, count: int) -> int:
    """Bytes that a block keeps beside its input."""
    feature_map = torch.empty(count, *spec.grid, spec.dim, device="meta", requires_grad=True)
    known = (*block.parameters(), feature_map)
    return _kept_beside(known, lambda: block(feature_map, backend))


def _kinds_of_block(model: Swinv2PreTrainedModel) -> list[tuple[SwinTransformerBlock, StageSpec]]:
    """The blocks that keep most of each stage are among its last: they drop paths, and one in a period has the extra
    norm, every second one a shift."""
    config: Any = model.config
    period = math.lcm(2, config.extra_norm_period or 1)
    stages = [module for module in model.modules() if isinstance(module, Stage)]
    return [
        (block, spec)
        for stage, spec in zip(stages, config.stages(), strict=True)
        for block in list(stage.blocks)[-period:]
        if isinstance(block, SwinTransformerBlock)
    ]


def saved_bytes(model: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights left out; nothing is computed on meta."""

    def run() -> None:
        outputs = model(**inputs)
        next(value for name, value in outputs.items() if name != "loss").sum()

    return _kept_beside(model.parameters(), run)


def _kept_beside(known: Iterable[Tensor], run: Callable[[], Any]) -> int:
    """Bytes of what is kept for the backward pass, and is none of what is known."""
    there = {_storage(tensor) for tensor in known}
    # By storage: what two operations keep, or views of it, lies in memory once.
    kept: dict[int, Tensor] = {}

    def count(tensor: Tensor) -> Tensor:
        kept[_storage(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in there)


def _storage(tensor: Tensor) -> int:
    # Unlike data_ptr, it tells tensors on the meta device apart.
    return tensor.untyped_storage()._cdata


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
