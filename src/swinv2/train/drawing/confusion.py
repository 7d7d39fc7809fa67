"""The confusion matrix of a classifier."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from swinv2.drawing.paper import DPI, printable, save

MOST_NUMBERS, MOST_CLASSES = 20, 50
"""Largest number of classes for which the cells have numbers, and for which all classes are drawn."""


def draw_confusion(
    truths: np.ndarray, answers: np.ndarray, names: Sequence[str], path: Path, things: str = "images"
) -> None:
    """Draws the answers for the images of each class, as shares of the class.

    Rows are true classes, columns are answers. Right answers are blue. Mistakes are orange; their scale ends at the
    most frequent mistake, so that the mistakes of a good model are visible. Up to `MOST_NUMBERS` classes, cells have
    percentages; with more classes, the recall is next to the name of each class. Of more than `MOST_CLASSES` classes,
    those with the lowest recall are drawn. Classes without images are grey.

    Args:
        truths, answers: The class of each image, and the answer (images,); at least one image.
        names: Names of the classes.
        path: The PNG file; an existing file is replaced.
        things: What the classes are of: images or videos.

    Raises:
        ValueError: There is no image, or not an answer for each, or a class without a name.
    """
    if truths.shape != answers.shape or not truths.size:
        raise ValueError(f"there are {truths.size} images and {answers.size} answers; expected one answer for each.")
    least, most = (int(extreme(np.append(truths, answers))) for extreme in (np.min, np.max))
    if least < 0 or most >= len(names):
        raise ValueError(f"there are classes from {least} to {most}, and {len(names)} names; expected one for each.")
    save(_figure_of_confusion(truths, answers, names, things), path, cut=True)


def count_answers(truths: np.ndarray, answers: np.ndarray, classes: np.ndarray, known: int) -> np.ndarray:
    """The confusion matrix of some classes: numbers of images (true class, answer).

    Args:
        truths, answers: The class of each image, and the answer (images,).
        classes: The classes of rows and columns, in their order.
        known: Number of all classes.
    """
    place = np.full(known, -1)
    place[classes] = np.arange(len(classes))
    rows, columns = place[truths], place[answers]
    is_inside = (rows >= 0) & (columns >= 0)
    cells = rows[is_inside] * len(classes) + columns[is_inside]
    return np.bincount(cells, minlength=len(classes) ** 2).reshape(len(classes), len(classes))


def _figure_of_confusion(truths: np.ndarray, answers: np.ndarray, names: Sequence[str], things: str) -> Figure:
    """The figure of a confusion matrix; of the worst classes if there are many."""
    images = np.bincount(truths, minlength=len(names))
    # A class without images becomes NaN: NaN sorts last, and cells of NaN are not drawn.
    counts = np.where(images > 0, images, np.nan)
    hits = np.bincount(truths[truths == answers], minlength=len(names))
    classes = np.sort(np.argsort(hits / counts, kind="stable")[:MOST_CLASSES])
    # Only of these: the whole matrix of 21,841 classes has 3.8 GB.
    shares = count_answers(truths, answers, classes, len(names)) / counts[classes, None]
    shown = [printable(str(names[index]), 24) for index in classes]
    has_numbers = len(classes) <= MOST_NUMBERS
    side, size = max(3.2, (0.45 if has_numbers else 0.27) * len(classes)), 9 if has_numbers else 8
    # The matrix fills the figure; the text is outside, and `paper.save` crops the file to everything that is drawn.
    figure = Figure((side, side), dpi=DPI, facecolor="white")
    axes: Any = figure.add_axes((0.0, 0.0, 1.0, 1.0), facecolor="#dddddd")
    is_right = np.eye(len(classes), dtype=bool)
    wrong = np.where(is_right, np.nan, shares)
    most = max(float(np.nan_to_num(wrong).max()), 0.01)
    mistakes = axes.imshow(wrong, cmap="Oranges", vmin=0, vmax=most)
    axes.imshow(np.where(is_right, shares, np.nan), cmap="Blues", vmin=0, vmax=1)
    beside_axes = figure.add_axes((1.0 + 0.2 / side, 0.0, 0.2 / side, 1.0))
    bar: Any = figure.colorbar(mistakes, cax=beside_axes, format=PercentFormatter(1.0, decimals=None))
    bar.set_label("mistakes, share of the class")
    bar.outline.set_visible(False)
    if has_numbers:
        for row, column in zip(*np.nonzero(shares > 0), strict=True):
            share = shares[row, column]
            colour = "white" if share > 0.6 * (1 if row == column else most) else "#333333"
            text = f"{share:.0%}".rstrip("%") if share >= 0.005 else "<1"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(classes)), shown, rotation=90, fontsize=size, parse_math=False)
    recalls = ["" if has_numbers or np.isnan(share) else f"  {share:.0%}" for share in shares.diagonal()]
    beside = [name + recall for name, recall in zip(shown, recalls, strict=True)]
    axes.set_yticks(range(len(classes)), beside, fontsize=size, parse_math=False)
    axes.set_xticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.grid(True, which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth, in % of the class" if has_numbers else "truth, and share that is right")
    title = f"{hits.sum() / len(truths):.1%} of {len(truths):,} {things} right"
    if len(classes) < len(names):
        title += f"; the {len(classes)} classes of {len(names)} that are recognised worst"
    axes.set_title(title, fontsize=12, pad=12)
    return figure
