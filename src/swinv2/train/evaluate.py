"""Evaluation of a classifier on labelled images.

In: a model's folder or name, and a source of labelled images. Out: accuracies, and figures of the mistakes. Images go
through the model's stored image processor, so the accuracies are those that a user gets.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from swinv2.errors import UsageError
from swinv2.heads import Swinv2ForImageClassification
from swinv2.loading import choose_device, label_names, load_model, load_processor
from swinv2.reading import read_batches
from swinv2.train.data.augment import decode
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.examples import IGNORED_LABEL, EvaluationExamples, SampleTransform
from swinv2.train.data.sources import SPLIT_FOLDERS, open_dataset
from swinv2.train.drawing.confusion import draw_confusion
from swinv2.train.drawing.mistakes import MOST_MISTAKES, Mistake, draw_mistakes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation. Accuracies are shares of the readable images."""

    top1: float
    top5: float | None
    """None with fewer than six classes."""
    loss: float | None
    """Mean cross entropy; None if the answers have no probabilities of all classes."""
    images: int
    """Number of readable images."""
    unreadable: list[str]
    """Names of unreadable images, each with the reason."""
    confusion: np.ndarray
    """Counts (truth, answer)."""
    names: tuple[str, ...]
    worst: list[tuple[int, int, int, float]]
    """Index, truth, answer and probability of the most confident mistakes, the most confident first."""

    def summary(self) -> dict[str, Any]:
        """The results as plain values, for JSON; the recall of a class without images is None."""
        counts, hits = self.confusion.sum(1).tolist(), self.confusion.diagonal().tolist()
        recalls = [hit / count if count else None for hit, count in zip(hits, counts, strict=True)]
        return {
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss,
            "images": self.images,
            "unreadable": self.unreadable,
            "recall": dict(zip(self.names, recalls, strict=True)),
        }


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
) -> tuple[Evaluation, ImageDataset]:
    """Evaluates a classifier.

    Args:
        model: A folder, or a name on the hub.
        data, split, image_column, label_column: See `sources.open_dataset`; `data` may also be the folder of a single
            split, for example data/validation.
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
    chosen = choose_device(device)
    classifier = load_model(Swinv2ForImageClassification, model, chosen, dtype)
    processor = load_processor(model)
    split = split_to_evaluate(data, split)
    dataset = open_dataset(data, split, image_column=image_column, label_column=label_column)
    if dataset.label_column is None:
        raise UsageError(f"{data} has no labels; sort the images into a folder for each class.")
    names = tuple(label_names(classifier.config))
    to_model = _match_classes(dataset, names)

    examples = EvaluationExamples(dataset, SampleTransform(partial(_prepare_image, processor), 3))
    unreadable: list[str] = []
    columns: list[tuple[Tensor, ...]] = []
    done = 0
    for batch in read_batches(examples, batch_size, workers):
        pixels = torch.from_numpy(np.stack([example["pixel_values"] for example in batch]))
        truths = torch.tensor([to_model.get(int(example["labels"]), IGNORED_LABEL) for example in batch])
        unreadable += [name for example in batch for name in example["broken"]]
        with torch.inference_mode():
            logits = classifier(pixels.to(chosen, dtype)).logits.float().cpu()
            probabilities, answers = logits.softmax(-1).max(-1)
            among_five = (logits.topk(min(5, len(names))).indices == truths[:, None]).any(1)
            losses = F.cross_entropy(logits, truths, reduction="none").double()
        columns.append((truths, answers, probabilities, among_five, losses))
        done += len(batch)
        advance(done, len(dataset))
    truths, answers, probabilities, among_five, losses = (
        np.concatenate(column) for column in zip(*columns, strict=True)
    )
    return summarise(names, data, truths, answers, probabilities, among_five, losses, unreadable), dataset


def summarise(
    names: tuple[str, ...],
    data: str,
    truths: np.ndarray,
    answers: np.ndarray,
    probabilities: np.ndarray,
    among_five: np.ndarray,
    losses: np.ndarray | None,
    unreadable: list[str],
) -> Evaluation:
    """Makes the results of what is known of each image.

    Args:
        names: Names of the classes.
        data: The source, for messages.
        truths, answers: The class of each image, `IGNORED_LABEL` for unreadable ones, and the answer.
        probabilities: The probability of each answer.
        among_five: Whether the class is among the five best answers.
        losses: The cross entropies, if there are any.
        unreadable: Names of unreadable images, each with the reason.

    Raises:
        UsageError: No image is readable.
    """
    readable = truths != IGNORED_LABEL
    if not readable.any():
        raise UsageError(f"{data} has no readable image.")
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, (truths[readable], answers[readable]), 1)
    wrong = np.flatnonzero(readable & (answers != truths))
    worst = wrong[np.argsort(-probabilities[wrong], kind="stable")[:MOST_MISTAKES]]
    return Evaluation(
        top1=float(confusion.trace() / confusion.sum()),
        top5=float(among_five[readable].mean()) if len(names) > 5 else None,
        loss=None if losses is None else float(losses[readable].mean()),
        images=int(readable.sum()),
        unreadable=unreadable,
        confusion=confusion,
        names=names,
        worst=[(int(i), int(truths[i]), int(answers[i]), float(probabilities[i])) for i in worst],
    )


def split_to_evaluate(data: str, split: str) -> str:
    """The name of the split for `datasets`. If `data` is the folder of a single split, such as data/validation, this is
    "train": `datasets` uses that name if it finds no folders of splits."""
    names = {name for called in SPLIT_FOLDERS.values() for name in called}
    folder = Path(data).resolve()
    own = folder.name.lower()
    if not folder.is_dir() or own not in names - {*SPLIT_FOLDERS["train"]} or split not in ("evaluation", own):
        return split
    return split if any(path.name.lower() in names for path in folder.iterdir()) else "train"


def _prepare_image(processor: Any, image: Image.Image) -> Any:
    """Makes the model's input of one image to evaluate."""
    # A numpy array, for `read_batches`.
    return processor(image, return_tensors="pt")["pixel_values"][0].numpy()


def _match_classes(dataset: ImageDataset, names: tuple[str, ...]) -> dict[int, int]:
    """The model's class for each class of the data: by name if the model has all names of the data; by number if it has
    none of them and the numbers of classes are equal."""
    dataset.check_labels(len(dataset.names) or len(names))
    if dataset.names and set(dataset.names) <= set(names):
        return {index: names.index(name) for index, name in enumerate(dataset.names)}
    if dataset.names and (len(dataset.names) != len(names) or set(dataset.names) & set(names)):
        raise UsageError(
            f"{dataset.source} has classes that the model does not know, for example "
            f"{sorted(set(dataset.names) - set(names))[:3]}; name the folders as in the model's config.json."
        )
    if dataset.names:
        logger.warning(
            f"the model and {dataset.source} have no class name in common ({names[0]!r}, {dataset.names[0]!r} ...); "
            "classes are matched by their order"
        )
    return {index: index for index in range(len(names))}


def draw_evaluation(found: Evaluation, dataset: ImageDataset, folder: Path) -> list[Path]:
    """Draws the confusion matrix and, if there are any, the most confident mistakes; returns the files."""
    files = [folder / "confusion.png"]
    draw_confusion(found.confusion, found.names, files[0])
    if found.worst:
        files.append(folder / "mistakes.png")
        drawn = [
            Mistake(np.asarray(decode(dataset[index].image, 3)), found.names[truth], found.names[answer], probability)
            for index, truth, answer, probability in found.worst
        ]
        draw_mistakes(drawn, files[1])
    return files
