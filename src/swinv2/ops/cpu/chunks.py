"""Chunks that fit the cache.

In: sizes. Out: slices.

Eager mode writes every intermediate result to memory and reads it again. A large result needs new memory, which the
system must clear first. With chunks, the intermediate results stay in the cache.
"""

CACHE_BYTES = 2**24
"""Most bytes of the intermediate tensors of a chunk: less than the last-level cache. With much less, the overhead of
the calls is larger than the gain."""

SMALLEST_CHUNK = 256
"""With fewer tokens, a matrix product is slow."""


def chunks(count: int, item_bytes: int, least: int = 1) -> list[slice]:
    """Divides items into chunks of about equal size that fit the cache.

    Args:
        count: Number of items.
        item_bytes: Most bytes of intermediate tensors that exist at the same time for an item.
        least: Fewest items of a chunk, even if they do not fit the cache.
    """
    number = -(-count // max(CACHE_BYTES // item_bytes, least))
    return [slice(count * chunk // number, count * (chunk + 1) // number) for chunk in range(number)]
