"""The implementations for CPUs, in chunks that fit the cache."""
