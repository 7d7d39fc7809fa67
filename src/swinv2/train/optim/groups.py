"""Which parameter learns how fast, and whether it decays.

In: a model of this package, wrapped by PEFT or not. Out: parameter groups for an optimiser, and a table of them for
people. A parameter's group follows from what it is (which module owns it), never from how it is called: in timm and in
the authors' own pre-training, patterns of names miss their parameters, and logit_scale and the position-bias network
decay although they are said not to (facts of each: docs/concepts/training.md).

Source: microsoft/Swin-Transformer, optimizer.py: no decay for vectors, biases, position embeddings, the mask token,
the position-bias network and logit_scale; layer numbers of the decay of learning rates. There the position embeddings,
forgotten, learn as fast as the head; here they belong to the patches they are added to.
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
    """What the optimiser must know of a parameter.

    Attributes:
        layer: Number of the parameter's layer: 0 for the patches, j + 1 for the j-th block of the whole network, that
            of a stage's last block for its merging, and one more than the last block's for the norm and the head.
        decays: Whether weight decay is for it.
    """

    layer: int
    decays: bool


def parameter_roles(model: nn.Module) -> dict[str, Role]:
    """Finds the role of every parameter.

    Args:
        model: A model that holds a Swin Transformer V2.

    Returns:
        A role for each name of `model.named_parameters()`.

    Raises:
        ValueError: The model holds no Swin Transformer V2 of this package, or several.
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
            f"{type(model).__name__} holds {len(found)} modules {kind.__module__}.{kind.__name__}; expected one: a "
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
        model: A model that holds a Swin Transformer V2.
        learning_rate: Of the head and the last norm.
        weight_decay: Of what decays.
        layer_decay: Factor of the learning rate from each layer to the one before it, above 0, at most 1.

    Returns:
        Groups for a torch optimiser, from the first layer to the last: `params`, `lr`, `weight_decay`, and for people
        `layer` and `names`. Parameters that do not require gradients are in none.

    Raises:
        UsageError: `layer_decay` is no such factor; nothing learns.
    """
    if not 0.0 < layer_decay <= 1.0:
        raise UsageError(f"layer_decay is {layer_decay!r}; expected a number above 0 and at most 1 (1: no decay).")
    roles = parameter_roles(model)
    last = max(role.layer for role in roles.values())
    groups: dict[Role, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # Without layer decay two groups do: fewer, larger steps of the optimiser.
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
    """Stops the first stages from learning: 1 the patch embedding alone, 2 the first stage too, and so on.

    Drop path in frozen blocks goes on as everywhere in training; set `drop_path_rate` to 0 if it should not.

    Args:
        model: A model that holds a Swin Transformer V2.
        count: 0 for none, at most the number of stages plus one.

    Raises:
        UsageError: There are not so many.
    """
    encoder = _only(model, Encoder)
    if not 0 <= count <= len(encoder.layers) + 1:
        raise UsageError(
            f"{count} stages are to be frozen; expected 0 to {len(encoder.layers) + 1}: the patch embedding and "
            f"{len(encoder.layers)} stages."
        )
    frozen: Iterable[nn.Module] = [_only(model, Embeddings), *encoder.layers][:count]
    for module in frozen:
        module.requires_grad_(False)
