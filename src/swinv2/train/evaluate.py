"""Evaluation of a classifier on labelled images.

In: a model's folder or name, and a source of labelled images. Out: scores. Images go through the model's
stored image processor, so the accuracies are those that a user gets.
"""

import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2.config import Swinv2Config
from swinv2.errors import UsageError
from swinv2.heads import Swinv2ForImageClassification
from swinv2.loading import choose_device_of, has_several_labels, label_names, load_model, load_processor
from swinv2.train.data.augment import process_image
from swinv2.train.data.classes import Data, match_classes
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.examples import IGNORED_LABEL, ImageBatch, read_images
from swinv2.train.data.sources import open_dataset
from swinv2.train.multilabel import MultilabelEvaluation, binary_cross_entropy
from swinv2.train.scores import Evaluation, best_classes

logger = logging.getLogger(__name__)


def evaluate(
    model: str,
    data: str,
    split: str = "evaluation",
    *,
    batch_size: int = 64,
    workers: int | None = None,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    image_column: str | None = None,
    label_column: str | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Evaluation | MultilabelEvaluation, ImageDataset]:
    """Evaluates a classifier of one label for an image, or of several.

    To a classifier of several labels, an image with one label is an image without the others.

    Args:
        model: A folder, or a name on the hub.
        data, split, image_column, label_column: See `sources.open_dataset`.
        batch_size: Images of a batch.
        workers: Processes that read images; None: see `reading.read_batches`.
        device: See `loading.choose_device`.
        dtype: Type of the weights.
        advance: Called with the number of images done and the number of all images.

    Returns:
        The results, and the data set.

    Raises:
        UsageError: The model or the data cannot be opened, or their classes do not match.
    """
    chosen = choose_device_of(model, device)
    classifier = load_model(Swinv2ForImageClassification, model, chosen, dtype, may_be_exported=True)
    processor = load_processor(model, classifier.config.num_channels)
    dataset = open_dataset(data, split, image_column=image_column, label_column=label_column)
    dataset = match_dataset(dataset, classifier.config)
    found = evaluate_classifier(classifier, processor, dataset, batch_size=batch_size, workers=workers, advance=advance)
    return found, dataset


def evaluate_classifier(
    classifier: Any,
    processor: Any,
    dataset: ImageDataset,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation | MultilabelEvaluation:
    """Evaluates a classifier that is loaded, or an exported one.

    Args:
        classifier: The classifier: called with pixels, it returns logits; it has `config`, `device` and `dtype`.
        processor: Its image processor.
        dataset: The images, with the classes of the model, see `match_dataset`.
        batch_size, workers, advance: See `evaluate`.

    Raises:
        UsageError: No image is readable.
    """
    channels = classifier.config.num_channels
    classes = len(label_names(classifier.config)) * has_several_labels(classifier.config)
    batches = read_images(dataset, partial(process_image, processor), channels, batch_size, workers, classes)
    return evaluate_batches(lambda pixels: classifier(pixels).logits, classifier, batches, dataset, advance)


def evaluate_batches(
    answer: Callable[[Tensor], Tensor],
    classifier: Any,
    batches: Iterable[ImageBatch],
    dataset: ImageDataset,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation | MultilabelEvaluation:
    """Evaluates the answers for batches.

    Args:
        answer: Makes logits (B, classes) of the pixels of a batch.
        classifier: Has `config`, `device` and `dtype`.
        batches: All batches of the data set.
        dataset: The data set.
        advance: See `evaluate`.

    Raises:
        UsageError: Nothing is readable.
    """
    several, names = has_several_labels(classifier.config), tuple(label_names(classifier.config))
    unreadable: list[str] = []
    columns: list[tuple[Tensor, ...]] = []
    done = 0
    for pixels, truths, broken in batches:
        unreadable += broken
        with torch.inference_mode():
            logits = answer(pixels.to(classifier.device, classifier.dtype)).float().cpu()
        if several:
            columns.append((truths, logits))
        else:
            losses = F.cross_entropy(logits, truths, reduction="none").double()
            columns.append((truths, *best_classes(logits), losses))
        done += len(truths)
        advance(done, len(dataset))
    truths, *answers = (torch.cat(column).numpy() for column in zip(*columns, strict=True))
    if (truths == IGNORED_LABEL).all():
        raise UsageError(f"{dataset.source} has no readable {dataset.things[:-1]}.")
    if several:
        loss = float(binary_cross_entropy(torch.from_numpy(answers[0]), torch.from_numpy(truths)))
        return MultilabelEvaluation.of(truths, answers[0], loss, names, unreadable)
    best, probabilities, losses = answers
    loss = float(losses[truths != IGNORED_LABEL].mean())
    return Evaluation.of(truths, best, probabilities, loss, names, unreadable)


def match_dataset(dataset: Data, config: Swinv2Config) -> Data:
    """Matches a data set with a classifier: its classes with the model's, by their names.

    Args:
        dataset: The images.
        config: The configuration of the classifier.

    Raises:
        UsageError: The model is a regression; the data have several labels for an image and the model one; or their
            classes do not match.
    """
    if config.problem_type == "regression":
        raise UsageError("the model is a regression (problem_type in its config.json): it has no labels.")
    if dataset.several and not has_several_labels(config):
        raise UsageError(
            f"{dataset.source} has several labels for an image, and the model gives exactly one; evaluate a model that "
            "was trained on lists of labels."
        )
    return _match_classes(dataset, tuple(label_names(config)))


def _match_classes(dataset: Data, names: tuple[str, ...]) -> Data:
    """Matches the classes of the data with the model's, see `classes.match_classes`. If they are equally many and
    none has the same name, and one side has codes instead of names, as the folders of ImageNet do, they are matched by
    their order, with a warning."""
    is_new = len(dataset.names) == len(names) and not set(dataset.names) & set(names)
    if is_new and (_are_codes(dataset.names) or _are_codes(names)):
        logger.warning(
            f"{dataset.source} has the classes {dataset.names[0]!r} ..., the model {names[0]!r} ...; they are matched "
            "by their order"
        )
        dataset = replace(dataset, names=names)
    return match_classes(dataset, names, "the model")


def _are_codes(names: tuple[str, ...]) -> bool:
    """Whether names of classes are numbers, or WordNet's numbers as in the folders of ImageNet."""
    return all(re.fullmatch(r"(LABEL_)?\d+|n\d{8}", name) for name in names)
