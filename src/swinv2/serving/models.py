"""Loads the model of a service, and makes endpoints of what it can do.

In: settings. Out: `Served`. This module knows no HTTP. It asks the same classes as the commands, so the answers are
theirs: a classifier has the endpoints `classify` and `features`, any other Swin V2 without a head for images of its own
`features`, a segmenter `segment` and a detector `detect`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from swinv2.dense.saved import SEGMENTATION, read_dense_config, task_of
from swinv2.exported import ExportedNetwork
from swinv2.images import read_image
from swinv2.loading import choose_device, read_config
from swinv2.predict.predictor import Classifier, FeatureExtractor
from swinv2.serving.endpoints import Endpoint, Served, TooLittleMemoryError
from swinv2.serving.settings import ServiceSettings

_BATCH, _BATCH_OF_DETECTORS = 16, 4


def load_served(settings: ServiceSettings) -> Served:
    """Loads a model and its endpoints.

    Raises:
        UsageError: The model or the device cannot be used.
    """
    device, dtype = choose_device(settings.device), getattr(torch, settings.dtype)
    config = read_dense_config(settings.model)
    if config is None:
        about, endpoints = _of_images(settings, dtype)
    elif task_of(config) == SEGMENTATION:
        about, endpoints = _of_segmenter(settings, device, dtype)
    else:
        about, endpoints = _of_detector(settings, device, dtype)
    by_name = {each.name: each for each in endpoints}
    return Served(f"{about} on {device}", by_name, torch.set_num_threads, torch.get_num_threads())


def _of_images(settings: ServiceSettings, dtype: torch.dtype) -> tuple[str, list[Endpoint]]:
    """The endpoints of a model for whole images."""
    name, device, size = settings.model, settings.device, settings.batch_size or _BATCH
    endpoints: list[Endpoint] = []
    about, extractor = "a model without a classifier", None
    architectures: list[str] = read_config(name).architectures or ["Swinv2ForImageClassification"]
    if any(each.endswith("ForImageClassification") for each in architectures):
        classifier = Classifier.load(name, device, dtype)
        about = f"a classifier of {len(classifier.labels)} labels"

        def labels(pixels: Sequence[np.ndarray], top_k: int) -> list[dict[str, Any]]:
            found = classifier.label(pixels, top_k)
            return [{"predictions": [asdict(prediction) for prediction in each]} for each in found]

        endpoints.append(_endpoint("classify", size, _preparing(classifier, settings), labels))
        if isinstance(classifier.model, ExportedNetwork):
            # Its graph has labels alone.
            return f"{about}, exported to {classifier.model.format}", endpoints
        # The weights are in memory once.
        inside: Any = classifier.model.swinv2
        extractor = FeatureExtractor(inside, classifier.processor)
    features = extractor or FeatureExtractor.load(name, device=device, dtype=dtype)

    def vectors(pixels: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        found = features.features(pixels)
        return [{"features": each.float().flatten().tolist(), "shape": list(each.shape)} for each in found]

    endpoints.append(_endpoint("features", size, _preparing(features, settings), vectors))
    return about, endpoints


def _of_segmenter(settings: ServiceSettings, device: torch.device, dtype: torch.dtype) -> tuple[str, list[Endpoint]]:
    """The endpoint of a segmenter."""
    from swinv2.dense.answers import Segmenter
    from swinv2.predict.segmenting import as_records, count_classes

    segmenter = Segmenter.load(settings.model, device, dtype)

    def classes(images: Sequence[np.ndarray], rle: bool) -> list[dict[str, Any]]:
        found = [count_classes(segmenter(image), segmenter.names, rle) for image in images]
        return [_sized(image, {"classes": as_records(each)}) for image, each in zip(images, found, strict=True)]

    about = f"a segmenter of {len(segmenter.names)} classes"
    # One at a time, as the command does: images have different sizes.
    return about, [_endpoint("segment", 1, _reading(settings), classes)]


def _of_detector(settings: ServiceSettings, device: torch.device, dtype: torch.dtype) -> tuple[str, list[Endpoint]]:
    """The endpoint of a detector."""
    from swinv2.dense.answers import Detector
    from swinv2.predict.detecting import above, as_records

    detector = Detector.load(settings.model, device, dtype)

    def objects(images: Sequence[np.ndarray], threshold: float) -> list[dict[str, Any]]:
        found = [as_records(above(each, threshold), detector.names) for each in detector(images)]
        return [_sized(image, {"objects": each}) for image, each in zip(images, found, strict=True)]

    about = f"a detector of {len(detector.names)} classes"
    size = settings.batch_size or _BATCH_OF_DETECTORS
    return about, [_endpoint("detect", size, _reading(settings), objects)]


def _endpoint(
    name: str,
    batch_size: int,
    prepare: Callable[[bytes], np.ndarray],
    answer: Callable[..., list[dict[str, Any]]],
) -> Endpoint:
    """An endpoint that says in our words that memory is short."""

    def answer_or_say(images: Sequence[np.ndarray], **parameters: Any) -> list[dict[str, Any]]:
        try:
            return answer(images, **parameters)
        except torch.OutOfMemoryError as error:
            raise TooLittleMemoryError from error

    return Endpoint(name, batch_size, prepare, answer_or_say)


def _preparing(predictor: Classifier | FeatureExtractor, settings: ServiceSettings) -> Callable[[bytes], np.ndarray]:
    """Makes of a file what enters a model for whole images."""
    limits = settings.image_limits
    return lambda data: predictor.prepare(read_image(data, predictor.channels, limits))


def _reading(settings: ServiceSettings) -> Callable[[bytes], np.ndarray]:
    """Makes RGB pixels (height, width, 3) of a file."""
    limits = settings.image_limits
    return lambda data: np.array(read_image(data, limits=limits))


def _sized(image: np.ndarray, found: dict[str, Any]) -> dict[str, Any]:
    """What was found in an image, with the width and height of the image."""
    return {"size": [image.shape[1], image.shape[0]], **found}
