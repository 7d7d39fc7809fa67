"""For which image and which windows a network was trained: what shapes and tensors do not show."""
