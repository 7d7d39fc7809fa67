"""A random small model with samples, as the shipped one has, and a folder of images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands import LABELS
from small_models import make_model


def save_noise(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_model(tmp_path_factory.mktemp("model"), id2label=dict(enumerate(LABELS)))
    (folder / "samples").mkdir()
    for index, label in enumerate(["cat", "dog", "ant"]):
        save_noise(folder / "samples" / f"{index:02d}_{label}.png", index)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of three valid images and a broken one."""
    folder = tmp_path / "images"
    folder.mkdir()
    for seed, name in enumerate(["photo 2.png", "photo 10.png", "[red]x.png"]):
        save_noise(folder / name, seed)
    (folder / "photo 3.jpg").write_text("broken")
    return folder
