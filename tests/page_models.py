"""Small models of every kind that the page takes, and image files to show them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import scenes
from small_models import make_model
from swinv2 import Swinv2ForMaskedImageModeling
from swinv2.dense import from_backbone
from swinv2.dense.saved import INSTANCES, make_dense_processor

CLASSES = ["road", "sky <b>", "tree"]


def save_model(folder: Path, kind: str) -> Path:
    """Saves a random small model: "classifier", "masked", or one of `scenes.SMALL_HEADS`."""
    if kind == "classifier":
        return make_model(folder / kind)
    if kind == "masked":
        return make_model(folder / kind, Swinv2ForMaskedImageModeling)
    checkpoint = scenes.write_checkpoint(folder / f"{kind}-backbone")
    torch.manual_seed(0)
    model: Any = from_backbone(checkpoint, kind, CLASSES, **scenes.SMALL_HEADS[kind])
    if kind == "mask2former":
        model.config.dense_task = INSTANCES
    model.save_pretrained(folder / kind)
    processor = make_dense_processor(model, (64, 64), [0.5] * 3, [0.25] * 3)
    if processor is not None:
        processor.save_pretrained(folder / kind)
    return folder / kind


def save_photo(path: Path, size: tuple[int, int] = (90, 60), **options: Any) -> Path:
    """Saves a random image (width, height)."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1] // 10 + 1, size[0] // 10 + 1, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size).save(path, **options)
    return path
