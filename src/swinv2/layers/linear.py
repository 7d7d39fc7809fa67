"""Linear layers in faster matrix products, and who must be left alone.

In: linear layers and the features (..., C) that all of them take. Out: what each of them would have returned. A layer
that somebody watches or has replaced (hooks, offloading, LoRA, quantised or pruned weights) is called as a module.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from swinv2.ops.cpu.linear import linear
from swinv2.ops.cpu.pieces import can_run

TOKENS_TO_JOIN = 8
"""Tokens for each channel from which one product is faster than several: joining the weights copies them."""


def project(features: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """Applies linear layers to the same features, in one product where that is allowed and faster.

    Args:
        features: (..., C).
        layers: Linear layers, or what took their place.

    Returns:
        The result of each layer. They may be views of one tensor.
    """
    if not can_run(features):
        return tuple(layer(features) for layer in layers)
    linears = [layer for layer in layers if isinstance(layer, nn.Linear) and is_plain(layer)]
    channels = features.shape[-1]
    if 1 < len(linears) == len(layers) and features.numel() >= TOKENS_TO_JOIN * channels**2:
        weight = torch.cat([layer.weight for layer in linears])
        zeros = weight.new_zeros
        bias = torch.cat([zeros(layer.out_features) if layer.bias is None else layer.bias for layer in linears])
        return linear(features, weight, bias).split([layer.out_features for layer in linears], dim=-1)
    return tuple(
        linear(features, layer.weight, layer.bias)
        if isinstance(layer, nn.Linear) and is_plain(layer)
        else layer(features)
        for layer in layers
    )


def is_plain(layer: nn.Module) -> bool:
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
        not any(hooks)
        and not _has_any_global_hook()
        and not module.__dict__.keys() & {"forward", "_hf_hook"}
        and module._compiled_call_impl is None
    )
