"""The learned layers. A feature map is (B, H, W, C)."""
