"""The learned rooms a feature map passes through. Maps are (B, H, W, C) at every door."""
