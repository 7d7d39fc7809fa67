"""What fits the cache.

In: sizes. Out: slices, and parts of a map whose windows are whole. This module does not know what is computed.

Eager mode writes every intermediate result to memory and reads it again; a large one is written to fresh memory, which
the system must clear first. In pieces, the intermediate results live in the cache.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from swinv2.ops.windows import WindowPlan

CACHE_BYTES = 2**24
"""What the tensors in work may take: less than the last-level cache. With much less, calls become so small that calling
costs more than it saves."""

SMALLEST_PIECE = 256
"""Tokens below which a matrix product is too thin to be fast."""


def pieces(count: int, item_bytes: int, least: int = 1) -> list[slice]:
    """Cuts items into pieces of about equal size that fit the cache.

    Args:
        count: Number of items.
        item_bytes: What an item needs at its widest.
        least: Items that should stay together to be fast.
    """
    number = -(-count // max(CACHE_BYTES // item_bytes, least))
    return [slice(count * piece // number, count * (piece + 1) // number) for piece in range(number)]


@dataclass(frozen=True)
class Band:
    """Some rows of some images, whose windows are whole: a smaller map.

    Attributes:
        images: Which images.
        rows: Which rows, in one run, or in two: the last windows of a shifted map hold its top and its bottom.
        plan: Cuts the band as the whole plan cuts the map.
        tokens: Where the band's tokens come if those of all bands are put one after another.
    """

    images: slice
    rows: tuple[slice, ...]
    plan: WindowPlan
    tokens: slice

    def take(self, feature_map: Tensor) -> Tensor:
        """The band's tokens (N, C) of a map (B, H, W, C): a view of it where the rows are one run."""
        parts = [feature_map[self.images, rows] for rows in self.rows]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).flatten(0, 2)

    def room(self, feature_map: Tensor) -> Tensor:
        """Memory for the band's tokens (N, C), which `put` puts into the map: that of the map itself if it can be."""
        if len(self.rows) == 1:
            return self.take(feature_map)
        return feature_map.new_empty(self.tokens.stop - self.tokens.start, feature_map.shape[-1])

    def put(self, feature_map: Tensor, room: Tensor) -> None:
        """Puts what was written to `room` into its place."""
        if len(self.rows) > 1:
            lengths = [rows.stop - rows.start for rows in self.rows]
            parts = room.view(-1, *self.plan.grid, room.shape[-1]).split(lengths, 1)
            for rows, part in zip(self.rows, parts, strict=True):
                feature_map[self.images, rows] = part

    def as_map(self, tokens: Tensor, heads: int) -> Tensor:
        """The band's tokens (N, C) as a map of vectors (B, H, W, heads, head_dim)."""
        return tokens.view(-1, *self.plan.grid, tokens.shape[-1]).unflatten(-1, (heads, -1))


def bands(plan: WindowPlan, batch: int, token_bytes: int) -> list[Band]:
    """Cuts maps into bands that fit the cache: some images, or, if one does not fit, some rows of windows.

    Args:
        plan: Cuts each image.
        batch: Number of images.
        token_bytes: What a token needs at its widest.
    """
    made, done = [], 0
    for images, rows, part in _cut(plan, batch, token_bytes):
        count = (images.stop - images.start) * math.prod(part.grid)
        made.append(Band(images, rows, part, slice(done, done + count)))
        done += count
    return made


def _cut(plan: WindowPlan, batch: int, token_bytes: int) -> Iterator[tuple[slice, tuple[slice, ...], WindowPlan]]:
    (height, width), window, shift = plan.grid, plan.window[0], plan.shift[0]
    image_bytes = height * width * token_bytes
    if image_bytes <= CACHE_BYTES or plan.counts[0] == 1:
        for images in pieces(batch, image_bytes):
            yield images, (slice(0, height),), plan
        return
    # The last windows of a shifted map hold its top too: they are a band of their own.
    moved = plan.counts[0] - 1 if shift else plan.counts[0]
    for image in range(batch):
        images = slice(image, image + 1)
        for some in pieces(moved, window * width * token_bytes):
            rows = slice(some.start * window + shift, min(some.stop * window + shift, height))
            yield images, (rows,), replace(plan, grid=(rows.stop - rows.start, width), shift=(0, plan.shift[1]))
        if shift:
            top, bottom = slice(0, shift), slice(min(moved * window + shift, height), height)
            runs = (top, bottom) if bottom.stop > bottom.start else (top,)
            yield images, runs, replace(plan, grid=(shift + bottom.stop - bottom.start, width))
