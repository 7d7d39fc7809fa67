"""Computation for processors: a cacheful at a time, in eager mode."""
