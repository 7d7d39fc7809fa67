"""Batches of images of several sizes, padded to the largest.

In: a padded batch, and the size of each image. Out: maps as if each image were alone. This module knows no network.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from swinv2.lengths import Pair


def sizes_of_mask(pixel_mask: Tensor, images: Float[Tensor, "B channels height width"]) -> list[Pair]:
    """The size (height, width) of each image in a padded batch.

    Args:
        pixel_mask: See `Swinv2Backbone.forward`.
        images: The batch.

    Raises:
        ValueError: The mask has another shape, or it is not a rectangle at the top left of an image.
    """
    batch, _, height, width = images.shape
    if tuple(pixel_mask.shape) != (batch, height, width):
        raise ValueError(f"pixel_mask has shape {tuple(pixel_mask.shape)}; expected {(batch, height, width)}.")
    mask = pixel_mask.bool()
    rows, columns = mask.any(2).sum(1), mask.any(1).sum(1)
    inside = torch.arange(height, device=mask.device)[:, None] < rows[:, None, None]
    inside = inside & (torch.arange(width, device=mask.device) < columns[:, None, None])
    if not (mask == inside).all() or not mask.any(2).any(1).all():
        raise ValueError(
            "pixel_mask is not a rectangle at the top left of each image; pad images at the bottom and right."
        )
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def run_by_size(
    run: Callable[[Tensor], Sequence[Tensor]],
    images: Float[Tensor, "B channels height width"],
    sizes: Sequence[Pair],
    grids: Sequence[Pair],
) -> list[Tensor]:
    """Computes maps of a padded batch as if each image were alone: padding is cut off before, and images of the same
    size run together. So no padding is computed, and it changes no number.

    Args:
        run: Computes maps (B, C, H, W) of images of one size.
        images: The batch.
        sizes: The size (height, width) of each image, without its padding.
        grids: The size (height, width) of each map of the batch.

    Returns:
        The maps of the batch, with zeros beyond those of an image.
    """
    groups: dict[Pair, list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault((int(size[0]), int(size[1])), []).append(index)
    if list(groups) == [(images.shape[2], images.shape[3])]:
        return list(run(images))
    parts = [run(images[members, :, :height, :width]) for (height, width), members in groups.items()]
    order = torch.tensor([index for members in groups.values() for index in members], device=images.device).argsort()
    return [
        torch.cat([F.pad(each, (0, grid[1] - each.shape[3], 0, grid[0] - each.shape[2])) for each in level])[order]
        for level, grid in zip(zip(*parts, strict=True), grids, strict=True)
    ]
