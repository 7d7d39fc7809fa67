"""A small world to train in: noisy pictures of three colours, and a model for them."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (30, 30, 220), "green": (30, 220, 30), "red": (220, 30, 30)}

MODEL = {"image_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": [1, 2], "num_heads": [1, 2]}


def draw_colours(folder: Path, count: int, seed: int = 0) -> None:
    """Writes so many noisy pictures of each colour, in a folder for each."""
    draw = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = np.clip(draw.normal(0, 60, (40, 48, 3)) + np.array(colour), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
