"""Memory that nobody wrote to shows: for these tests torch's fresh tensors are full of NaN."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch


def _filled(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def make_filled(*args: Any, **kwargs: Any) -> torch.Tensor:
        made = make(*args, **kwargs)
        if made.is_floating_point():
            made.detach().fill_(float("nan"))
        return made

    return make_filled


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills what torch.empty and its like return with NaN, so that output which was never written fails a test."""
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, _filled(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, _filled(getattr(torch.Tensor, name)))


@pytest.fixture(autouse=True)
def interpreter_may_overflow() -> Iterator[None]:
    """Triton's interpreter computes in numpy, warnings included, what a GPU computes and a mask then leaves out."""
    with np.errstate(over="ignore", invalid="ignore"):
        yield
