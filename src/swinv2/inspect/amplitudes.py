"""Amplitude of activations, block by block: the paper's figure 2.

In: records of forward passes. Out: numbers for each block, and a figure. With pre-norm, nothing limits what the
branches add to the main path, so amplitudes grow from block to block. With post-norm, the learned weight of a branch's
norm determines how much the branch adds.

The amplitude is the average channel variance: the variance of each channel over all positions of all images, averaged
over the channels.

Source: Liu et al., Swin Transformer V2, section 3.2 and figure 2; the measure: Brock et al., Characterizing signal
propagation to close the performance gap in unnormalized ResNets (arXiv 2101.08692), section 3.
"""

from collections import defaultdict
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
    attention: float | None = None
    mlp: float | None = None

    @property
    def position(self) -> str:
        """Stage and block, in words."""
        return "patches" if self.stage == 0 else f"{self.stage}.{self.block}"


class Variance:
    """Average channel variance of several maps, added one by one."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, feature_map: Float[Tensor, "B *map C"]) -> None:
        """Adds the channel variances of a map to the average."""
        tokens = feature_map.double().flatten(0, -2)
        self.count += len(tokens)
        self.sum = self.sum + tokens.sum(0)
        self.squares = self.squares + tokens.square().sum(0)

    def value(self) -> float:
        """The average channel variance of all added maps."""
        return float((self.squares / self.count - (self.sum / self.count).square()).clamp(min=0).mean())


class Amplitudes:
    """The amplitudes of a model, over all added images or videos."""

    def __init__(self) -> None:
        # By stage and block, both 0 for the patch embedding, and by the name of the amplitude.
        self._variances: defaultdict[tuple[int, int], defaultdict[str, Variance]]
        self._variances = defaultdict(lambda: defaultdict(Variance))

    def add(self, observation: Observation) -> None:
        """Adds the record of a forward pass."""
        self._variances[0, 0]["main"].add(observation.embedded)
        for trace in observation.blocks:
            of_block = self._variances[trace.stage, trace.block]
            of_block["main"].add(trace.after)
            of_block["attention"].add(trace.attention)
            of_block["mlp"].add(trace.mlp)

    def measured(self) -> list[Amplitude]:
        """The amplitudes at the patch embedding and at every block, in order."""
        return [
            Amplitude(stage, block, **{name: variance.value() for name, variance in variances.items()})
            for (stage, block), variances in self._variances.items()
        ]


def draw_amplitudes(
    models: Mapping[str, Sequence[Amplitude]], path: Path, title: str, has_branches: bool = True
) -> None:
    """Draws amplitudes block by block, on a logarithmic axis.

    Args:
        models: Amplitudes by the name of their model; all models have the same depths. Values of 0, which the branches
            of a fresh model have, are left out.
        path, title: The PNG file, which may exist, and the figure's title.
        has_branches: Whether to draw, thin and dashed, what the branches add.
    """
    blocks = next(iter(models.values()))
    positions, stages = [each.position for each in blocks], [each.stage for each in blocks]
    figure = open_figure(max(6.0, 1.6 + 0.36 * len(positions)), 4.2)
    axes: Any = figure.subplots()
    for colour, (name, measured) in zip(cycle(_COLOURS), models.items(), strict=False):
        lead = f"{printable(name, 40)}: " if len(models) > 1 else ""
        label = f"{lead}map after the block" if has_branches else printable(name, 60)
        lines: list[tuple[str, str, dict[str, Any]]] = [("main", label, {"color": colour, "marker": "o"})]
        if has_branches:
            thin = {"linewidth": 1.1, "color": colour if len(models) > 1 else _COLOURS[1]}
            lines.append(("attention", f"{lead}added by attention", {"marker": "^", "linestyle": "--", **thin}))
            lines.append(("mlp", f"{lead}added by MLP", {"marker": "s", "linestyle": ":", **thin}))
        for field, label, style in lines:
            points = [(index, value) for index, each in enumerate(measured) if (value := getattr(each, field))]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, markersize=4, **style)
    axes.set_yscale("log")
    axes.set_xticks(range(len(positions)), positions, rotation=90 if len(positions) > 12 else 0, fontsize=8)
    axes.set(xlabel="block (stage.block)", ylabel="amplitude: average channel variance")
    axes.grid(True, axis="y", color="#e4e4e4", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    for index in range(1, len(stages)):
        if stages[index] != stages[index - 1]:
            axes.axvline(index - 0.5, color="#999999", linewidth=0.8)
            at_top = {"transform": axes.get_xaxis_transform(), "va": "top"}
            axes.text(index - 0.4, 1.0, f"stage {stages[index]}", fontsize=8.5, color="#666666", **at_top)
    axes.set_title(printable(title, 100), fontsize=10.5, pad=12, parse_math=False)
    figure.legend(frameon=False, fontsize=8.5, loc="outside lower center", ncols=3 if len(models) == 1 else 2)
    save(figure, path)
