"""A random small model in a folder, and images of all shapes to show it."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import ViTImageProcessor

from swinv2 import Swinv2Config, Swinv2ForImageClassification
from swinv2.images import BrokenImage
from swinv2.predict.predictor import FeatureExtractor

LABELS = ["ant", "bee", "cat", "dog"]


def make_model(folder: Path, model_class: type = Swinv2ForImageClassification, **fields: object) -> Path:
    """Saves a random small model that tells images apart, and its processor."""
    torch.manual_seed(0)
    size = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
    config = Swinv2Config(**{**size, "encoder_stride": 4, "id2label": dict(enumerate(LABELS)), **fields})
    model = model_class(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    normalisation = {"image_mean": [0.5] * config.num_channels, "image_std": [0.5] * config.num_channels}
    ViTImageProcessor(size={"height": 16, "width": 16}, **normalisation).save_pretrained(folder)
    return folder


def make_images(folder: Path, count: int = 7) -> list[Path]:
    """Random images of all shapes, the fourth one broken."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    paths = [folder / f"{index}.png" for index in range(count)]
    for index, path in enumerate(paths):
        shape = ((1, 1, 3), (3, 3, 3), (40, 20, 3), (5, 5, 3))[index % 4]
        Image.fromarray(random.integers(0, 255, shape, dtype=np.uint8)).save(path)
    paths[3].write_text("not an image")
    return paths


def sound_features(extractor: FeatureExtractor, images: list[Path]) -> list[tuple[Path, torch.Tensor]]:
    """The features of the images that can be read."""
    return [(path, item) for path, item in extractor.extract(images, 3) if not isinstance(item, BrokenImage)]
