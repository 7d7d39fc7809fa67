"""Pictures of a training: its curves, what a pre-trained model draws, and where a classifier errs.

In: the log of transformers' Trainer, tensors of images, counts, pictures with their names. Out: PNG files, each the
whole or not there. This module trains and evaluates nothing, opens no data set, and knows neither a model nor a run's
folders; what is to be drawn is brought to it.

matplotlib draws, through its object-oriented interface: no window, no pyplot, no state that others would notice. What
can be computed without it is in functions that return arrays: `curves`, `reconstruction_rows`, `most_confused`.
"""

import math
import os
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, PercentFormatter
from PIL import Image
from torch import Tensor

from swinv2.simmim import local_statistics
from swinv2.train.augment import Pixels

# A power of two: inches are then exact, and no sheet loses its last row of pixels to rounding.
_DPI = 128

_TRAINING, _EVALUATION, _GREY = "#2166ac", "#d6604d", 128

_PANELS: dict[str, dict[str, str]] = {
    "loss": {"loss": "training", "eval_loss": "evaluation"},
    "accuracy in %": {"eval_top1": "top-1", "eval_top5": "top-5"},
    "learning rate": {"learning_rate": "learning rate"},
    "gradient norm": {"grad_norm": "gradient norm"},
}
"""What each panel is called, and which entries of the log it shows under which names."""

_TALL = {"loss": 3.2, "accuracy in %": 2.6, "learning rate": 1.5, "gradient norm": 1.5}

MANY_POINTS = 60
"""With more points than these a curve is drawn thin, and a smoothed one over it."""

MOST_MISTAKES = 25
"""More mistakes than these are not drawn."""

MOST_NUMBERS, MOST_CLASSES = 20, 50
"""Up to how many classes a confusion matrix has numbers in its cells, and is drawn as a matrix at all."""

_TILE = 192


@dataclass(frozen=True)
class Mistake:
    """A picture that a classifier took for something else.

    Attributes:
        picture: Its pixels (H, W, 3), eight bits.
        truth: Name of its class.
        answer: Name of the class that it was taken for.
        probability: Of the answer, from 0 to 1.
    """

    picture: np.ndarray
    truth: str
    answer: str
    probability: float


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


# Curves


def curves(history: Sequence[Mapping[str, float]]) -> tuple[str, dict[str, dict[str, Float[np.ndarray, "points 2"]]]]:
    """Sorts the log of a training into panels.

    Entries that are missing, NaN or infinite are left out, and so are gradient norms of 0, which a logarithmic axis
    does not have. Accuracies become percent.

    Args:
        history: `TrainerState.log_history`.

    Returns:
        What the curves are drawn against, "epoch", or "step" if an entry does not know its epoch; and of each panel
        that has data the points of its curves, by the name that they have in the log.

    Raises:
        ValueError: An accuracy is no share from 0 to 1.
    """
    keys = [key for series in _PANELS.values() for key in series]
    entries = [entry for entry in history if any(_number(entry, key) is not None for key in keys)]
    epochs = [_number(entry, "epoch") for entry in entries]
    against = "epoch" if None not in epochs and any(epochs) else "step"
    panels: dict[str, dict[str, np.ndarray]] = {}
    for panel, series in _PANELS.items():
        for key in series:
            points = [(_number(entry, against), _number(entry, key)) for entry in entries]
            points = [(x, y) for x, y in points if x is not None and y is not None]
            if panel == "accuracy in %":
                points = [(x, 100 * _share(key, y)) for x, y in points]
            elif panel == "gradient norm":
                points = [(x, y) for x, y in points if y > 0]
            if points:
                panels.setdefault(panel, {})[key] = np.array(points, np.float64)
    return against, panels


def _number(entry: Mapping[str, float], key: str) -> float | None:
    value = entry.get(key)
    return None if value is None or not math.isfinite(value) else float(value)


