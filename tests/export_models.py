"""Models and images for the tests of exports: small, of drawn weights, with the processor of a classifier."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from packaging.version import Version
from PIL import Image
from transformers import ViTImageProcessor

import peers
from swinv2 import Swinv2Config

# Not by importing them: that of an older transformers warns of what is deprecated.
HAS_EXPORTERS = Version(transformers.__version__) >= Version("5.23")

needs_exporters = pytest.mark.skipif(not HAS_EXPORTERS, reason="exports need transformers 5.23")

FIELDS = {"image_size": 64, "window_size": 4, "embed_dim": 24, "depths": [2, 1], "num_heads": [2, 4], "num_labels": 5}
"""Has shifted windows and merging; images of 40 x 72 pixels are padded."""


def save_model(folder: Path, model_class: Any, **fields: Any) -> Path:
    """Saves a model of drawn weights with its image processor."""
    peers.draw_weights(model_class(Swinv2Config(**FIELDS, encoder_stride=8, **fields))).save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


def make_processor(**fields: Any) -> ViTImageProcessor:
    usual: dict[str, Any] = {"size": {"height": 64, "width": 64}, "image_mean": [0.4, 0.5, 0.6]}
    return ViTImageProcessor(**(usual | {"image_std": [0.2, 0.3, 0.25]} | fields))


def draw_photos(folder: Path, count: int, label: str = "") -> list[Path]:
    """Photographs of several sizes, with large and small shapes."""
    (folder / label).mkdir(parents=True, exist_ok=True)
    files = []
    for index in range(count):
        random = np.random.default_rng(index)
        coarse = Image.fromarray(random.integers(0, 256, (5, 7, 3), np.uint8)).resize((90 + index, 70), Image.BICUBIC)
        noise = random.integers(-20, 20, (70, 90 + index, 3))
        file = folder / label / f"{index:03}.png"
        Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(file)
        files.append(file)
    return files
