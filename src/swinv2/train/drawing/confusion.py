"""What a classifier takes for what: the confusion matrix, or the worst of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from swinv2.drawing.paper import DPI, open_figure, printable, save

MOST_NUMBERS, MOST_CLASSES = 20, 50
"""Up to how many classes a confusion matrix has numbers in its cells, and is drawn as a matrix at all."""


@dataclass(frozen=True)
class Confused:
    """What became of the pictures of a class.

    Attributes:
        truth: Index of the class.
        recall: Share of its pictures that were recognised.
        answers: Index and share of the classes that they were taken for, the most frequent first.
        rest: Share of all other wrong answers.
    """

    truth: int
    recall: float
    answers: tuple[tuple[int, float], ...]
    rest: float


def most_confused(matrix: np.ndarray, classes: int = 30, answers: int = 4) -> list[Confused]:
    """The classes that are recognised worst.

    Args:
        matrix: How many pictures of each class (rows) were taken for each class (columns).
        classes: How many of them to return at most.
        answers: How many of each class's wrong answers to name at most.

    Returns:
        Classes of lowest recall first, among equals the one with more pictures. Classes without a picture are left out.
    """
    counts = matrix.sum(1)
    present = np.flatnonzero(counts)
    shares = matrix[present] / counts[present, None]
    recall = shares[np.arange(len(present)), present]
    found: list[Confused] = []
    for row in np.lexsort((-counts[present], recall))[:classes]:
        truth, wrong = int(present[row]), shares[row].copy()
        wrong[truth] = 0.0
        order = np.argsort(-wrong, kind="stable")[:answers]
        named = tuple((int(answer), float(wrong[answer])) for answer in order if wrong[answer] > 0)
        rest = float(wrong.sum()) - sum(share for _, share in named)
        found.append(Confused(truth, float(recall[row]), named, max(rest, 0.0)))
    return found


def draw_confusion(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draws what the pictures of each class were taken for, as shares of the class.

    Up to `MOST_CLASSES` classes it is a matrix, truth down and answer across: what is right in blue, mistakes in orange
    on a scale of their own that ends at the most frequent one, so that those of a good model show. Up to
    `MOST_NUMBERS` classes the cells hold percent; with more, the recall stands beside the name of each class. Classes
    without a picture are grey.

    Of more classes a matrix would be mostly empty and its names too small to read. Instead there is a row for each of
    the 30 classes of lowest recall, the worst on top: its recall, its four most frequent wrong answers by name, and all
    others together.

    Args:
        matrix: How many pictures of each class (rows) were taken for each class (columns).
        names: Names of the classes; their numbers if empty.
        path: The PNG file; one that exists is replaced.

    Raises:
        ValueError: The matrix is not square, is no matrix of counts or counts nothing, or there are not as many names
            as classes.
    """
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"the confusion matrix is {matrix.shape}; expected (classes, classes).")
    if not np.isfinite(matrix).all() or (matrix < 0).any() or not matrix.any():
        raise ValueError("the confusion matrix holds no counts; expected numbers of pictures, not all of them 0.")
    if names and len(names) != len(matrix):
        raise ValueError(f"there are {len(names)} names for {len(matrix)} classes; give as many, or none.")
    names = [printable(name, 24) for name in names or map(str, range(len(matrix)))]
    draw = _figure_of_matrix if len(matrix) <= MOST_CLASSES else _figure_of_worst
    figure = draw(matrix, names)
    total = matrix.sum()
    title = f"{matrix.trace() / total:.1%} of {total:,.0f} pictures right"
    figure.axes[0].set_title(title, fontsize=12, pad=12)
    save(figure, path, cut=True)


