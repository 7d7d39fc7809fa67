"""Computes labels or features of images: the library behind the commands.

`predictor` runs a model over images, `features` writes features to a file, `describe` describes a model in numbers,
`shipped` finds the checkpoint inside the package; `swinv2.images` finds and reads images.
"""

from swinv2.images import BrokenImage, BrokenImageError, find_images, read_image
from swinv2.predict.predictor import Classifier, FeatureExtractor, Prediction

__all__ = [
    "BrokenImage",
    "BrokenImageError",
    "Classifier",
    "FeatureExtractor",
    "Prediction",
    "find_images",
    "read_image",
]
