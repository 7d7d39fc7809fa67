"""The memory of a training, estimated before it begins, without computing anything.

In: a model, on any device, and settings of the training. Out: MiB of weights, gradients and so on, for each process.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from swinv2.dense.backbone import backbone_of
from swinv2.heads import Swinv2ForMaskedImageModeling
from swinv2.layers.block import SwinTransformerBlock
from swinv2.model import Swinv2PreTrainedModel
from swinv2.ops.backends import SDPA

MIB = 2**20
FULL_BYTES, HALF_BYTES = 4, 2
GATHERED_BLOCKS = 3
"""Blocks that a process has unsharded under FSDP2: the weights of the current block and of the next one, and the
gradients of the current block."""


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
    """Estimates the memory of a training on each process.

    Weights, gradients and the state of AdamW or Muon are exact. Activations are those of torch's plain operations: an
    upper bound for fused kernels and for frozen stages.

    Args:
        model: The model, with or without LoRA.
        batch_size: Images of a forward pass on each process.
        in_half: Whether autocast computes in 16 bits; weights, gradients and the optimiser stay in fp32.
        checkpointed: Whether the backward pass computes each block again.
        with_average: Whether the run has an average of the weights.
        moments: Size of the optimiser's state, in numbers; None for AdamW's: two for each parameter that learns.
        shards: Number of processes that share weights, gradients and optimiser under FSDP2; 0 without FSDP2.

    Returns:
        MiB of `weights`, `gradients`, `optimizer`, `average`, `activations`, and under FSDP2 `gathered`. Of a segmenter
        or detector, the activations are those of its backbone for images of its configured size.
    """
    adapted: Any = model
    plain = adapted.get_base_model() if hasattr(model, "peft_config") else adapted
    if not isinstance(plain, Swinv2PreTrainedModel):
        plain = backbone_of(plain)
    total, learning = count_parameters(model), count_parameters(model, learning=True)
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
        blocks = [count_parameters(module) for module in model.modules() if isinstance(module, SwinTransformerBlock)]
        # Weights outside the blocks are gathered once a step; their gradients stay unsharded until the step ends.
        found["gathered"] = (GATHERED_BLOCKS * max(blocks) + 2 * (total - sum(blocks))) * width / MIB
    return found


def ways_to_train(model: Swinv2PreTrainedModel, batch_size: int, processes: int) -> list[dict[str, Any]]:
    """The memory of a training on each process, in 16 bits with AdamW, without and with checkpointing of blocks. Two or
    more processes share weights, gradients and optimiser by FSDP2. A forward pass has `batch_size` images on each."""
    ways: list[dict[str, Any]] = []
    for checkpointed in (False, True):
        shards = processes if processes > 1 else 0
        found = training_memory(model, batch_size, checkpointed=checkpointed, shards=shards)
        found["all"] = sum(found.values())
        ways.append({"checkpointed": checkpointed} | {n: round(mib, 1) for n, mib in found.items() if n != "average"})
    return ways


def activations_of_an_image(model: Swinv2PreTrainedModel, checkpointed: bool) -> float:
    """Numbers that are saved for the backward pass, for each image or clip. If blocks are checkpointed: the inputs of
    the blocks, and the activations of the largest block, which the backward pass computes again."""
    config: Any = model.config
    with torch.device("meta"):
        twin = type(model)(copy.deepcopy(config)).train()
    # set_attn_implementation would check that this machine can run it, but nothing is run here.
    twin.config._attn_implementation = SDPA

    def saved(images: int) -> int:
        """Bytes that a forward pass of so many images saves."""
        *frames, height, width = config.input_lengths
        inputs = {"pixel_values": torch.empty(images, *frames, config.num_channels, height, width, device="meta")}
        if isinstance(model, Swinv2ForMaskedImageModeling):
            patches = config.patch_grid[0] * config.patch_grid[1]
            inputs["bool_masked_pos"] = torch.zeros(images, patches, dtype=torch.bool, device="meta")
        return saved_bytes(twin, inputs, checkpointed)

    return (saved(2) - saved(1)) / FULL_BYTES


def saved_bytes(model: Any, inputs: dict[str, Tensor], checkpointed: bool = False) -> int:
    """Bytes that are saved for the backward pass of a call with `inputs`, without the weights. If `checkpointed`, only
    the inputs of blocks and the activations of the largest block count. On the meta device nothing is computed."""
    largest = 0

    def run_block(block: Callable[..., Tensor], feature_map: Tensor, *rest: Any) -> Tensor:
        nonlocal largest
        saved[_storage_key(feature_map)] = feature_map
        with _noting_saved_tensors([*model.parameters(), feature_map]) as inside:
            output = block(feature_map, *rest)
        largest = max(largest, _bytes_of_saved(inside))
        return output

    if checkpointed:
        model._set_gradient_checkpointing(True, run_block)
    with _noting_saved_tensors(model.parameters()) as saved:
        model(**inputs)
    return _bytes_of_saved(saved) + largest


@contextmanager
def _noting_saved_tensors(known: Iterable[Tensor]) -> Iterator[dict[int, Tensor]]:
    """Collects the tensors that are saved for the backward pass, except known ones. The keys are storages: a tensor
    saved by two operations, or a view of it, counts once."""
    there = {_storage_key(tensor) for tensor in known}
    saved: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if _storage_key(tensor) not in there:
            saved[_storage_key(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield saved


def _bytes_of_saved(saved: dict[int, Tensor]) -> int:
    """The size of saved tensors, in bytes."""
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def _storage_key(tensor: Tensor) -> int:
    """A key for the memory of a tensor, which its views share."""
    # Unlike data_ptr, it tells tensors on the meta device apart.
    return tensor.untyped_storage()._cdata


def count_parameters(module: nn.Module, learning: bool = False) -> int:
    """Number of parameters, or of those that learn."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad or not learning)
