"""A figure of the average precision of each class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from swinv2.drawing.paper import open_figure, printable, save

MOST_CLASSES = 50
"""Largest number of classes for which all are drawn."""


def draw_average_precisions(precisions: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draws a bar for each class, the best one at the top; of more than `MOST_CLASSES`, the worst ones. A class of NaN,
    which no image has, is not drawn.

    Args:
        precisions: Average precision of each class, 0 to 1.
        names: Names of the classes.
        path: The PNG file; an existing file is replaced.

    Raises:
        ValueError: The number of names is not that of the classes, or every class is NaN.
    """
    if len(precisions) != len(names) or np.isnan(precisions).all():
        raise ValueError(f"there are {len(names)} names for {len(precisions)} classes; expected one each, not all NaN.")
    save(_figure_of_precisions(precisions, names), path)


def _figure_of_precisions(precisions: np.ndarray, names: Sequence[str]) -> Figure:
    """The figure of the average precisions; of the worst classes if there are many."""
    known = np.flatnonzero(~np.isnan(precisions))
    worst = known[np.argsort(precisions[known], kind="stable")][:MOST_CLASSES]
    figure = open_figure(7.0, 0.25 * len(worst) + 1.0)
    axes: Any = figure.add_subplot()
    bars = axes.barh(range(len(worst)), precisions[worst], color="#2166ac", height=0.75)
    axes.bar_label(bars, [f" {precision:.0%}" for precision in precisions[worst]], fontsize=8)
    axes.set_yticks(
        range(len(worst)), [printable(str(names[index]), 32) for index in worst], fontsize=8, parse_math=False
    )
    axes.set_xlim(0, 1.08)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.spines[["top", "right"]].set_visible(False)
    title = f"mean average precision {np.nanmean(precisions):.1%}"
    axes.set_title(f"{title}; the worst {len(worst)} of {len(known)} classes" if len(worst) < len(known) else title)
    axes.set_xlabel("average precision")
    return figure
