"""Linear layers in faster matrix products, and who must be left alone.

In: linear layers and the features (..., C) that all of them take. Out: what each of them would have returned. A layer
that somebody watches or has replaced (hooks, offloading, LoRA, quantised or pruned weights) is called as a module.
"""

from types import MethodType
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from swinv2.ops.cpu.linear import linear, linear_each
from swinv2.ops.cpu.opaque import is_compiled
from swinv2.ops.cpu.pieces import can_run


def project(features: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """Applies linear layers to the same features, in one product where that is allowed and faster.

    Args:
        features: (..., C).
        layers: Linear layers, or what took their place.

    Returns:
        The result of each layer. They may be views of one tensor.
    """
    if not (can_run(features) or is_compiled(features)):
        return tuple(layer(features) for layer in layers)
    plain = [layer for layer in layers if is_plain(layer)]
    if len(plain) == len(layers) and _learn_alike(plain):
        return linear_each(features, [(layer.weight, layer.bias) for layer in plain])
    return tuple(linear(features, layer.weight, layer.bias) if is_plain(layer) else layer(features) for layer in layers)


def _learn_alike(layers: list[nn.Linear]) -> bool:
    """Whether the gradient of the joined weight would be wanted for all layers, or for none."""
    return not torch.is_grad_enabled() or len({layer.weight.requires_grad for layer in layers}) == 1


def is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether calling a layer does nothing but multiply by its weight and add its bias."""
    return (
        type(layer) is nn.Linear
        and is_unwatched(layer)
        and all(
            type(tensor) is nn.Parameter and tensor.device.type == "cpu" and tensor.layout == torch.strided
            for tensor in (layer.weight, layer.bias)
            if tensor is not None
        )
    )


def is_unwatched(module: nn.Module) -> bool:
    """Whether nobody sees, replaces or pays for the calls of a module: no hooks, no forward of the instance's own, not
    compiled by itself, not offloaded by accelerate."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return (
        # The lengths: torch.compile notices when they change.
        all(len(some) == 0 for some in hooks)
        and not _has_any_global_hook()
        # The attribute too: torch.compile notices when it changes, and does not look into the dictionary again.
        and type(module.forward) is MethodType
        and "forward" not in module.__dict__
        and "_hf_hook" not in module.__dict__
        and module._compiled_call_impl is None
    )
