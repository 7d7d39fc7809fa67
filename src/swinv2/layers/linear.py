"""Linear layers computed in fewer and faster matrix products, where nobody could tell the difference.

In: linear layers and the features (..., C) that all of them take. Out: what each of them would have returned. A layer
that somebody watches or has replaced (hooks, offloading, LoRA, quantised weights) is called as a module, always.
"""

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from swinv2.ops.cpu.linear import linear
from swinv2.ops.cpu.pieces import can_run


def project(features: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """Applies linear layers to the same features, in one product if that is allowed and faster.

    Args:
        features: (..., C).
        layers: Linear layers, or what took their place.

    Returns:
        The result of each layer. They may be views of one tensor.
    """
    linears = [layer for layer in layers if isinstance(layer, nn.Linear) and is_plain(layer)]
    if len(linears) < len(layers) or not can_run(features):
        return tuple(layer(features) for layer in layers)
    product = linear(features, [layer.weight for layer in linears], [layer.bias for layer in linears])
    return product.split([layer.out_features for layer in linears], dim=-1) if len(linears) > 1 else (product,)


def is_plain(layer: nn.Linear) -> bool:
    """Whether calling a layer does nothing but multiply by its weight and add its bias."""
    return (
        type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and "forward" not in layer.__dict__
        and not is_watched(layer)
    )


def is_watched(module: nn.Module) -> bool:
    """Whether somebody sees, or pays for, every call of a module: by torch's hooks, or by accelerate's offloading."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "_hf_hook" in module.__dict__ or bool(_has_any_global_hook())
