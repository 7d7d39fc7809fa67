"""Draws the labels of a video over time.

In: a `Timeline`, and the names of the labels. Out: a PNG file: frames of the video in a row, and below, on the same
axis of seconds, the probability of the most probable labels. This module runs no model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import PercentFormatter

from swinv2.drawing.paper import fit_tile, open_figure, printable, save
from swinv2.predict.videos import Timeline
from swinv2.video.reading import iterate_frames
from swinv2.video.sampling import uniform_times

WIDTH, FRAME_HEIGHT, CURVES_HEIGHT = 10.0, 1.1, 2.6
"""Width of the row of frames, its height for frames of usual shapes, and the height of the curves, in inches."""

_FEWEST, _MOST = 2, 16
"""Frames in the row."""


def draw_timeline(timeline: Timeline, labels: Sequence[str], path: Path, top_k: int = 5) -> None:
    """Draws the labels of a video over time.

    Args:
        timeline: The probabilities along the video.
        labels: Names of the labels.
        path: The PNG file; an existing file is replaced.
        top_k: Number of labels: those that are most probable at some time.

    Raises:
        VideoError: The video cannot be used.
    """
    info = timeline.info
    height, width = info.size
    number = min(max(round(WIDTH * height / (FRAME_HEIGHT * width)), _FEWEST), _MOST)
    row_height = min(WIDTH / number * height / width, 3 * FRAME_HEIGHT)
    figure = open_figure(WIDTH + 2.6, row_height + CURVES_HEIGHT + 0.7)
    both: Any = figure.subplots(2, 1, sharex=True, height_ratios=[row_height, CURVES_HEIGHT])
    row, curves = both
    slot = info.seconds / number
    for frame, indices in iterate_frames(info.path, uniform_times(info, number), info):
        for index in indices:
            row.imshow(fit_tile(frame), extent=(index * slot, (index + 1) * slot, 0, 1), aspect="auto")
    row.set(ylim=(0, 1), yticks=[])
    row.tick_params(bottom=False)
    row.set_title(printable(info.path.name, 90), fontsize=10, loc="left", parse_math=False)
    highest = timeline.probabilities.max(0)
    chosen = np.argsort(-highest, kind="stable")[:top_k]
    # The label that is the most probable one on average comes first in the legend.
    for index in sorted(map(int, chosen), key=lambda index: -float(timeline.probabilities[:, index].mean())):
        name = printable(labels[index], 28)
        curves.plot(timeline.seconds, timeline.probabilities[:, index], marker="o", markersize=3, label=name)
    top = min(1.1 * max(float(highest.max()), 0.05), 1.02)
    curves.set(xlim=(0, info.seconds), ylim=(-0.02 * top, top), xlabel="seconds", ylabel="probability")
    curves.yaxis.set_major_formatter(PercentFormatter(1.0))
    curves.grid(alpha=0.3)
    legend = curves.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8.5, frameon=False, borderaxespad=0)
    for text in legend.get_texts():
        text.set_parse_math(False)
    save(figure, path)
