"""The images for int8: to calibrate ranges with, and to judge answers on.

In: a model, and image files. Out: inputs of its graph. `quantise.py` uses them.
"""

from functools import partial
from typing import Any

import numpy as np
import torch

from swinv2.errors import UsageError
from swinv2.export.quantise import Judged, require_nncf
from swinv2.export.report import BATCH, ExportSettings
from swinv2.export.sources import Source, batches_of, prepare_images
from swinv2.lengths import Pair
from swinv2.loading import has_several_labels, label_names
from swinv2.train.data.augment import process_image
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.examples import read_images
from swinv2.train.data.sources import open_dataset
from swinv2.train.evaluate import match_dataset

CALIBRATION, LEAST_CALIBRATION = 300, 16
"""Images that ranges are calibrated with, and the fewest."""

MOST_JUDGED = 1000
"""Labelled images on which answers are judged while products are given back to 32 bits; all count at the end."""


def refuse_int8(source: Source) -> None:
    """Raises an error unless int8 is possible, and can be checked."""
    require_nncf()
    config = source.model.config
    if not hasattr(source.model, "classifier") or has_several_labels(config) or config.problem_type == "regression":
        raise UsageError(
            f"--int8 is for classifiers with one label for an image, whose answers can be checked; {source.name!r} is "
            "none."
        )


def images_for_int8(source: Source, size: Pair, settings: ExportSettings) -> tuple[list[np.ndarray], list[Judged]]:
    """Reads the images for int8.

    Args:
        source: The model.
        size: Their size (height, width).
        settings: The settings of the export.

    Returns:
        Inputs to calibrate ranges with; and images to judge answers on: labelled ones, if there are any, otherwise
        those of --calibrate that come after the first `CALIBRATION`.

    Raises:
        UsageError: There are too few images.
    """
    processor = source.processor_for(size, settings.takes_bytes)
    pixels = prepare_images(settings.calibration, processor, source.channels)
    if len(pixels) < LEAST_CALIBRATION:
        raise UsageError(
            f"--calibrate has {len(pixels)} readable images; expected {LEAST_CALIBRATION} at least, from your "
            "application."
        )
    inputs = [_as_input(each, settings.takes_bytes) for each in pixels]
    if settings.evaluation is not None:
        dataset = open_dataset(settings.evaluation, settings.split)
        return inputs[:CALIBRATION], _judged_by_labels(source, processor, dataset, settings.takes_bytes)
    rest = slice(CALIBRATION, None) if len(pixels) >= 2 * CALIBRATION else slice(None)
    own = prepare_images(settings.calibration, source.processor_for(size), source.channels)[rest]
    with torch.inference_mode():
        probabilities = [source.model(batch).logits.softmax(1) for batch in batches_of(own, BATCH)]
    worths = torch.cat(probabilities).numpy()
    return inputs[:CALIBRATION], [Judged(*each) for each in zip(inputs[rest], worths, strict=True)]


def _judged_by_labels(source: Source, processor: Any, dataset: ImageDataset, takes_bytes: bool) -> list[Judged]:
    """The first `MOST_JUDGED` labelled images."""
    names = label_names(source.model.config)
    dataset = match_dataset(dataset, tuple(names))
    judged: list[Judged] = []
    transform = partial(process_image, processor)
    for pixels, labels, _ in read_images(dataset, transform, source.channels, BATCH, None):
        for image, label in zip(pixels.numpy(), labels.tolist(), strict=True):
            if label >= 0 and len(judged) < MOST_JUDGED:
                judged.append(Judged(_as_input(image, takes_bytes), np.eye(len(names))[label]))
        if len(judged) == MOST_JUDGED:
            break
    return judged


def _as_input(pixels: np.ndarray, takes_bytes: bool) -> np.ndarray:
    """Prepared pixels (channels, height, width) as a graph takes them, in a batch of one."""
    if takes_bytes:
        pixels = pixels.round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    return np.ascontiguousarray(pixels[None])
