"""The images for int8: to calibrate ranges with, and to rate answers on.

In: a model, and image files. Out: inputs of its graph. `quantise.py` uses them.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from swinv2.errors import UsageError
from swinv2.export.quantise import Rated, require_nncf
from swinv2.export.report import BATCH, ExportSettings
from swinv2.export.sources import Source, batches_of, prepare_images
from swinv2.lengths import Pair
from swinv2.loading import has_several_labels, label_names
from swinv2.train.data.augment import process_image
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.examples import IGNORED_LABEL, read_images

CALIBRATION, LEAST_CALIBRATION = 300, 16
"""Images that ranges are calibrated with at most, and the fewest images of --calibrate."""

MOST_RATED = 1000
"""Images on which answers are rated while products are given back to 32 bits."""


def refuse_int8(source: Source) -> None:
    """Raises an error unless int8 is possible, and can be checked."""
    require_nncf()
    config = source.model.config
    if not hasattr(source.model, "classifier") or has_several_labels(config) or config.problem_type == "regression":
        raise UsageError(
            f"--int8 is for classifiers with one label for an image, whose answers can be checked; {source.name!r} is "
            "none."
        )


def divide(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Divides the images of --calibrate into those for ranges and those that answers are rated on: every third one, so
    that both have images of all folders.

    Raises:
        UsageError: They are too few.
    """
    if len(paths) < LEAST_CALIBRATION:
        raise UsageError(
            f"--calibrate has {len(paths)} images; expected {LEAST_CALIBRATION} at least, from your application."
        )
    rated = [path for index, path in enumerate(paths) if index % 3 == 2]
    ranges = [path for index, path in enumerate(paths) if index % 3 != 2]
    return evenly(ranges, CALIBRATION), evenly(rated, MOST_RATED)


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many items, at equal distances."""
    count = min(len(items), most)
    return [items[index * len(items) // count] for index in range(count)]


def images_for_int8(
    source: Source, size: Pair, settings: ExportSettings, dataset: ImageDataset | None
) -> tuple[list[np.ndarray], list[Rated]]:
    """Reads the images for int8.

    Args:
        source: The model.
        size: Their size (height, width).
        settings: The settings of the export.
        dataset: Labelled images with the model's classes; None to rate answers by the source's probabilities.

    Returns:
        Inputs to calibrate ranges with, and images to rate answers on.

    Raises:
        UsageError: There are too few images.
    """
    processor = source.processor_for(size, settings.takes_bytes)
    for_ranges, for_rating = divide(settings.calibration)
    inputs = [_as_input(each, settings) for each in prepare_images(for_ranges, processor, source.channels)]
    if dataset is not None:
        return inputs, _rated_by_labels(source, processor, dataset, settings)
    rated = prepare_images(for_rating, processor, source.channels)
    own = prepare_images(for_rating, source.processor_for(size), source.channels)
    with torch.inference_mode():
        probabilities = [source.model(batch).logits.softmax(1) for batch in batches_of(own, BATCH)]
    if not inputs or not probabilities:
        raise UsageError("--calibrate has no readable images.")
    values = torch.cat(probabilities).numpy()
    return inputs, [Rated(_as_input(image, settings), each) for image, each in zip(rated, values, strict=True)]


def _rated_by_labels(source: Source, processor: Any, dataset: ImageDataset, settings: ExportSettings) -> list[Rated]:
    """`MOST_RATED` labelled images, at equal distances: data sets are often in the order of their classes."""
    classes = len(label_names(source.model.config))
    indices, rated = evenly(range(len(dataset)), MOST_RATED), list[Rated]()
    transform = partial(process_image, processor)
    for pixels, labels, _ in read_images(dataset, transform, source.channels, BATCH, None, indices=indices):
        for image, label in zip(pixels.numpy(), labels.tolist(), strict=True):
            if label != IGNORED_LABEL:
                rated.append(Rated(_as_input(image, settings), np.eye(classes)[label]))
    if not rated:
        raise UsageError(f"{dataset.source} has no readable images.")
    return rated


def _as_input(pixels: np.ndarray, settings: ExportSettings) -> np.ndarray:
    """Prepared pixels (channels, height, width) as a graph takes them, in a batch of one."""
    if settings.takes_bytes:
        pixels = pixels.round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    return np.ascontiguousarray(pixels[None])
