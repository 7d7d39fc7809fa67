"""Curves of a training, from the log of transformers' Trainer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from swinv2.drawing.paper import open_figure, printable, save

_TRAINING, _EVALUATION = "#2166ac", "#d6604d"

_PANELS: dict[str, dict[str, str]] = {
    "loss": {"loss": "training", "eval_loss": "evaluation"},
    "accuracy in %": {
        "eval_top1": "top-1",
        "eval_top5": "top-5",
        "eval_mAP": "mAP",
        "eval_f1": "F1",
        "eval_mIoU": "mIoU",
        "eval_AP": "AP",
        "eval_AP50": "AP50",
    },
    "learning rate": {"learning_rate": "learning rate"},
    "gradient norm": {"grad_norm": "gradient norm"},
}
"""For each panel, its keys of the log and their names in the figure."""

_TALL = {"loss": 3.2, "accuracy in %": 2.6, "learning rate": 1.5, "gradient norm": 1.5}

MANY_POINTS = 60
"""A curve with more points than these is drawn thin, with a smoothed curve over it."""


def curves(history: Sequence[Mapping[str, float]]) -> tuple[str, dict[str, dict[str, Float[np.ndarray, "points 2"]]]]:
    """Sorts the log of a training into panels.

    Missing, NaN and infinite values are left out, also gradient norms of 0, which a logarithmic axis cannot show.
    Accuracies become percentages.

    Args:
        history: `TrainerState.log_history`.

    Returns:
        The horizontal axis: "epoch", or "step" if an entry has no epoch. For each panel with data, the points of its
        curves by their key in the log.
    """
    keys = [key for series in _PANELS.values() for key in series]
    entries = [entry for entry in history if any(key in entry for key in keys)]
    against = "epoch" if all(entry.get("epoch") is not None for entry in entries) else "step"
    panels: dict[str, dict[str, np.ndarray]] = {}
    for panel, series in _PANELS.items():
        for key in series:
            # None becomes NaN.
            points = np.array([(entry.get(against), entry.get(key)) for entry in entries], np.float64).reshape(-1, 2)
            points = points[np.isfinite(points).all(1)]
            if panel == "gradient norm":
                points = points[points[:, 1] > 0]
            if len(points):
                panels.setdefault(panel, {})[key] = points * (1, 100) if panel == "accuracy in %" else points
    return against, panels


def smoothed(values: Float[np.ndarray, "points"], window: int) -> Float[np.ndarray, "points"]:
    """The mean of the points around each point.

    Near the beginning, as many points count after a point as exist before it, so that a steep fall keeps its height;
    near the end, all remaining points count. A mean has at most `window` points.

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
    """Draws the losses, accuracies, learning rate and gradient norm of a training, in a panel each.

    With more than `MANY_POINTS` points, training losses and gradient norms get a smoothed curve over the thin one.
    Other values of the log, for example speed, are not drawn.

    Args:
        history: See `curves`.
        path: The PNG file; an existing file is replaced.
        title: The title of the figure.

    Raises:
        ValueError: There is nothing to draw.
    """
    against, panels = curves(history)
    if not panels:
        names = ", ".join(key for series in _PANELS.values() for key in series)
        raise ValueError(
            f"none of the history's {len(history)} entries can be drawn; expected entries with 'step' or 'epoch' and a "
            f"finite number for any of {names}."
        )
    save(_figure_of_curves(against, panels, title), path)


def _figure_of_curves(against: str, panels: dict[str, dict[str, np.ndarray]], title: str) -> Figure:
    """The figure of the curves, a panel below the other."""
    heights = [_TALL[panel] for panel in panels]
    figure = open_figure(8.5, sum(heights) + 0.8)
    grid: Any = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)
    for axes, (panel, series) in zip(grid[:, 0], panels.items(), strict=True):
        for key, points in series.items():
            _draw_series(axes, key, _PANELS[panel][key], points)
        if panel == "gradient norm":
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        if panel == "learning rate":
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
            axes.set_ylim(bottom=0)
        if len(_PANELS[panel]) > 1:
            axes.legend(frameon=False, fontsize=9)
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
    """Draws one curve of a training into its panel."""
    x, y = points.T
    # Dots that touch each other would look like a thick line.
    dots = {"marker": "o", "markersize": 4.5} if len(y) <= MANY_POINTS else {}
    if key.startswith("eval_"):
        best = f"lowest {y.min():.4g}" if key == "eval_loss" else f"best {y.max():.2f}%"
        colour = _TRAINING if key in ("eval_top5", "eval_f1") else _EVALUATION
        axes.plot(x, y, color=colour, linewidth=1.6, label=f"{name}, {best}", zorder=3, **dots)
    elif key == "learning_rate" or len(y) <= MANY_POINTS:
        axes.plot(x, y, color=_TRAINING, linewidth=1.4, label=name, **(dots if len(y) == 1 else {}))
    else:
        window = max(len(y) // 40, 5)
        # On a logarithmic axis the middle of two points is their geometric mean.
        middle = np.exp(smoothed(np.log(y), window)) if key == "grad_norm" else smoothed(y, window)
        axes.plot(x, y, color=_TRAINING, linewidth=0.6, alpha=0.35, label=name)
        axes.plot(x, middle, color=_TRAINING, linewidth=1.8, label=f"{name}, smoothed")
