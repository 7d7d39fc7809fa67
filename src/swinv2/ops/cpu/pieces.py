"""What fits the cache, and who may work in pieces of it.

In: sizes, and functions of items that do not depend on each other. Out: slices, and the functions' results. This module
does not know what is computed.

Eager mode writes every intermediate result to memory and reads it again; a large one is written to fresh memory, which
the system must clear first. In pieces, the intermediate results live in the cache.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

CACHE_BYTES = 2**24
"""What the tensors in work may take: less than the last-level cache. With much less, calls become so small that calling
costs more than it saves."""

SMALLEST_PIECE = 256
"""Tokens below which a matrix product is too thin to be fast."""


def can_run(tensor: Tensor) -> bool:
    """Whether this package's forms for a CPU are for a tensor. For torch.compile there is `opaque.is_compiled`."""
    return tensor.device.type == "cpu" and is_plain_call(tensor)


def is_plain_call(tensor: Tensor) -> bool:
    """Whether a call is in eager mode, with a plain tensor, and nobody records or transforms what is computed, as
    compilers, exporters, torch.func, forward-mode differentiation and dispatch modes (torch's counter of operations)
    do. Those would not understand the writes into place and the gradients written by hand."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not is_transformed()
        and torch._C._len_torch_dispatch_stack() == 0
    )


def is_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def pieces(count: int, item_bytes: int, least: int = 1) -> list[slice]:
    """Cuts items into pieces of about equal size that fit the cache.

    Args:
        count: Number of items.
        item_bytes: What an item needs at its widest.
        least: Items that should stay together to be fast.
    """
    number = max(-(-count // max(CACHE_BYTES // item_bytes, least)), 1)
    return [slice(count * piece // number, count * (piece + 1) // number) for piece in range(number)]


def add_in_pieces(items: Tensor, branch: Callable[[Tensor], Tensor], item_bytes: int, least: int = 1) -> Tensor:
    """items + branch(items), a cacheful of items at a time; without gradients.

    Args:
        items: All items (N, ...).
        branch: Takes items (n, ...) and returns as many of the same shape and dtype.
        item_bytes, least: See `pieces`.
    """
    sums = torch.empty_like(items)
    for piece in pieces(len(items), item_bytes, least):
        torch.add(items[piece], branch(items[piece]), out=sums[piece])
    return sums
