"""Small images in files, with objects or masks, and what is read of them."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from swinv2.train.data.masks.dataset import MaskDataset


def write_coco(folder: Path, *annotations: dict[str, Any], images: int = 1) -> str:
    """COCO's annotations for images of 10 x 8 pixels (width x height). Annotations have the ids 10, 11, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(images):
        Image.new("RGB", (10, 8)).save(folder / f"{index}.png")
    defaults = {"image_id": 0, "category_id": 1, "bbox": [1, 1, 2, 2]}
    data = {
        "images": [{"id": index, "file_name": f"{index}.png", "width": 10, "height": 8} for index in range(images)],
        "annotations": [{"id": number, **defaults, **one} for number, one in enumerate(annotations, 10)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 4, "name": "dog"}],
    }
    (folder / "_annotations.coco.json").write_text(json.dumps(data))
    return str(folder)


def draw(folder: Path, *files: str) -> str:
    """Images of 3 x 1 pixels in colours."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 1), (10, 200, 30)).save(folder / name)
    return str(folder)


def mask(folder: Path, *files: str, values: tuple[int, ...] = (0, 1, 255)) -> str:
    """Masks with one row of values."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array([values], np.uint8)).save(folder / name)
    return str(folder)


def seen(found: MaskDataset) -> list[tuple[str, str]]:
    """The files of each pair."""
    return [(os.path.basename(str(sample.image)), os.path.basename(str(sample.mask))) for sample in found]


def read(found: MaskDataset, index: int = 0) -> list[int]:
    """The classes in the one row of a mask."""
    return found.read_mask(found[index])[0].tolist()
