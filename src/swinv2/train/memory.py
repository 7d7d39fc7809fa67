"""What a training takes in memory, worked out before it begins and without computing anything.

In: a model, on any device, and how it would be trained. Out: MiB by what they are for, on each process.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from swinv2.heads import Swinv2ForMaskedImageModeling
from swinv2.layers.block import SwinTransformerBlock
from swinv2.lengths import as_pair
from swinv2.model import Swinv2PreTrainedModel
from swinv2.ops.backends import SDPA

MIB = 2**20
FULL_BYTES, HALF_BYTES = 4, 2
GATHERED_BLOCKS = 3
"""Blocks that a process holds whole under FSDP2: the weights of the one at work and of the next, and the gradients of
the one at work."""


def training_memory(
    model: nn.Module,
    batch_size: int,
    *,
    in_half: bool = True,
    checkpointed: bool = False,
    with_average: bool = False,
    moments: int | None = None,
    shards: int = 0,
) -> dict[str, float]:
    """Works out what training takes on each process: the state exactly, if the optimiser is AdamW or Muon; activations
    as torch's plain operations would keep them, an upper bound for fused kernels and where stages are frozen.

    Args:
        model: The model, or LoRA's around it.
        batch_size: Images of a forward pass on each process.
        in_half: Whether autocast computes in 16 bits; weights, gradients and the optimiser stay in fp32.
        checkpointed: Whether the backward pass computes each block again.
        with_average: Whether an average of the weights is kept.
        moments: Numbers that the optimiser keeps of all parameters that learn; two of each for AdamW unless given.
        shards: Processes that share weights, gradients and optimiser under FSDP2; 0 if each has all of them.

    Returns:
        MiB of `weights`, `gradients`, `optimizer`, `average`, `activations`, and `gathered` where the rest is sharded.
    """
    adapted: Any = model
    plain = adapted.get_base_model() if hasattr(model, "peft_config") else adapted
    total = _count(model)
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    width = HALF_BYTES if in_half else FULL_BYTES
    share = FULL_BYTES / max(shards, 1) / MIB
    found = {
        "weights": total * share,
        "gradients": learning * share,
        "optimizer": (2 * learning if moments is None else moments) * share,
        "average": total * share if with_average else 0.0,
        "activations": activations_of_an_image(plain, checkpointed) * batch_size * width / MIB,
    }
    if shards:
        blocks = [_count(module) for module in model.modules() if isinstance(module, SwinTransformerBlock)]
        # What is outside the blocks is gathered once a step, and its gradients stay whole until its end.
        found["gathered"] = (GATHERED_BLOCKS * max(blocks) + 2 * (total - sum(blocks))) * width / MIB
    return found


def ways_to_train(model: Swinv2PreTrainedModel, batch_size: int, processes: int) -> list[dict[str, Any]]:
    """What training takes on each process in 16 bits with AdamW, without and with checkpointing of blocks.

    Args:
        model: The model, on any device.
        batch_size: Images of a forward pass on each process.
        processes: How many share weights, gradients and optimiser by FSDP2; 1 has all of them.
    """
    ways: list[dict[str, Any]] = []
    for checkpointed in (False, True):
        shards = processes if processes > 1 else 0
        found = training_memory(model, batch_size, checkpointed=checkpointed, shards=shards)
        found["all"] = sum(found.values())
        ways.append({"checkpointed": checkpointed} | {n: round(mib, 1) for n, mib in found.items() if n != "average"})
    return ways


def activations_of_an_image(model: Swinv2PreTrainedModel, checkpointed: bool) -> float:
    """Numbers that a forward pass keeps of each image for the backward pass. Of checkpointed blocks it keeps the
    inputs; the largest block is added, which the backward pass computes again."""
    config: Any = model.config
    with torch.device("meta"):
        twin = type(model)(copy.deepcopy(config)).train()
    # Not set_attn_implementation, which asks whether this machine can run it: nothing is run.
    twin.config._attn_implementation = SDPA

    def saved(images: int) -> int:
        height, width = as_pair("image_size", config.image_size)
        inputs = {"pixel_values": torch.empty(images, config.num_channels, height, width, device="meta")}
        if isinstance(model, Swinv2ForMaskedImageModeling):
            patches = config.patch_grid[0] * config.patch_grid[1]
            inputs["bool_masked_pos"] = torch.zeros(images, patches, dtype=torch.bool, device="meta")
        return saved_bytes(twin, inputs, checkpointed)

    return (saved(2) - saved(1)) / FULL_BYTES


def saved_bytes(model: Any, inputs: dict[str, Tensor], checkpointed: bool = False) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights left out; nothing is computed on meta.

    Args:
        model: The model.
        inputs: What it is called with.
        checkpointed: Whether of each block only the input is kept; the largest block is added.
    """
    largest = 0

    def run_block(block: Callable[..., Tensor], feature_map: Tensor, *rest: Any) -> Tensor:
        nonlocal largest
        saved[_storage(feature_map)] = feature_map
        with _noting([*model.parameters(), feature_map]) as inside:
            output = block(feature_map, *rest)
        largest = max(largest, _bytes(inside))
        return output

    if checkpointed:
        model._set_gradient_checkpointing(True, run_block)
    with _noting(model.parameters()) as saved:
        model(**inputs)
    return _bytes(saved) + largest


@contextmanager
def _noting(known: Iterable[Tensor]) -> Iterator[dict[int, Tensor]]:
    """Notes what is kept for the backward pass and is none of what is known. By storage: what two operations keep, or
    views of it, lies in memory once."""
    there = {_storage(tensor) for tensor in known}
    saved: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in there:
            saved[_storage(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield saved


def _bytes(saved: dict[int, Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def _storage(tensor: Tensor) -> int:
    # Unlike data_ptr, it tells tensors on the meta device apart.
    return tensor.untyped_storage()._cdata


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
