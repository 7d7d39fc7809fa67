"""What a training takes in memory, worked out before it begins and without computing anything.

In: a model, on any device, and how it would be trained. Out: MiB by what they are for, on each process.
"""

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from swinv2.config import Swinv2Config, as_pair
from swinv2.heads import Swinv2ForMaskedImageModeling
from swinv2.layers.block import SwinTransformerBlock
from swinv2.model import Swinv2PreTrainedModel
from swinv2.ops.dispatch import SDPA, TRITON
from swinv2.ops.windows import WindowPlan

MIB = 2**20
FULL_BYTES, HALF_BYTES = 4, 2
GATHERED_BLOCKS = 3
"""Blocks that a process holds whole under FSDP2: the weights of the one at work and of the next, and the gradients of
the one at work."""

CHUNK_TENSORS = 3
"""T x T tensors of a window that live while a chunk is differentiated: its weights, their gradient, that of the logits.
The bias of all pairs comes once to each chunk."""

ALL_WINDOWS = 2**62
"""More than there are: what chunks keep for the backward pass does not depend on their size."""


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
            of torch's plain operations, an upper bound for every form.
        chunk_size: Windows that attend at a time in plain operations; None for all of them.
    """

    batch_size: int
    in_half: bool = True
    checkpointed: bool = False
    with_average: bool = False
    moments: int | None = None
    shards: int = 0
    fused: bool = False
    chunk_size: int | None = None


def training_memory(model: nn.Module, training: Training) -> dict[str, float]:
    """Works out what training takes on each process: the state exactly, if the optimiser is AdamW or Muon; activations
    as torch's plain operations would keep them, an upper bound where other forms run and where stages are frozen, or as
    the fused kernels keep them.

    Returns:
        MiB of `weights`, `gradients`, `optimizer`, `average`, `activations`, and `gathered` where the rest is sharded.
    """
    adapted: Any = model
    plain = adapted.get_base_model() if hasattr(model, "peft_config") else adapted
    in_chunks = training.chunk_size is not None
    kept = activations_of_an_image(plain, training.checkpointed, training.fused, in_chunks)
    return _add_state(model, training, kept * training.batch_size + _chunk(plain.config, training))


def _add_state(model: nn.Module, training: Training, activations: float) -> dict[str, float]:
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
        For attention in fused kernels, in plain operations, and in these some windows at a time (as many as the model's
        configuration says, or one), each without and with checkpointing of blocks: the MiB of `training_memory`, and
        `all` of them.
    """
    config: Any = model.config
    chunk_size: int = config.attention_chunk_size or 1
    plain = Training(batch_size, shards=processes if processes > 1 else 0)
    kinds = {
        "fused": replace(plain, fused=True),
        "plain": plain,
        f"plain, {chunk_size} window{'s' * (chunk_size > 1)} at a time": replace(plain, chunk_size=chunk_size),
    }
    ways: list[dict[str, Any]] = []
    for kind, training in kinds.items():
        form = training.fused, training.chunk_size is not None
        whole = _kept(type(model), config, *form)
        for checkpointed, kept in ((False, whole), (True, _when_checkpointed(model, whole, *form))):
            found = _add_state(model, training, kept * batch_size + _chunk(config, training))
            rounded = {name: round(mib, 1) for name, mib in found.items() if name != "average"}
            ways.append(
                {"attention": kind, "checkpointed": checkpointed} | rounded | {"all": round(sum(found.values()), 1)}
            )
    return ways


def _chunk(config: Any, training: Training) -> int:
    """Numbers that a chunk of windows holds while it is differentiated, in the stage where these are most."""
    if training.chunk_size is None:
        return 0
    found: list[int] = []
    for stage in config.stages():
        plan = WindowPlan(stage.grid, stage.window)
        windows = min(training.chunk_size, training.batch_size * plan.counts[0] * plan.counts[1])
        found.append((CHUNK_TENSORS * windows + 1) * stage.num_heads * plan.tokens**2)
    return max(found)


def activations_of_an_image(
    model: Swinv2PreTrainedModel, checkpointed: bool, fused: bool = False, in_chunks: bool = False
) -> float:
    """Numbers that a forward pass keeps of each image for the backward pass; see `Training`."""
    whole = _kept(type(model), model.config, fused, in_chunks)
    return _when_checkpointed(model, whole, fused, in_chunks) if checkpointed else whole


def _when_checkpointed(model: Swinv2PreTrainedModel, whole: float, fused: bool, in_chunks: bool) -> float:
    """What is left of the `whole` of them when each block keeps its input only, and one is computed again at a time."""
    config: Any = model.config
    stages = config.stages()
    # What the last block of a stage keeps depends on its shift and additional norm, which come again every so many.
    period = math.lcm(2, config.extra_norm_period or 1)
    # More than one period is left, or the extra norms would be in no stage.
    few = [depth if depth <= period else (depth - 1) % period + 1 + period for depth in config.depths]

    def kept(depths: list[int]) -> float:
        return _kept(type(model), Swinv2Config.from_dict(config.to_dict() | {"depths": depths}), fused, in_chunks)

    before = kept(few)
    inside = [
        kept([depth + (stage == index) for stage, depth in enumerate(few)]) - before for index in range(len(stages))
    ]
    maps = [stage.grid[0] * stage.grid[1] * stage.dim for stage in stages]
    outside = whole - sum(depth * numbers for depth, numbers in zip(config.depths, inside, strict=True))
    inputs = sum(depth * numbers for depth, numbers in zip(config.depths, maps, strict=True))
    return outside + inputs + max(inside)


def _kept(kind: type[Swinv2PreTrainedModel], config: Swinv2Config, fused: bool, in_chunks: bool) -> float:
    with torch.device("meta"):
        twin = kind(copy.deepcopy(config)).train()
    # Not set_attn_implementation, which asks whether this machine can run it: nothing is run.
    twin.config._attn_implementation = TRITON if fused else SDPA
    twin.config.attention_chunk_size = ALL_WINDOWS if in_chunks else None
    kept: list[int] = []
    for count in (1, 2):
        inputs = {"pixel_values": torch.empty(count, config.num_channels, *_size(config), device="meta")}
        if issubclass(kind, Swinv2ForMaskedImageModeling):
            patches = config.patch_grid[0] * config.patch_grid[1]
            inputs["bool_masked_pos"] = torch.zeros(count, patches, dtype=torch.bool, device="meta")
        kept.append(saved_bytes(twin, inputs))
    return (kept[1] - kept[0]) / FULL_BYTES


def saved_bytes(model: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights left out; nothing is computed on meta."""
    weights = {_storage(parameter) for parameter in model.parameters()}
    # By storage: what two operations keep, or views of it, lies in memory once.
    kept: dict[int, Tensor] = {}

    def count(tensor: Tensor) -> Tensor:
        kept[_storage(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        outputs = model(**inputs)
        next(value for name, value in outputs.items() if name != "loss").sum()
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights)


def _storage(tensor: Tensor) -> int:
    # Unlike data_ptr, it tells tensors on the meta device apart.
    return tensor.untyped_storage()._cdata


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _size(config: Swinv2Config) -> tuple[int, int]:
    return as_pair("image_size", config.image_size)
