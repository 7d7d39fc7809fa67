"""The gradient of the bias table: all programs add to one table, or each writes its own part.

In: the plan and the size of tiles. Out: the buffer for the programs, and the gradient. `backward._add_to_table` writes
to the buffer.
"""

import torch
from torch import Tensor

from swinv2.ops.precision import precise
from swinv2.ops.windows import WindowPlan


class TableGradient:
    """The buffer in which programs sum the gradient of the bias table.

    Args:
        bias_table: The table.
        plan: The plan.
        queries, keys: Number of queries and of keys in a tile.
        wanted: Whether to compute the gradient.
    """

    def __init__(self, bias_table: Tensor, plan: WindowPlan, queries: int, keys: int, wanted: bool) -> None:
        self.bias_table, self.plan, self.wanted = bias_table, plan, wanted
        self.queries, self.keys = queries, keys
        self.deterministic = torch.are_deterministic_algorithms_enabled()
        self.sums: Tensor | None = None

    @property
    def span(self) -> int:
        """Entries of the part that each program writes; 0 if all programs add to one table."""
        if not (self.wanted and self.deterministic):
            return 0
        return _entries_of_tile(self.plan, self.queries) + _entries_of_tile(self.plan, self.keys)

    def buffer(self, splits: int) -> Tensor | None:
        """Allocates the buffer for the programs; None if the gradient is not wanted."""
        dtype = precise(self.bias_table.dtype)
        if not self.wanted:
            return None
        if self.deterministic:
            shape = (splits * len(self._first_entries()), len(self.bias_table), self.span)
            self.sums = self.bias_table.new_empty(shape, dtype=dtype)
        else:
            self.sums = torch.zeros_like(self.bias_table, dtype=dtype)
        return self.sums

    def total(self) -> Tensor | None:
        """The gradient, after the programs have written the buffer; None if it is not wanted."""
        if self.sums is None:
            return None
        if not self.deterministic:
            return self.sums
        firsts = self._first_entries()
        of_pairs = self.sums.unflatten(0, (-1, len(firsts))).sum(0).transpose(0, 1)
        entries = firsts[:, None] + torch.arange(self.sums.shape[-1], device=self.sums.device)
        flat = self.sums.new_zeros(len(self.bias_table), self.bias_table[0].numel() + self.sums.shape[-1])
        heads = torch.arange(len(flat), device=flat.device)[:, None, None]
        flat.index_put_((heads, entries), of_pairs, accumulate=True)
        return flat[:, : self.bias_table[0].numel()].reshape(self.bias_table.shape)

    def _entry_terms(self, tokens: Tensor) -> Tensor:
        """The terms of tokens in the index of a bias table entry."""
        height, width = self.plan.window[-2:]
        lines = tokens // width + tokens // (height * width) * (height - 1)
        return lines * (2 * width - 1) + tokens % width

    def _terms_of_tiles(self, block: int) -> tuple[Tensor, Tensor]:
        """The terms of an entry for the first and the last token of every tile."""
        # Created on the device: a copy to the device cannot be part of a CUDA graph.
        starts = torch.arange(0, self.plan.tokens, block, device=self.bias_table.device)
        return self._entry_terms(starts), self._entry_terms((starts + block).clamp(max=self.plan.tokens) - 1)

    def _first_entries(self) -> Tensor:
        """The first entry of every pair of tiles; the tile of keys changes fastest."""
        (firsts, _), (_, lasts) = self._terms_of_tiles(self.queries), self._terms_of_tiles(self.keys)
        middle = self.bias_table[0].numel() // 2
        return (firsts[:, None] - lasts[None, :] + middle).flatten()


def _entries_of_tile(plan: WindowPlan, block: int) -> int:
    """An upper bound of the number of bias table entries between the tokens of a tile."""
    height, width = plan.window[-2:]
    rows = min(-(-block // width) + 1, plan.tokens // width)
    # Between the rows of two frames are entries of no pair of the tile.
    borders = min(-(-block // (height * width)), plan.tokens // (height * width) - 1)
    return (rows + borders * (height - 1)) * (2 * width - 1)
