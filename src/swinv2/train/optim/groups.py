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
from typing import Any, NamedTuple, TypeVar

from torch import nn

from swinv2.errors import UsageError
from swinv2.layers.attention import CosineWindowAttention
from swinv2.layers.patches import Embeddings
from swinv2.layers.position import ContinuousPositionBias
from swinv2.layers.stage import Encoder

Kind = TypeVar("Kind", bound=nn.Module)


class Role(NamedTuple):
    """Layer and weight decay of a parameter.

    Attributes:
        layer: 0: the patch embedding; j + 1: block j of the whole network, counted from 0. A merging has the number of
            the block before it; the last norm and the head have one more than the last block.
        decays: Whether the parameter has weight decay.
    """

    layer: int
    decays: bool


def parameter_roles(model: nn.Module) -> dict[str, Role]:
    """The role of every parameter of a model that contains a Swin Transformer V2, by `model.named_parameters()`.

    Raises:
        ValueError: The model contains no Swin Transformer V2 of this package, or several.
    """
    encoder, embeddings = _the_only_module(model, Encoder), _the_only_module(model, Embeddings)
    layers = {id(parameter): 0 for parameter in embeddings.parameters()}
    block_number = 0
    stages: Any = encoder.layers
    for stage in stages:
        for block in stage.blocks:
            block_number += 1
            layers |= {id(parameter): block_number for parameter in block.parameters()}
        if stage.downsample is not None:
            layers |= {id(parameter): block_number for parameter in stage.downsample.parameters()}
    never_decay: set[int] = set()
    for module in model.modules():
        if isinstance(module, ContinuousPositionBias):
            never_decay |= {id(parameter) for parameter in module.parameters()}
        elif isinstance(module, CosineWindowAttention):
            never_decay.add(id(module.logit_scale))
        elif isinstance(module, Embeddings):
            never_decay |= {id(module.mask_token), id(module.position_embeddings)}
    return {
        name: Role(layers.get(id(parameter), block_number + 1), parameter.ndim > 1 and id(parameter) not in never_decay)
        for name, parameter in model.named_parameters()
    }


def _the_only_module(model: nn.Module, kind: type[Kind]) -> Kind:
    """The only module of a class inside a model, for its parameter groups."""
    found = [module for module in model.modules() if isinstance(module, kind)]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(found)} modules {kind.__module__}.{kind.__name__}; expected one: a "
            "model of this package, wrapped or not."
        )
    return found[0]


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    backbone_rate: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups the parameters that learn, for a torch optimiser, from the first layer to the last.

    Args:
        model: A model that contains a Swin Transformer V2.
        learning_rate: Learning rate of the head and the last norm.
        weight_decay: Weight decay of the parameters that decay.
        layer_decay: Factor of the learning rate from each layer to the one before it, above 0, at most 1.
        backbone_rate: Factor of the learning rate of all layers before the last norm and the head, above 0.

    Returns:
        Groups with `params`, `lr`, `weight_decay`, and for people `layer` and `names`.

    Raises:
        UsageError: `layer_decay` or `backbone_rate` is out of its range, or no parameter requires gradients.
    """
    if not 0.0 < layer_decay <= 1.0:
        raise UsageError(f"layer_decay is {layer_decay!r}; expected a number above 0 and at most 1 (1: no decay).")
    if not backbone_rate > 0.0:
        raise UsageError(f"backbone_rate is {backbone_rate!r}; expected a factor above 0.")
    roles = parameter_roles(model)
    last = max(role.layer for role in roles.values())
    groups: dict[Role, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # Without layer decay two groups are enough; with fewer groups the optimiser calls fewer, larger kernels.
        role = roles[name] if layer_decay < 1.0 or backbone_rate != 1.0 else Role(last, roles[name].decays)
        decay, rate = weight_decay if role.decays else 0.0, learning_rate * layer_decay ** (last - role.layer)
        rate *= backbone_rate if role.layer < last else 1.0
        new = {"params": [], "lr": rate, "weight_decay": decay, "layer": role.layer, "names": []}
        group = groups.setdefault(role, new)
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise UsageError("nothing learns: no parameter requires gradients. Freeze fewer stages.")
    return [groups[role] for role in sorted(groups)]


def without_names(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups with the keys of an optimiser only: sharded checkpoints would also store the other keys, and fail."""
    return [{key: group[key] for key in ("params", "lr", "weight_decay")} for group in groups]


def freeze_stages(model: nn.Module, count: int) -> None:
    """Freezes the first `count` of the patch embedding and the stages: they are in no parameter group.

    Drop path stays active in frozen blocks; set `drop_path_rate` to 0 to avoid it.

    Raises:
        UsageError: `count` is more than the number of stages plus one, or below 0.
    """
    encoder = _the_only_module(model, Encoder)
    if not 0 <= count <= len(encoder.layers) + 1:
        raise UsageError(
            f"the number of frozen stages is {count}; expected 0 to {len(encoder.layers) + 1}: the patch embedding and "
            f"{len(encoder.layers)} stages."
        )
    frozen: Iterable[nn.Module] = [_the_only_module(model, Embeddings), *encoder.layers][:count]
    for module in frozen:
        module.requires_grad_(False)