def _figure_of_matrix(matrix: np.ndarray, names: list[str]) -> Figure:
    classes = len(matrix)
    counts = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, counts, out=np.full_like(matrix, np.nan), where=counts > 0)
    is_right = np.eye(classes, dtype=bool)
    side = max(3.2, (0.45 if classes <= MOST_NUMBERS else 0.27) * classes)
    # The matrix fills the figure, and the words stand outside: the file is cut to what there is, see `paper.save`.
    figure = Figure((side, side), dpi=DPI, facecolor="white")
    axes: Any = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    mistakes = _shade(axes, shares, is_right)
    beside_axes = figure.add_axes((1.0 + 0.2 / side, 0.0, 0.2 / side, 1.0))
    bar: Any = figure.colorbar(mistakes, cax=beside_axes, format=PercentFormatter(1.0, decimals=None))
    bar.set_label("mistakes, share of the class")
    bar.outline.set_visible(False)
    has_numbers = classes <= MOST_NUMBERS
    if has_numbers:
        brightness = np.where(is_right, shares, shares / mistakes.norm.vmax)
        for row, column in zip(*np.nonzero(shares > 0), strict=True):
            share = shares[row, column]
            colour = "white" if brightness[row, column] > 0.6 else "#333333"
            text = f"{share:.0%}".rstrip("%") if share >= 0.005 else "<1"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    recalls = ["" if math.isnan(share) else f"  {share:.0%}" for share in shares.diagonal()]
    beside = names if has_numbers else [name + recall for name, recall in zip(names, recalls, strict=True)]
    size = 9 if has_numbers else 8
    axes.set_xticks(range(classes), names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(range(classes), beside, fontsize=size, parse_math=False)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth, in % of the class" if has_numbers else "truth, and share that is right")
    return figure


def _figure_of_worst(matrix: np.ndarray, names: list[str]) -> Figure:
    worst = most_confused(matrix)
    num_answers = max(len(confused.answers) for confused in worst)
    columns = ["right", *(f"{_ordinal(rank)} wrong answer" for rank in range(1, num_answers + 1)), "all others"]
    shares = np.zeros((len(worst), len(columns)))
    texts = [[""] * len(columns) for _ in worst]
    for row, confused in enumerate(worst):
        for column, (answer, share) in enumerate(confused.answers, 1):
            shares[row, column], texts[row][column] = share, f"{names[answer]}  {share:.0%}"
        shares[row, 0], texts[row][0] = confused.recall, f"{confused.recall:.0%}"
        shares[row, -1] = confused.rest
        # What remains after subtracting shares is at times a little more than nothing.
        texts[row][-1] = f"{confused.rest:.0%}" if confused.rest > 1e-9 else ""
    widths = np.array([0.7, *[2.3] * num_answers, 0.9])
    figure = open_figure(widths.sum() + 2.4, 0.29 * len(worst) + 1.2)
    axes: Any = figure.subplots()
    edges = np.concatenate([[0.0], np.cumsum(widths)])
    top = np.arange(len(worst) + 1) - 0.5
    wrong = shares[:, 1:]
    axes.pcolormesh(edges[:2], top, shares[:, :1], cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=1)
    # The darkest is left out: the names are to be read on it.
    vmax = 1.6 * max(float(wrong.max()), 0.01)
    axes.pcolormesh(edges[1:], top, wrong, cmap="Oranges", vmin=0, vmax=vmax, edgecolors="white", linewidth=1)
    middles = (edges[:-1] + edges[1:]) / 2
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            colour = "white" if column == 0 and shares[row, 0] > 0.6 else "#222222"
            axes.text(
                middles[column], row, text, ha="center", va="center", fontsize=8.5, color=colour, parse_math=False
            )
    axes.set_xticks(middles, columns, fontsize=9)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(worst)), [names[confused.truth] for confused in worst], fontsize=9, parse_math=False)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_ylabel(f"the {len(worst)} classes of {len(matrix)} that are recognised worst")
    return figure


def _shade(axes: Any, shares: np.ndarray, is_right: np.ndarray) -> Any:
    """Lays what is right in blue and mistakes in orange; returns the image of the mistakes."""
    nothing = np.isnan(shares)
    wrong = np.ma.masked_array(shares, nothing | is_right)
    right = np.ma.masked_array(shares, nothing | ~is_right)
    clear = {"bad": (0.0, 0.0, 0.0, 0.0)}
    axes.set_facecolor("#dddddd")
    most = max(float(wrong.max()), 0.01) if wrong.count() else 0.01
    image = axes.imshow(wrong, cmap=colormaps["Oranges"].with_extremes(**clear), vmin=0, vmax=most)
    axes.imshow(right, cmap=colormaps["Blues"].with_extremes(**clear), vmin=0, vmax=1)
    axes.set_xticks(np.arange(len(shares) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(shares) + 1) - 0.5, minor=True)
    axes.grid(True, which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    return image


def _ordinal(rank: int) -> str:
    return {1: "1st", 2: "2nd", 3: "3rd"}.get(rank, f"{rank}th")
