"""Masks in COCO's notations.

In: masks as booleans; or polygons or RLE, the lengths of runs. Out: RLE for JSON, or booleans; and the boxes around
masks. pycocotools encodes and decodes. This module knows no image, no class and no score.
"""

import importlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from swinv2.errors import UsageError
from swinv2.lengths import Pair


def boxes_around(masks: Tensor) -> Tensor:
    """The boxes around masks.

    Args:
        masks: Booleans (masks, height, width).

    Returns:
        Left, top, right and bottom (masks, 4) in pixels; zeros for an empty mask.
    """
    boxes, is_there = masks.new_zeros(len(masks), 4, dtype=torch.float32), masks.any(2).any(1)
    if is_there.any():
        # torchvision's right and bottom are those of the last pixels.
        boxes[is_there] = masks_to_boxes(masks[is_there]) + boxes.new_tensor([0, 0, 1, 1])
    return boxes


def encode_masks(masks: Any) -> list[dict[str, Any]]:
    """Encodes masks for JSON.

    Args:
        masks: Booleans (masks, height, width); an array, or a tensor on the CPU.

    Returns:
        COCO's compressed RLE of each mask, with the counts as text.

    Raises:
        UsageError: The masks have another shape or type.
    """
    tools, pixels = load_pycocotools(), np.asarray(masks)
    if pixels.ndim != 3 or pixels.dtype != bool:
        raise UsageError(f"the masks are {pixels.dtype} {pixels.shape}; expected booleans (masks, height, width).")
    encoded = [tools.encode(np.asfortranarray(mask, np.uint8)) for mask in pixels]
    return [{"size": list(map(int, each["size"])), "counts": each["counts"].decode()} for each in encoded]


def decode_mask(segment: Any, size: Pair, source: str = "the mask") -> np.ndarray:
    """A mask as booleans (height, width).

    Args:
        segment: COCO's polygons, a list of [x, y, x, y, ...] in pixels; or RLE, a dictionary with "size" and "counts",
            compressed (text) or not (a list).
        size: Height and width of the image, in pixels.
        source: Name of the mask, for errors.

    Raises:
        UsageError: It is none of these, or has another size.
    """
    tools, encoded = load_pycocotools(), as_rle(segment, size, source)
    with warnings.catch_warnings():
        # pycocotools makes the array in a way that numpy 2 will change.
        warnings.simplefilter("ignore", DeprecationWarning)
        return tools.decode(encoded).astype(bool)


def as_rle(segment: Any, size: Pair, source: str) -> dict[str, Any]:
    """Any of COCO's notations as compressed RLE, as pycocotools takes it.

    Args:
        segment, size, source: See `decode_mask`.

    Raises:
        UsageError: It is none of these, or has another size.
    """
    tools, (height, width) = load_pycocotools(), size
    if isinstance(segment, Mapping):
        counts, found = segment.get("counts"), tuple(segment.get("size") or ())
        if found != (height, width):
            raise UsageError(f"{source} has the size {found}; expected {(height, width)}, that of the image.")
        if isinstance(counts, str | bytes):
            return {"size": [height, width], "counts": counts}
        if not isinstance(counts, Sequence) or sum(counts) != height * width:
            raise UsageError(f"{source} has other counts than the {height * width} pixels of the image; expected RLE.")
        return tools.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width)
    polygons = list(segment) if isinstance(segment, Sequence) and not isinstance(segment, str) else []
    if not polygons or any(np.ndim(each) != 1 or len(each) < 6 or len(each) % 2 for each in polygons):
        raise UsageError(f"{source} is neither RLE nor polygons [[x, y, x, y, x, y, ...], ...] of at least 3 points.")
    return tools.merge(tools.frPyObjects([np.asarray(each, float).tolist() for each in polygons], height, width))


def load_pycocotools() -> Any:
    """pycocotools' functions for masks and boxes.

    Raises:
        UsageError: pycocotools is not installed.
    """
    try:
        return importlib.import_module("pycocotools.mask")
    except ImportError as error:
        raise UsageError("average precision needs pycocotools; install it by: pip install 'swinv2[dense]'.") from error
