"""Computation without learned tensors or state."""
