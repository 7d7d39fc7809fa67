"""Finds the image size and the windows of a network's training, which the shapes of learned tensors do not show."""
