"""What fits the cache.

In: sizes. Out: slices. This module does not know what is computed.

Eager mode writes every intermediate result to memory and reads it again; a large one is written to fresh memory, which
the system must clear first. In pieces, the intermediate results live in the cache.
"""

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