def _share(key: str, value: float) -> float:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{key} is {value} in the history; expected a share from 0 to 1.")
    return value


def smoothed(values: Float[np.ndarray, "points"], window: int) -> Float[np.ndarray, "points"]:
    """The mean of the points around each point.

    At the beginning as many count after a point as there are before it, so that a steep fall keeps its height; at the
    end those that there are.

    Args:
        values: The points.
        window: How many of them count at most.

    Example:

        >>> import numpy as np
        >>> smoothed(np.array([0.0, 3.0, 0.0, 3.0, 0.0]), 3).tolist()
        [0.0, 1.0, 2.0, 1.0, 1.5]
    """
    index = np.arange(len(values))
    before = np.minimum(window // 2, index)
    after = np.minimum(before, len(values) - 1 - index)
    total = np.concatenate([[0.0], np.cumsum(values)])
    return (total[index + after + 1] - total[index - before]) / (before + 1 + after)


def draw_curves(history: Sequence[Mapping[str, float]], path: Path, title: str = "") -> None:
    """Draws the losses, accuracies, learning rate and gradient norm of a training, each in a panel if there is any.

    Of training losses and gradient norms that are more than `MANY_POINTS`, a smoothed curve is drawn over the thin one
    of the points. What else is in the log, as speed, is not drawn.

    Args:
        history: `TrainerState.log_history`: dictionaries with "step" or "epoch" and any of "loss", "eval_loss",
            "eval_top1", "eval_top5" (shares from 0 to 1), "learning_rate" and "grad_norm". Missing, NaN and infinite
            entries are skipped.
        path: The PNG file; one that exists is replaced.
        title: What to write above.

    Raises:
        ValueError: There is nothing to draw, or an accuracy is no share.
    """
    against, panels = curves(history)
    if not panels:
        names = ", ".join(key for series in _PANELS.values() for key in series)
        raise ValueError(
            f"none of the history's {len(history)} entries can be drawn; expected entries with 'step' or 'epoch' and a "
            f"finite number for any of {names}."
        )
    _save(_figure_of_curves(against, panels, title), path)


class _PlainLogFormatter(LogFormatter):
    """0.6 where matplotlib writes 6 x 10^-1; it still decides which ticks have room for a number."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _figure_of_curves(against: str, panels: dict[str, dict[str, np.ndarray]], title: str) -> Figure:
    heights = [_TALL[panel] for panel in panels]
    figure = _figure(8.5, sum(heights) + 0.8)
    grid: Any = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)
    for axes, (panel, series) in zip(grid[:, 0], panels.items(), strict=True):
        if panel == "gradient norm":
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(_PlainLogFormatter())
            axes.yaxis.set_minor_formatter(_PlainLogFormatter())
        for key, points in series.items():
            _draw_series(axes, key, _PANELS[panel][key], points)
        if len(_PANELS[panel]) > 1:
            axes.legend(frameon=False, fontsize=9)
        if panel == "learning rate":
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
            axes.set_ylim(bottom=0)
        axes.set_ylabel(panel)
        axes.grid(True, color="#e4e4e4", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.015)
    grid[-1, 0].set_xlabel(against)
    figure.align_ylabels()
    if title:
        figure.suptitle(_printable(title, 90), fontsize=12, parse_math=False)
    return figure


def _draw_series(axes: Any, key: str, name: str, points: np.ndarray) -> None:
    x, y = points.T
    if key.startswith("eval_"):
        best = f"lowest {y.min():.4g}" if key == "eval_loss" else f"best {y.max():.2f}%"
        colour = _TRAINING if key == "eval_top5" else _EVALUATION
        # Dots that would touch each other are a thick line, and say nothing.
        size = 4.5 if len(y) <= MANY_POINTS else 0.0
        axes.plot(x, y, color=colour, linewidth=1.6, marker="o", markersize=size, label=f"{name}, {best}", zorder=3)
        return
    marker = {"marker": "o", "markersize": 4.5} if len(y) == 1 else {}
    if key == "learning_rate" or len(y) <= MANY_POINTS:
        axes.plot(x, y, color=_TRAINING, linewidth=1.4, label=name, **marker)
        return
    window = max(len(y) // 40, 5)
    # On a logarithmic axis the middle of two points is their geometric mean.
    middle = np.exp(smoothed(np.log(y), window)) if key == "grad_norm" else smoothed(y, window)
    axes.plot(x, y, color=_TRAINING, linewidth=0.6, alpha=0.35, label=name)
    axes.plot(x, middle, color=_TRAINING, linewidth=1.8, label=f"{name}, smoothed")


# What a model draws


def reconstruction_rows(
    images: Float[Tensor, "B channels H W"],
    reconstruction: Float[Tensor, "B channels H W"],
    mask_of_pixels: Bool[Tensor, "B 1 H W"],
    pixels: Pixels,
    norm_targets: int = 0,
) -> UInt8[np.ndarray, "B 4 H W 3"]:
    """What `draw_reconstructions` shows of each image: the input, the input with grey where it is masked, the input
    with the drawing where it is masked, and the drawing.

    Args:
        images: Normalised images.
        reconstruction: What the model drew. NaN becomes black.
        mask_of_pixels: True for masked pixels.
        pixels: Mean and deviation with which the images were normalised. Values beyond black and white are clipped.
        norm_targets: If not 0, the model draws pixels less the mean of the square of this side around them, over its
            deviation. Both are taken from `images`, also where they are masked, so that the brightness and the
            contrast of such a drawing are the original's and not the model's merit.

    Returns:
        Pixels of eight bits. Images of one channel, and the first channel of two, are grey; of more than three
        channels the first three are red, green and blue.

    Raises:
        ValueError: The shapes do not belong together.
    """
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != pixels.channels or 0 in shape:
        raise ValueError(f"images are {shape}; expected (B, {pixels.channels}, H, W), none of them 0.")
    if tuple(reconstruction.shape) != shape:
        raise ValueError(f"the reconstruction is {tuple(reconstruction.shape)}; expected {shape}, as the images.")
    if tuple(mask_of_pixels.shape) != (shape[0], 1, *shape[2:]) or mask_of_pixels.dtype != torch.bool:
        raise ValueError(
            f"the mask is {tuple(mask_of_pixels.shape)} of {mask_of_pixels.dtype}; expected "
            f"{(shape[0], 1, *shape[2:])} of torch.bool."
        )
    images, drawing, mask = (tensor.detach().cpu() for tensor in (images, reconstruction, mask_of_pixels))
    images, drawing = images.float(), drawing.float()
    if norm_targets:
        mean, deviation = local_statistics(images, norm_targets)
        drawing = drawing * deviation + mean
    images, drawing = (_eight_bits(tensor, pixels) for tensor in (images, drawing))
    grey = torch.full_like(images, _GREY)
    columns = (images, torch.where(mask, grey, images), torch.where(mask, drawing, images), drawing)
    return torch.stack(columns, 1).permute(0, 1, 3, 4, 2).numpy()


def _eight_bits(images: Tensor, pixels: Pixels) -> Tensor:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (pixels.mean, pixels.std))
    values = images * std + mean
    values = values[:, :3] if values.shape[1] >= 3 else values[:, :1].expand(-1, 3, -1, -1)
    return (values.nan_to_num(0.0, 1.0, 0.0).clamp(0.0, 1.0) * 255).round().to(torch.uint8)


def draw_reconstructions(
    images: Float[Tensor, "B channels H W"],
    reconstruction: Float[Tensor, "B channels H W"],
    mask_of_pixels: Bool[Tensor, "B 1 H W"],
    path: Path,
    pixels: Pixels,
    norm_targets: int = 0,
    names: Sequence[str] = (),
) -> None:
    """Draws a row for each image: the input, the masked input, the drawing in the masked places, and the whole drawing.

    No pixel is resampled: images with a longer side below 192 pixels are enlarged, every pixel to a square of pixels.
    Images of one channel, and the first channel of two, are grey; of more than three channels the first three are
    red, green and blue.

    Args:
        images: Normalised images.
        reconstruction: What the model drew.
        mask_of_pixels: True for masked pixels, which are grey in the second column.
        path: The PNG file; one that exists is replaced.
        pixels: Mean and deviation with which the images were normalised.
        norm_targets: Side of the square by whose statistics the model's targets were normalised, 0 if they were not;
            see `reconstruction_rows`.
        names: What to write above each row; nothing if empty.

    Raises:
        ValueError: The shapes do not belong together, or there are not as many names as images.
    """
    rows = reconstruction_rows(images, reconstruction, mask_of_pixels, pixels, norm_targets)
    if names and len(names) != len(rows):
        raise ValueError(f"there are {len(names)} names for {len(rows)} images; give as many, or none.")
    factor = -(-_TILE // max(rows.shape[2:4]))
    rows = rows.repeat(factor, 2).repeat(factor, 3)
    height, width = rows.shape[2:4]
    gap, margin, head, caption, skip = (10, 16, 26, 22, 16) if names else (10, 16, 26, 0, 10)
    across, down = max(width, 160) + gap, caption + height + skip
    sheet = _Sheet(2 * margin + head + len(rows) * down - skip, 2 * margin + 4 * across - gap)
    for column, name in enumerate(("input", "masked", "drawn where masked", "drawn")):
        sheet.write(margin + column * across, margin, name, weight="bold")
    for row, tiles in enumerate(rows):
        top = margin + head + row * down
        if names:
            sheet.write(margin, top, _printable(names[row], (4 * across - gap) // 9))
        for column, tile in enumerate(tiles):
            sheet.lay(margin + column * across, top + caption, tile)
    _save(sheet.figure(), path)


# Where a classifier errs


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
    names = [_printable(name, 24) for name in names or map(str, range(len(matrix)))]
    draw = _figure_of_matrix if len(matrix) <= MOST_CLASSES else _figure_of_worst
    figure = draw(matrix, names)
    total = matrix.sum()
    title = f"{matrix.trace() / total:.1%} of {total:,.0f} pictures right"
    figure.axes[0].set_title(title, fontsize=12, pad=12)
    _save(figure, path, cut=True)


def _figure_of_matrix(matrix: np.ndarray, names: list[str]) -> Figure:
    classes = len(matrix)
    counts = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, counts, out=np.full_like(matrix, np.nan), where=counts > 0)
    is_right = np.eye(classes, dtype=bool)
    side = max(3.2, (0.45 if classes <= MOST_NUMBERS else 0.27) * classes)
    # The matrix fills the figure, and the words stand outside: the file is cut to what there is, see `_save`.
    figure = Figure((side, side), dpi=_DPI, facecolor="white")
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
    figure = _figure(widths.sum() + 2.4, 0.29 * len(worst) + 1.2)
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


def draw_mistakes(mistakes: Sequence[Mistake], path: Path) -> None:
    """Draws pictures that a classifier took for something else, with captions such as "cat -> dog 97%".

    Small pictures are enlarged, every pixel to a square of pixels; large ones are made smaller.

    Args:
        mistakes: The pictures; the first `MOST_MISTAKES` are drawn, row by row in this order.
        path: The PNG file; one that exists is replaced.

    Raises:
        ValueError: There is none, or a picture is no array (H, W, 3) of eight bits.
    """
    if not mistakes:
        raise ValueError("there is no mistake to draw; expected at least one.")
    mistakes = mistakes[:MOST_MISTAKES]
    captions = [
        textwrap.wrap(
            f"{_printable(mistake.truth, 24)} -> {_printable(mistake.answer, 24)} {mistake.probability:.0%}", 22
        )
        for mistake in mistakes
    ]
    gap, margin, line = 16, 16, 20
    columns = min(5, len(mistakes))
    rows = [range(first, min(first + columns, len(mistakes))) for first in range(0, len(mistakes), columns)]
    heights = [_TILE + 4 + line * max(len(captions[index]) for index in row) + gap for row in rows]
    sheet = _Sheet(2 * margin + sum(heights) - gap, 2 * margin + columns * (_TILE + gap) - gap)
    top = margin
    for row, height in zip(rows, heights, strict=True):
        for column, index in enumerate(row):
            left = margin + column * (_TILE + gap)
            tile = _fitted(mistakes[index].picture)
            # In the middle, and on its caption.
            sheet.lay(left + (_TILE - tile.shape[1]) // 2, top + _TILE - tile.shape[0], tile)
            for number, text in enumerate(captions[index]):
                sheet.write(left + _TILE // 2, top + _TILE + 4 + number * line, text, ha="center")
        top += height
    _save(sheet.figure(), path)


def _fitted(picture: np.ndarray) -> np.ndarray:
    """The picture with a longer side of at most a tile, and of more than half of it."""
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or 0 in picture.shape:
        raise ValueError(f"a picture is {picture.shape} of {picture.dtype}; expected (H, W, 3) of uint8.")
    longest = max(picture.shape[:2])
    if longest <= _TILE:
        return picture.repeat(_TILE // longest, 0).repeat(_TILE // longest, 1)
    height, width = (max(round(length * _TILE / longest), 1) for length in picture.shape[:2])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


# Paper and pen


class _Sheet:
    """White paper on which pictures lie pixel by pixel, none resampled, and words beside them."""

    def __init__(self, height: int, width: int) -> None:
        self.paper = np.full((height, width, 3), 255, np.uint8)
        self.words: list[tuple[int, int, str, dict[str, Any]]] = []

    def lay(self, left: int, top: int, picture: np.ndarray) -> None:
        """Lays a picture (H, W, 3), with a thin line around it: many pictures are white at their edges."""
        bottom, right = top + picture.shape[0], left + picture.shape[1]
        self.paper[top - 1 : bottom + 1, left - 1 : right + 1] = 200
        self.paper[top:bottom, left:right] = picture

    def write(self, left: int, top: int, text: str, **options: Any) -> None:
        """Writes a line; `options` are those of matplotlib's text."""
        self.words.append((left, top, text, options))

    def figure(self) -> Figure:
        """The sheet as matplotlib has it."""
        height, width = self.paper.shape[:2]
        figure = Figure((width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
        figure.figimage(self.paper, origin="upper")
        for left, top, text, options in self.words:
            figure.text(left / width, 1 - top / height, text, va="top", fontsize=8.5, parse_math=False, **options)
        return figure


def _figure(width: float, height: float) -> Figure:
    return Figure((width, height), dpi=_DPI, facecolor="white", layout="constrained")


def _printable(name: str, most: int) -> str:
    """A name on one line, of so many letters at most; what is no text, as in names of files, becomes "?"."""
    name = " ".join(name.encode("utf-8", "replace").decode("utf-8").split())
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"


def _save(figure: Figure, path: Path, cut: bool = False) -> None:
    """Writes a PNG file, the whole or nothing; `cut` to what is drawn, also beyond the figure's edges."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file, warnings.catch_warnings():
            # Names may be in a script that the font has not; there are boxes then, which is no reason for a message.
            warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
            canvas = FigureCanvasAgg(figure)
            if cut:
                canvas.print_figure(file, _DPI, "white", format="png", bbox_inches="tight", pad_inches=0.12)
            else:
                # Not print_figure, whose margins the user's matplotlibrc may change: pixels are to stay where they are.
                canvas.print_png(file)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
