"""Small scenes of squares and bars with masks and objects, and a small backbone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import ViTImageProcessor

import peers
from swinv2 import Swinv2Config, Swinv2ForImageClassification

SMALL: dict[str, Any] = {
    "image_size": 64, "embed_dim": 16, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4,
}  # fmt: skip

SMALL_HEADS: dict[str, dict[str, Any]] = {
    "upernet": {"hidden_size": 16, "auxiliary_channels": 8},
    "mask2former": {
        "hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32, "encoder_layers": 1, "decoder_layers": 2,
        "num_attention_heads": 2, "num_queries": 6, "dim_feedforward": 32, "encoder_feedforward_dim": 32,
        "train_num_points": 64,
    },
    "rt_detr": {
        "d_model": 32, "encoder_hidden_dim": 32, "decoder_in_channels": [32, 32, 32], "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "num_queries": 20, "num_denoising": 0,
    },
    "faster_rcnn": {"min_size": 64, "max_size": 128, "pyramid_channels": 16, "box_channels": 32},
    "mask_rcnn": {"min_size": 64, "max_size": 128, "pyramid_channels": 16, "box_channels": 32},
}  # fmt: skip
"""Settings of small heads."""

CLASSES = ("floor", "square", "bar")
COLOURS = ((40, 60, 40), (220, 60, 40), (50, 80, 230))


def draw_scene(random: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    """An image, its mask of classes, and its objects: class from 0 (square, bar) and box."""
    height, width = size
    classes, objects = np.zeros(size, np.uint8), []
    for label, (tall, wide) in ((0, (16, 16)), (1, (8, 24))):
        top, left = int(random.integers(0, height - tall)), int(random.integers(0, width - wide))
        if (classes[top : top + tall, left : left + wide] == 0).all():
            classes[top : top + tall, left : left + wide] = label + 1
            objects.append((label, [left, top, left + wide, top + tall]))
    pixels = np.array(COLOURS)[classes] + random.integers(-20, 21, (height, width, 3))
    return pixels.clip(0, 255).astype(np.uint8), classes, objects


def write_masks(root: Path, count: int = 12, sizes: tuple[tuple[int, int], ...] = ((48, 64), (60, 50))) -> Path:
    """Images and masks of two splits, and the names of the classes."""
    random = np.random.default_rng(0)
    for split, images in (("train", count), ("validation", count // 2)):
        for index in range(images):
            pixels, classes, _ = draw_scene(random, sizes[index % len(sizes)])
            for kind, array in (("images", pixels), ("masks", classes)):
                path = root / kind / split / f"{index:03}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


def write_objects(root: Path, count: int = 12, sizes: tuple[tuple[int, int], ...] = ((48, 64), (60, 50))) -> Path:
    """Images with objects of two splits in COCO's form, with polygons."""
    random = np.random.default_rng(0)
    for split, images in (("train", count), ("validation", count // 2)):
        folder = root / split
        folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, list[Any]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": index + 1, "name": name} for index, name in enumerate(CLASSES[1:])],
        }
        for index in range(images):
            size = sizes[index % len(sizes)]
            pixels, _, objects = draw_scene(random, size)
            Image.fromarray(pixels).save(folder / f"{index:03}.png")
            found["images"].append({"id": index, "file_name": f"{index:03}.png", "height": size[0], "width": size[1]})
            for label, (left, top, right, bottom) in objects:
                number = len(found["annotations"]) + 1
                found["annotations"].append(
                    {
                        "id": number,
                        "image_id": index,
                        "category_id": label + 1,
                        "bbox": [left, top, right - left, bottom - top],
                        "area": (right - left) * (bottom - top),
                        "iscrowd": 0,
                        "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                    }
                )
        (folder / "_annotations.coco.json").write_text(json.dumps(found))
    return root


def write_checkpoint(folder: Path) -> Path:
    """A classifier of drawn weights, with its image processor."""
    peers.draw_weights(Swinv2ForImageClassification(Swinv2Config(**SMALL))).save_pretrained(folder)
    ViTImageProcessor(size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(
        folder
    )
    return folder
