"""Amplitude of activations, block by block: the paper's figure 2.

In: records of forward passes. Out: numbers for each block, and a figure. With pre-norm, nothing limits what the
branches add to the main path, so amplitudes grow from block to block. With post-norm, the learned weight of a branch's
norm determines how much the branch adds.

The amplitude is the average channel variance: the variance of each channel over all positions of all images, averaged
over the channels.

Source: Liu et al., Swin Transformer V2, section 3.2 and figure 2; the measure: Brock et al., Characterizing signal
propagation to close the performance gap in unnormalized ResNets (arXiv 2101.08692), section 3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from swinv2.drawing.paper import open_figure, printable, save
from swinv2.inspect.observation import Observation

_COLOURS = ("#2166ac", "#d6604d", "#4d9221", "#7b3294")
_GREY = "#999999"


@dataclass(frozen=True)
class Amplitude:
    """The amplitudes at one block.

    Attributes:
        stage, block: Stage and block, counted from 1; both are 0 for the patch embedding.
        main: Amplitude of the map after the block.
        attention, mlp: Amplitude of what each branch adds to the map; None for the patch embedding.
    """

    stage: int
    block: int
    main: float
    attention: float | None
    mlp: float | None

    @property
    def position(self) -> str:
        """Stage and block, in words."""
        return "patches" if self.stage == 0 else f"{self.stage}.{self.block}"


class Variance:
    """Average channel variance of several maps, added one by one."""

    def __init__(self) -> None:
        self.count = 0
        self.sum: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, feature_map: Float[Tensor, "B H W C"]) -> None:
        """Adds a map."""
        tokens = feature_map.double().flatten(0, -2)
        self.count += len(tokens)
        self.sum = self.sum + tokens.sum(0)
        self.squares = self.squares + tokens.square().sum(0)

    def value(self) -> float:
        """The average channel variance of all added maps; 0 if there are none."""
        if not self.count:
            return 0.0
        mean = torch.as_tensor(self.sum) / self.count
        return float((torch.as_tensor(self.squares) / self.count - mean.square()).clamp(min=0).mean())


class Amplitudes:
    """The amplitudes of a model, over all added images."""

    def __init__(self) -> None:
        self._variances: dict[tuple[int, int], dict[str, Variance]] = {}

    def add(self, observation: Observation) -> None:
        """Adds the record of a forward pass."""
        self._add((0, 0), main=observation.embedded)
        for trace in observation.blocks:
            self._add((trace.stage, trace.block), main=trace.after, attention=trace.attention, mlp=trace.mlp)

    def _add(self, position: tuple[int, int], **maps: Tensor) -> None:
        variances = self._variances.setdefault(position, {name: Variance() for name in maps})
        for name, feature_map in maps.items():
            variances[name].add(feature_map)

    def measured(self) -> list[Amplitude]:
        """The amplitudes at the patch embedding and at every block, in order."""
        measured: list[Amplitude] = []
        for (stage, block), found in self._variances.items():
            values = {name: variance.value() for name, variance in found.items()}
            measured.append(Amplitude(stage, block, values["main"], values.get("attention"), values.get("mlp")))
        return measured


def draw_amplitudes(
    models: Mapping[str, Sequence[Amplitude]], path: Path, title: str = "", has_branches: bool = True
) -> None:
    """Draws amplitudes block by block, on a logarithmic axis.

    Args:
        models: Amplitudes by the name of their model; all models have the same depths. Values of 0, which the branches
            of a fresh model have, are left out.
        path: The PNG file; an existing file is replaced.
        title: Title of the figure.
        has_branches: Whether to draw, thin and dashed, what the branches add.
    """
    positions = [amplitude.position for amplitude in next(iter(models.values()))]
    stages = [amplitude.stage for amplitude in next(iter(models.values()))]
    figure = open_figure(max(6.0, 1.6 + 0.36 * len(positions)), 4.2)
    axes: Any = figure.subplots()
    for colour, (name, measured) in zip(cycle(_COLOURS), models.items(), strict=False):
        lead = f"{printable(name, 40)}: " if len(models) > 1 else ""
        label = f"{lead}map after the block" if has_branches else printable(name, 60)
        _line(axes, [each.main for each in measured], label, color=colour, marker="o")
        if has_branches:
            thin: dict[str, Any] = {"linewidth": 1.1, "color": colour if len(models) > 1 else _COLOURS[1]}
            for branch, word, marker, line in (("attention", "attention", "^", "--"), ("mlp", "MLP", "s", ":")):
                values = [getattr(each, branch) for each in measured]
                _line(axes, values, f"{lead}added by {word}", marker=marker, linestyle=line, **thin)
    axes.set_yscale("log")
    axes.set_xticks(range(len(positions)), positions, rotation=90 if len(positions) > 12 else 0, fontsize=8)
    axes.set(xlabel="block (stage.block)", ylabel="amplitude: average channel variance")
    axes.grid(True, axis="y", color="#e4e4e4", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    for index in range(1, len(stages)):
        if stages[index] != stages[index - 1]:
            axes.axvline(index - 0.5, color=_GREY, linewidth=0.8)
            position = {"transform": axes.get_xaxis_transform(), "va": "top", "fontsize": 8.5, "color": "#666666"}
            axes.text(index - 0.4, 1.0, f"stage {stages[index]}", **position)
    if title:
        axes.set_title(printable(title, 100), fontsize=10.5, pad=12, parse_math=False)
    columns = 3 if len(models) == 1 else 2
    figure.legend(frameon=False, fontsize=8.5, loc="outside lower center", ncols=columns)
    save(figure, path)


def _line(axes: Any, values: Sequence[float | None], label: str, **options: Any) -> None:
    points = [(index, value) for index, value in enumerate(values) if value]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, markersize=4, **options)
