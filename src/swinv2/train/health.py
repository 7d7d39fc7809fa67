"""Whether a run is worth continuing.

In: losses, weights and the names of images that could not be read. Out: an error, before anything of it reaches a
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
    """More images than allowed could not be read."""


class HealthCheck:
    """What can go wrong in a run without raising an error.

    Args:
        run: Its folder, for the message that says from where it can resume.
        device: Where its losses are.
        max_broken_images: How many images of this process may be unreadable.
    """

    def __init__(self, run: Path, device: torch.device, max_broken_images: int) -> None:
        self._run, self._max_broken_images = run, max_broken_images
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        self._broken: set[str] = set()

    def note_loss(self, loss: Tensor, step: int) -> None:
        """Looks at a loss. On a GPU, which a look at a number stops, `refuse_divergence` does, before a log or a save.

        Args:
            loss: Of one forward pass.
            step: The step that it belongs to, for the message.

        Raises:
            DivergedError: It is NaN or infinite.
        """
        self._finite &= loss.isfinite()
        if self._finite.device.type == "cpu":
            self.refuse_divergence(step)

    def refuse_divergence(self, step: int) -> None:
        """Stops if a loss or a weight that was looked at so far is NaN or infinite.

        Args:
            step: The step of now, for the message.

        Raises:
            DivergedError: It is none.
        """
        if bool(self._finite):
            return
        good, _ = newest_valid(self._run)
        raise DivergedError(
            f"at step {step} the loss or a weight is NaN or infinite. Nothing was saved since; "
            + (f"{good} is valid. " if good else "there is no checkpoint yet. ")
            + "Train in bf16 rather than fp16, with a smaller --learning-rate, a longer --warmup-steps or a smaller "
            "--max-grad-norm."
        )

    def refuse_broken_weights(self, model: nn.Module, step: int) -> None:
        """Looks at the weights before a save: a finite loss may have a gradient that is not.

        All processes call it, and all of them stop or none: the others would wait for the one that did.

        Args:
            model: The model, or what FSDP made of it.
            step: The step of now, for the message.

        Raises:
            DivergedError: A weight of some process is NaN or infinite.
        """
        shards: list[Any] = [getattr(p, "_local_tensor", p) for p in model.parameters() if p.requires_grad]
        finite = torch.stack([shard.detach().isfinite().all() for shard in shards]).all()
        self._finite &= finite.to(self._finite.device)
        if torch.distributed.is_initialized():
            agreed = self._finite.to(torch.int32)
            torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MIN)
            self._finite = agreed.bool()
        self.refuse_divergence(step)

    def count_broken(self, names: list[str]) -> None:
        """Counts images that could not be read, each once.

        Args:
            names: What each is called and why it could not be read; the same text for the same image.

        Raises:
            TooManyBrokenError: There are more than allowed.
        """
        for name in names:
            if name not in self._broken:
                logger.warning(f"skipped {name}")
        self._broken.update(names)
        if len(self._broken) > self._max_broken_images:
            raise TooManyBrokenError(
                f"{len(self._broken)} images could not be read, more than --max-broken-images "
                f"{self._max_broken_images}; the last one is {names[-1]}."
            )
