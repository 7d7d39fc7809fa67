"""Curves of a training, from the log of transformers' Trainer."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from swinv2.drawing.paper import open_figure, printable, save

_TRAINING, _EVALUATION = "#2166ac", "#d6604d"

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
    save(_figure_of_curves(against, panels, title), path)


class _PlainLogFormatter(LogFormatter):
    """0.6 where matplotlib writes 6 x 10^-1; it still decides which ticks have room for a number."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _figure_of_curves(against: str, panels: dict[str, dict[str, np.ndarray]], title: str) -> Figure:
    heights = [_TALL[panel] for panel in panels]
    figure = open_figure(8.5, sum(heights) + 0.8)
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
        figure.suptitle(printable(title, 90), fontsize=12, parse_math=False)
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
