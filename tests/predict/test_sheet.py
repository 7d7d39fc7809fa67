"""The contact sheet: every photograph, and under it what it shows, what the model says and whether that is right."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from swinv2.drawing import paper
from swinv2.predict import sheet
from swinv2.predict.predictor import Prediction
from swinv2.predict.shipped import Photograph

KINDS = {"cat": "cat", "dog": "dog", "tree": None}


@pytest.fixture
def photographs(tmp_path: Path) -> list[Photograph]:
    found: list[Photograph] = []
    for index, (name, label) in enumerate(KINDS.items()):
        Image.new("RGB", (300, 200), (250, 20 * index, 0)).save(tmp_path / f"{name}.png")
        found.append(Photograph(tmp_path / f"{name}.png", f"a {name}", label, "somewhere", "somebody", "MIT"))
    return found


def test_captions_and_pixels(photographs: list[Photograph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first label of each answer is drawn, and the photographs are smaller, in their order."""
    drawn: list[list[str]] = []

    def watch(tiles: list[np.ndarray], captions: list[str], columns: int) -> Figure:
        drawn.append(captions)
        return paper.tile_sheet(tiles, captions, columns)

    monkeypatch.setattr(sheet, "tile_sheet", watch)
    answers = [[Prediction(0, "cat", 0.9), Prediction(1, "dog", 0.1)]] * 3
    sheet.draw_sheet(photographs, answers, tmp_path / "sheet.png")
    assert drawn == [["a cat -> cat 90%, right", "a dog -> cat 90%, wrong", "a tree -> cat 90%, no label fits"]]
    with Image.open(tmp_path / "sheet.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    middle = [pixels[16 + 64, 16 + 96 + index * (192 + 16)] for index in range(3)]
    assert [tuple(colour) for colour in middle] == [(250, 20 * index, 0) for index in range(3)]
