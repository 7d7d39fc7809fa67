"""A contact sheet of photographs with the answers of a model.

In: image files, what they show, and the most probable labels. Out: a PNG file. This module runs no model.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from swinv2.drawing.paper import fit_tile, printable, save, tile_sheet
from swinv2.images import read_image
from swinv2.predict.predictor import Prediction
from swinv2.predict.shipped import Photograph

COLUMNS = 5

VERDICTS = {True: "right", False: "wrong", None: "no label fits"}


def draw_sheet(photographs: Sequence[Photograph], answers: Sequence[Sequence[Prediction]], path: Path) -> None:
    """Draws photographs in rows, each with what it shows and, below, the first answer and its probability.

    Args:
        photographs: The photographs, in the order of the sheet.
        answers: For each photograph, the labels, most probable first.
        path: The PNG file; an existing file is replaced.
    """
    tiles = [fit_tile(np.asarray(read_image(photograph.path))) for photograph in photographs]
    captions = [
        f"{photograph.shows} -> {printable(labels[0].label, 24)} {labels[0].probability:.0%}, "
        f"{VERDICTS[photograph.is_right(labels[0].label)]}"
        for photograph, labels in zip(photographs, answers, strict=True)
    ]
    save(tile_sheet(tiles, captions, COLUMNS), path)
