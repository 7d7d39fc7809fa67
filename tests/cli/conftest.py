"""A random small model with photographs, as the shipped one has, and a folder of images."""

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
    rows = ["file,shows,label,source,author,licence"]
    for seed, (name, label) in enumerate([("cat", "cat"), ("dog", "dog"), ("tree", "")]):
        save_noise(folder / "samples" / f"{name}.png", seed)
        rows.append(f'{name}.png,a {name},{label},"somewhere, {name}",somebody,MIT')
    (folder / "samples" / "photographs.csv").write_text("\n".join(rows))
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
