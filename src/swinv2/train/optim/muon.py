"""Muon for the matrices of the network, AdamW for the rest.

In: a model. Out: one optimiser, for transformers' Trainer and its schedules. The module that owns a parameter decides
its group, not its name.

Source: Jordan et al., 2024, as `torch.optim.Muon`; its step is scaled to the size of AdamW's.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from swinv2.layers.position import ContinuousPositionBias
from swinv2.train.optim.groups import without_names


def hidden_matrices(model: nn.Module) -> list[torch.Tensor]:
    """The weights of the linear layers of the network, except position-bias networks and classifier."""
    inside_bias = {id(p) for m in model.modules() if isinstance(m, ContinuousPositionBias) for p in m.parameters()}
    head = getattr(model, "classifier", None)
    skipped = inside_bias | ({id(p) for p in head.parameters()} if isinstance(head, nn.Module) else set())
    return [m.weight for m in model.modules() if isinstance(m, nn.Linear) and id(m.weight) not in skipped]


def muon_groups(
    model: nn.Module, matrix_learning_rate: float, learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """The parameters that learn, in two groups for a torch optimiser: the matrices, with weight decay, and the rest,
    without. For people, the groups have `names` too."""
    matrices = {id(matrix) for matrix in hidden_matrices(model)}
    groups: list[dict[str, Any]] = [
        {"params": [], "names": [], "lr": matrix_learning_rate, "weight_decay": weight_decay},
        {"params": [], "names": [], "lr": learning_rate, "weight_decay": 0.0},
    ]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = groups[0 if id(parameter) in matrices else 1]
            group["params"].append(parameter)
            group["names"].append(name)
    return groups


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the matrices inside the network, AdamW for everything else, as one optimiser.

    In a short training of a small model, it learns several times faster than AdamW alone (see docs/log.md).

    Args:
        model: The model.
        matrix_learning_rate: Learning rate of the matrices; the step of an entry is comparable to AdamW's.
        learning_rate: Learning rate of everything else.
        weight_decay: Weight decay of the matrices; nothing else decays.
        betas: AdamW's betas.
    """

    def __init__(
        self,
        model: nn.Module,
        matrix_learning_rate: float,
        learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        groups = muon_groups(model, matrix_learning_rate, learning_rate, weight_decay)
        matrices, rest = without_names(groups)
        self.parts = (
            torch.optim.Muon([matrices], adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW([rest], betas=betas, fused=True),
        )
        # The parts share their groups, completed with default options, with this optimiser. Schedules read `lr` of
        # `defaults`.
        super().__init__([part.param_groups[0] for part in self.parts], {"lr": learning_rate})

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"parts": self.parts}

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes one step with both parts."""
        loss = None if closure is None else closure()
        for part, group in zip(self.parts, self.param_groups, strict=True):
            # `load_state_dict` replaces the groups and the state.
            part.param_groups, part.state = [group], self.state
            part.step()
        return loss
