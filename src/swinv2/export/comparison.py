"""Compares an exported model with its source, on the same images.

In: two functions from prepared images to outputs. Out: how far their answers are apart, and how fast they are. This
module knows no format.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

Run = Callable[[Tensor], Any]
"""A model, or an exported one: outputs of images (batch, channels, height, width)."""

ROUNDS, SHORTEST = 3, 0.3
"""Rounds of a measurement of speed, and seconds of each one at least."""


@dataclass(frozen=True)
class Difference:
    """How far the answers of two models are apart.

    Attributes:
        images: Number of images.
        largest: The largest difference between two numbers of their outputs.
        distance: The median, over pairs of images, of the largest difference between the source's outputs for the two:
            what a difference must be compared with.
        share: The largest share of `largest` in `distance` over all outputs (logits, each feature map).
        agreement: Share of images with the same most probable class; None if the model has no logits of classes.
        lost: How much less probable, in the mean and by the source, the classes of the export are than those of the
            source: an estimate of the accuracy that is lost, if the source's probabilities are right.
    """

    images: int
    largest: float
    distance: float
    share: float
    agreement: float | None
    lost: float | None


def compare(source: Run, exported: Run, batches: Sequence[tuple[Tensor, Tensor]]) -> Difference:
    """Compares the outputs of two models.

    Args:
        source, exported: The models.
        batches: The images for the one and for the other, prepared, (batch, channels, height, width) each; two or more
            images in all.

    Raises:
        ValueError: The two have other outputs, or outputs of other shapes.
    """
    pairs = [_matched(_outputs(source(mine)), _outputs(exported(theirs))) for mine, theirs in batches]
    names = [*pairs[0][0]]
    found: dict[str, tuple[float, float]] = {}
    for name in names:
        expected, given = (torch.cat([pair[index][name] for pair in pairs]) for index in (0, 1))
        if expected.shape != given.shape:
            raise ValueError(
                f"the output {name} has shape {tuple(given.shape)}; that of the source {tuple(expected.shape)}."
            )
        apart = [float((one - other).abs().max()) for one, other in pairwise(expected)]
        found[name] = float((given - expected).abs().max()), statistics.median(apart)
    worst = max(names, key=lambda name: _share(*found[name]))
    largest, distance = found[worst]
    agreement = lost = None
    if "logits" in names and pairs[0][0]["logits"].ndim == 2 and pairs[0][0]["logits"].shape[1] > 1:
        mine, theirs = (torch.cat([pair[index]["logits"] for pair in pairs]) for index in (0, 1))
        agreement = float((mine.argmax(1) == theirs.argmax(1)).double().mean())
        probabilities = mine.double().softmax(1)
        chosen = probabilities.gather(1, theirs.argmax(1, keepdim=True))[:, 0]
        lost = float((probabilities.amax(1) - chosen).mean())
    images = sum(len(mine) for mine, _ in batches)
    return Difference(images, largest, distance, _share(largest, distance), agreement, lost)


def _matched(expected: dict[str, Tensor], given: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The outputs of a batch; those of a detector by boxes are put into the same order.

    It takes the best of many proposals as its queries, so the smallest difference changes their order, or which one is
    the last. So each query is compared with the one that is most like it, and the worse half does not count.
    """
    if "pred_boxes" not in expected:
        return expected, given
    from scipy.optimize import linear_sum_assignment

    names = ("logits", "pred_boxes")
    mine, theirs = (torch.cat([each[name] for name in names], -1) for each in (expected, given))
    kept: list[list[dict[str, Tensor]]] = []
    for image, (one, other) in enumerate(zip(mine, theirs, strict=True)):
        order = linear_sum_assignment(torch.cdist(one, other, p=1).numpy())[1]
        best = expected["logits"][image].amax(-1).argsort(descending=True)[: (len(one) + 1) // 2]
        rows = (best, torch.from_numpy(order)[best])
        kept.append(
            [
                {name: each[name][image, row] for name in names}
                for each, row in zip((expected, given), rows, strict=True)
            ]
        )
    first, second = ({name: torch.stack([each[side][name] for each in kept]) for name in names} for side in (0, 1))
    return first, second


def _share(difference: float, distance: float) -> float:
    """The share of a difference in a distance; infinite if the outputs do not depend on the image."""
    if difference != difference:
        return float("inf")
    return difference / distance if distance > 0 else (0.0 if difference == 0 else float("inf"))


def _outputs(outputs: Any) -> dict[str, Tensor]:
    """The tensors of an output that have a row for each image, by name, in 32 bits on the CPU."""
    return {name: tensor.float().cpu() for name, tensor in _flat(outputs) if tensor.ndim}


def _flat(outputs: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of an output and their places in it."""
    if isinstance(outputs, Tensor):
        yield place, outputs
    elif hasattr(outputs, "items"):
        for name, value in outputs.items():
            yield from _flat(value, f"{place}.{name}".lstrip("."))
    elif isinstance(outputs, (tuple, list)):
        for index, value in enumerate(outputs):
            yield from _flat(value, f"{place}.{index}".lstrip("."))


def images_per_second(runs: Sequence[Run], batches: Sequence[Tensor]) -> list[float]:
    """The speed of models, side by side: the median of some rounds, in which they take turns.

    Args:
        runs: The models.
        batches: The images for each of them.
    """
    speeds: list[list[float]] = [[] for _ in runs]
    for run, images in zip(runs, batches, strict=True):
        run(images)
    for _ in range(ROUNDS):
        for run, images, found in zip(runs, batches, speeds, strict=True):
            started, count = time.perf_counter(), 0
            while count == 0 or time.perf_counter() - started < SHORTEST:
                run(images)
                count += len(images)
            found.append(count / (time.perf_counter() - started))
    return [statistics.median(found) for found in speeds]
