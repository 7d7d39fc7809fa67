"""What fits the cache.

In: sizes. Out: slices. This module does not know what is computed.

Eager mode writes every intermediate result to memory and reads it again; a large one is written to fresh memory, which
the system must clear first. In chunks, the intermediate results live in the cache.
"""

CACHE_BYTES = 2**24
"""Bytes of the intermediate tensors: less than the last-level cache. With much less, calls become so small that calling
costs more than it saves."""

SMALLEST_CHUNK = 256
"""Tokens below which a matrix product is too thin to be fast."""


def chunks(count: int, item_bytes: int, least: int = 1) -> list[slice]:
    """Cuts items into chunks of about equal size that fit the cache.

    Args:
        count: Number of items.
        item_bytes: What an item needs at its widest.
        least: Items that should stay together to be fast.
    """
    number = -(-count // max(CACHE_BYTES // item_bytes, least))
    return [slice(count * chunk // number, count * (chunk + 1) // number) for chunk in range(number)]
