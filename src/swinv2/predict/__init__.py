"""Images in, labels or features out: what the command line does, as a library.

`images` finds and reads them, `predictor` runs a model over them, `features` keeps features in a file, `describe` says
what a model is, `shipped` knows the checkpoint inside the package.
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
