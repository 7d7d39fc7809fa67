"""Learning rate and weight decay of every parameter.

In: a model of this package, wrapped by PEFT or not. Out: parameter groups for an optimiser, with names for people. The
module that owns a parameter decides its group, not its name. timm and the authors' pre-training match patterns of names
that miss parameters; logit_scale and the position-bias network therefore decay there by mistake (details:
docs/concepts/training.md).

Source: microsoft/Swin-Transformer, optimizer.py: no decay for vectors, biases, position embeddings, the mask token,
the position-bias network and logit_scale; layer numbers for the decay of learning rates. There, by oversight, the
position embeddings learn as fast as the head; here they belong to layer 0, with the patches.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from swinv2.errors import UsageError
from swinv2.layers.attention import CosineWindowAttention
from swinv2.layers.patches import Embeddings
from swinv2.layers.position import ContinuousPositionBias
from swinv2.layers.stage import Encoder

Kind = TypeVar("Kind", bound=nn.Module)


@dataclass(frozen=True)
class Role:
    """Layer and weight decay of a parameter.

    Attributes:
        layer: Number of the parameter's layer. 0: the patch embedding; j + 1: block j of the whole network, counted
            from 0. A merging has the number of the block before it; the last norm and the head have one more than the
            last block.
        decays: Whether the parameter has weight decay.
    """

    layer: int
    decays: bool


def parameter_roles(model: nn.Module) -> dict[str, Role]:
    """Finds the role of every parameter.

    Args:
        model: A model that contains a Swin Transformer V2.

    Returns:
        A role for each name of `model.named_parameters()`.

    Raises:
        ValueError: The model contains no Swin Transformer V2 of this package, or several.
    """
    encoder, embeddings = _only(model, Encoder), _only(model, Embeddings)
    layers = {id(parameter): 0 for parameter in embeddings.parameters()}
    block_number = 0
    stages: Any = encoder.layers
    for stage in stages:
        for block in stage.blocks:
            block_number += 1
            layers |= {id(parameter): block_number for parameter in block.parameters()}
        if stage.downsample is not None:
            layers |= {id(parameter): block_number for parameter in stage.downsample.parameters()}
    never_decay = _never_decaying(model)
    return {
        name: Role(layers.get(id(parameter), block_number + 1), parameter.ndim > 1 and id(parameter) not in never_decay)
        for name, parameter in model.named_parameters()
    }


def _only(model: nn.Module, kind: type[Kind]) -> Kind:
    found = [module for module in model.modules() if isinstance(module, kind)]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(found)} modules {kind.__module__}.{kind.__name__}; expected one: a "
            "model of this package, wrapped or not."
        )
    return found[0]


def _never_decaying(model: nn.Module) -> set[int]:
    found: list[nn.Parameter | None] = []
    for module in model.modules():
        if isinstance(module, ContinuousPositionBias):
            found += module.parameters()
        elif isinstance(module, CosineWindowAttention):
            found.append(module.logit_scale)
        elif isinstance(module, Embeddings):
            found += [module.mask_token, module.position_embeddings]
    return {id(parameter) for parameter in found if parameter is not None}


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups the parameters that learn.

    Args:
        model: A model that contains a Swin Transformer V2.
        learning_rate: Learning rate of the head and the last norm.
        weight_decay: Weight decay of the parameters that decay.
        layer_decay: Factor of the learning rate from each layer to the one before it, above 0, at most 1.

    Returns:
        Groups for a torch optimiser, from the first layer to the last: `params`, `lr`, `weight_decay`, and for people
        `layer` and `names`. Parameters that do not require gradients are in no group.

    Raises:
        UsageError: `layer_decay` is out of its range, or no parameter requires gradients.
    """
    if not 0.0 < layer_decay <= 1.0:
        raise UsageError(f"layer_decay is {layer_decay!r}; expected a number above 0 and at most 1 (1: no decay).")
    roles = parameter_roles(model)
    last = max(role.layer for role in roles.values())
    groups: dict[Role, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # Without layer decay two groups are enough; with fewer groups the optimiser calls fewer, larger kernels.
        role = roles[name] if layer_decay < 1.0 else Role(last, roles[name].decays)
        group = groups.setdefault(
            role,
            {
                "params": [],
                "lr": learning_rate * layer_decay ** (last - role.layer),
                "weight_decay": weight_decay if role.decays else 0.0,
                "layer": role.layer,
                "names": [],
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise UsageError("nothing learns: no parameter requires gradients. Freeze fewer stages.")
    return [groups[role] for role in sorted(groups, key=lambda role: (role.layer, role.decays))]


def freeze_stages(model: nn.Module, count: int) -> None:
    """Freezes the first stages: 1: the patch embedding, 2: the first stage too, and so on.

    Drop path stays active in frozen blocks; set `drop_path_rate` to 0 to avoid it.

    Args:
        model: A model that contains a Swin Transformer V2.
        count: From 0 to the number of stages plus one.

    Raises:
        UsageError: `count` is out of its range.
    """
    encoder = _only(model, Encoder)
    if not 0 <= count <= len(encoder.layers) + 1:
        raise UsageError(
            f"the number of frozen stages is {count}; expected 0 to {len(encoder.layers) + 1}: the patch embedding and "
            f"{len(encoder.layers)} stages."
        )
    frozen: Iterable[nn.Module] = [_only(model, Embeddings), *encoder.layers][:count]
    for module in frozen:
        module.requires_grad_(False)
