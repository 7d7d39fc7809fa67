"""The gradient of the bias table, as programs add it up: all into one table, or each into a part of its own.

In: the plan and the size of tiles. Out: room for programs to write into, and the sum of what they wrote. See
`backward._add_to_table`, which writes.
"""

from typing import Any

import torch
from torch import Tensor

from swinv2.ops.precision import precise
from swinv2.ops.windows import WindowPlan


class TableGradient:
    """Where programs add up the gradient of the bias table.

    Args:
        bias_table: The table.
        plan: The plan.
        queries, keys: Tokens of a tile.
        wanted: Whether there is to be a gradient.
    """

    def __init__(self, bias_table: Tensor, plan: WindowPlan, queries: int, keys: int, wanted: bool) -> None:
        self.bias_table, self.plan, self.wanted = bias_table, plan, wanted
        self.queries, self.keys = queries, keys
        self.deterministic = torch.are_deterministic_algorithms_enabled()
        self.sums: Tensor | None = None

    @property
    def constants(self) -> dict[str, Any]:
        """Of the kernels that add to it."""
        return {"SPAN": self._span(self.queries) + self._span(self.keys) - 1, "DETERMINISTIC": self.deterministic}

    def room(self, splits: int) -> Tensor | None:
        """What programs write into."""
        dtype = precise(self.bias_table.dtype)
        if not self.wanted:
            return None
        if self.deterministic:
            parts = splits * len(self._firsts())
            shape = (parts, len(self.bias_table), self.constants["SPAN"])
            self.sums = self.bias_table.new_empty(shape, dtype=dtype)
        else:
            self.sums = torch.zeros_like(self.bias_table, dtype=dtype)
        return self.sums

    def total(self) -> Tensor | None:
        """The gradient, when the programs have ended; None if it is not wanted."""
        if self.sums is None:
            return None
        if not self.deterministic:
            return self.sums
        firsts = torch.tensor(self._firsts(), device=self.sums.device)
        of_pairs = self.sums.unflatten(0, (-1, len(firsts))).sum(0).transpose(0, 1)
        entries = firsts[:, None] + torch.arange(self.sums.shape[-1], device=self.sums.device)
        flat = self.sums.new_zeros(len(self.bias_table), self.bias_table[0].numel() + self.sums.shape[-1])
        heads = torch.arange(len(flat), device=flat.device)[:, None, None]
        flat.index_put_((heads, entries), of_pairs, accumulate=True)
        return flat[:, : self.bias_table[0].numel()].reshape(self.bias_table.shape)

    def _entry(self, token: int) -> int:
        width = self.plan.window[1]
        return token // width * (2 * width - 1) + token % width

    def _tiles(self, block: int) -> list[tuple[int, int]]:
        """The first and the last token's part of an entry, of every tile."""
        tokens = self.plan.tokens
        starts = range(0, tokens, block)
        return [(self._entry(start), self._entry(min(start + block, tokens) - 1)) for start in starts]

    def _span(self, block: int) -> int:
        return max(last - first for first, last in self._tiles(block)) + 1

    def _firsts(self) -> list[int]:
        """The first entry of every pair of tiles, tiles of keys running fastest."""
        middle = self._entry(self.plan.tokens - 1)
        return [first - last + middle for first, _ in self._tiles(self.queries) for _, last in self._tiles(self.keys)]
