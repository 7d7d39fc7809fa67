"""Training and evaluation of segmenters and detectors."""
