"""Checks that stop a broken run.

In: losses, weights and the names of unreadable images. Out: an error, raised before NaN or infinite values reach a
checkpoint.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swinv2.errors import UsageError
from swinv2.train.checkpoints import newest_valid

logger = logging.getLogger(__name__)


class DivergedError(UsageError):
    """The loss or a weight is NaN or infinite."""


class TooManyBrokenError(UsageError):
    """There are more unreadable images than allowed."""


class HealthCheck:
    """Finds failures of a run that raise no error by themselves.

    Args:
        run: Folder of the run; an error message names its newest valid checkpoint.
        device: Device of the losses.
        max_broken_images: Number of unreadable images that a process may meet.
        things: What they are, for messages.
    """

    def __init__(self, run: Path, device: torch.device, max_broken_images: int, things: str = "images") -> None:
        self._things = things
        self._run, self._max_broken_images = run, max_broken_images
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        self._broken: set[str] = set()
        self._named = set[str]()

    def check_loss(self, loss: Tensor, step: int) -> None:
        """Checks the loss of a forward pass. On a GPU, reading the result would wait for all its work; there
        `refuse_divergence` reads it later, before a log or a save.

        Raises:
            DivergedError: The loss is NaN or infinite. Its message has the step.
        """
        self._finite &= loss.isfinite()
        if self._finite.device.type == "cpu":
            self.refuse_divergence(step)

    def refuse_divergence(self, step: int) -> None:
        """Raises `DivergedError` if a checked loss or weight was NaN or infinite."""
        if bool(self._finite):
            return
        good, _ = newest_valid(self._run)
        raise DivergedError(
            f"at step {step} the loss or a weight is NaN or infinite. It was not saved; "
            + (f"{good} is valid. " if good else "there is no checkpoint yet. ")
            + "Train in bf16 instead of fp16, or with a smaller --learning-rate, more --warmup-steps or a smaller "
            "--max-grad-norm."
        )

    def refuse_broken_weights(self, model: nn.Module, step: int) -> None:
        """Checks the weights before a save: even if the loss is finite, its gradient may be NaN or infinite.

        All processes must call it. All of them raise `DivergedError` or none, because no process may wait for a stopped
        one. The model may be sharded by FSDP.
        """
        shards: list[Any] = [getattr(p, "_local_tensor", p) for p in model.parameters() if p.requires_grad]
        finite = torch.stack([shard.detach().isfinite().all() for shard in shards]).all()
        self._finite &= finite.to(self._finite.device)
        if torch.distributed.is_initialized():
            agreed = self._finite.to(torch.int32)
            torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MIN)
            self._finite = agreed.bool()
        self.refuse_divergence(step)

    def name_broken(self, names: list[str]) -> None:
        """Names unreadable images, each once."""
        for name in names:
            if name not in self._named:
                logger.warning(f"skipped {name}")
        self._named.update(names)

    def count_broken(self, names: list[str]) -> None:
        """Counts unreadable images, each once: equal names with equal reasons are the same image.

        Raises:
            TooManyBrokenError: There are more than allowed.
        """
        self.name_broken(names)
        self._broken.update(names)
        if len(self._broken) > self._max_broken_images:
            raise TooManyBrokenError(
                f"{len(self._broken)} {self._things} could not be read, more than --max-broken-images "
                f"{self._max_broken_images}; the last one is {names[-1]}."
            )
