"""The average of a model's weights over the steps of its training; it is evaluated and saved as the final model.

In: a model after each step. Out: averaged weights, in a checkpoint or in the model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from swinv2.errors import UsageError

AVERAGE_NAME = "average.pt"
"""File of the averaged weights in a checkpoint."""


class WeightAverage(AveragedModel):
    """The exponential moving average of a model's parameters. `decay` is the share of the old average in the new one,
    per step."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, multi_avg_fn=get_ema_multi_avg_fn(decay))

    @contextmanager
    def replacing(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model has the averaged weights; at the end it gets its own weights again. The model must have no
        wrappers of accelerate or torch.compile."""
        pairs = list(zip(model.parameters(), self.parameters(), strict=True))
        kept = [parameter.detach().clone() for parameter, _ in pairs]
        with torch.no_grad():
            for parameter, mean in pairs:
                parameter.copy_(mean)
        try:
            yield
        finally:
            with torch.no_grad():
                for (parameter, _), value in zip(pairs, kept, strict=True):
                    parameter.copy_(value)

    def save(self, checkpoint: Path) -> None:
        """Writes the average into a checkpoint."""
        torch.save(self.state_dict(), checkpoint / AVERAGE_NAME)

    def load(self, checkpoint: Path, device: torch.device) -> None:
        """Reads the average from a checkpoint.

        Raises:
            UsageError: The checkpoint has no average.
        """
        file = checkpoint / AVERAGE_NAME
        if not file.is_file():
            raise UsageError(f"{checkpoint} has no average of the weights; resume without --ema-decay.")
        self.load_state_dict(torch.load(file, map_location=device, weights_only=True))
