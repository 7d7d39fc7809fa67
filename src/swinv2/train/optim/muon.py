"""Optimisers and parameter groups of Swin Transformer V2.

In: a model. Out: one optimiser that transformers' Trainer and learning-rate schedules can drive. Groups are chosen by
what a parameter is, not by matching names of one layout.

Source: weight decay: microsoft/Swin-Transformer, optimizer.py (its intent: none on norms, biases, the position-bias
network and logit_scale). Muon: Jordan et al., 2024, as `torch.optim.Muon`; its step is scaled to AdamW's.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from swinv2.layers.position import ContinuousPositionBias


def hidden_matrices(model: nn.Module) -> list[torch.Tensor]:
    """The weights of the linear layers inside the network: not the position-bias networks, not the classifier."""
    inside_bias = {id(p) for m in model.modules() if isinstance(m, ContinuousPositionBias) for p in m.parameters()}
    head = getattr(model, "classifier", None)
    skipped = inside_bias | ({id(p) for p in head.parameters()} if isinstance(head, nn.Module) else set())
    return [m.weight for m in model.modules() if isinstance(m, nn.Linear) and id(m.weight) not in skipped]


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the matrices inside the network, AdamW for everything else, as one optimiser.

    In a short training of a small model Muon learns several times faster than AdamW alone (see docs/log.md).

    Args:
        model: The model.
        matrix_learning_rate: Of the matrices; per entry comparable to one of AdamW.
        learning_rate: Of everything else.
        weight_decay: Of the matrices; nothing else is decayed.
        betas: Of AdamW.
    """

    def __init__(
        self,
        model: nn.Module,
        matrix_learning_rate: float,
        learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        # Not the base class' constructor: groups and state live in the two parts, and it would make its own.
        matrices = hidden_matrices(model)
        chosen = {id(parameter) for parameter in matrices}
        others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
        self.parts = (
            torch.optim.Muon(
                matrices, lr=matrix_learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(others, lr=learning_rate, betas=betas, weight_decay=0.0, fused=True),
        )
        self.defaults: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"parts": self.parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.parts = state["parts"]
        self.defaults = {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of both parts, for the learning-rate schedule."""
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> dict[Any, Any]:  # type: ignore[override]
        """The state of both parts by parameter."""
        return {parameter: state for part in self.parts for parameter, state in part.state.items()}

    def state_dict(self) -> dict[str, Any]:
        """The states of both parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what `state_dict` returned.

        Raises:
            ValueError: It is another optimizer's, or its groups are others.
        """
        if "parts" not in state_dict:
            raise ValueError("the state is another optimizer's, not that of Muon and AdamW together")
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of all parameters."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes one step with both parts."""
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss
