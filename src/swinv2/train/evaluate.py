"""How good a classifier is on labelled pictures, and where it errs.

In: a model's folder or name, and a place with labelled pictures. Out: accuracies, and pictures of the mistakes. The
pictures go through the image processor that lies beside the model: what is measured is what a user gets.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from swinv2.errors import UsageError
from swinv2.heads import Swinv2ForImageClassification
from swinv2.loading import choose_device, label_names, load_model, load_processor
from swinv2.reading import read_batches
from swinv2.train.augment import decode
from swinv2.train.data import SPLIT_FOLDERS, open_pictures
from swinv2.train.drawing.confusion import draw_confusion
from swinv2.train.drawing.mistakes import MOST_MISTAKES, Mistake, draw_mistakes
from swinv2.train.examples import IGNORED_LABEL, EvaluationExamples, Recipe
from swinv2.train.pictures import Pictures

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        top1, top5: Shares of the pictures; top5 is None with fewer than six classes.
        loss: Mean cross entropy.
        pictures: How many counted.
        unreadable: Pictures that could not be read, each with the reason.
        confusion: Counts (truth, answer).
        names: Names of the classes.
        worst: Index, truth, answer and probability of the surest wrong answers, the surest first.
    """

    top1: float
    top5: float | None
    loss: float
    pictures: int
    unreadable: list[str]
    confusion: np.ndarray
    names: tuple[str, ...]
    worst: list[tuple[int, int, int, float]]

    def summary(self) -> dict[str, Any]:
        """What a program wants to read."""
        recall = self.confusion.diagonal() / np.maximum(self.confusion.sum(1), 1)
        return {
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss,
            "pictures": self.pictures,
            "unreadable": self.unreadable,
            "recall": {name: float(value) for name, value in zip(self.names, recall, strict=True)},
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
) -> tuple[Evaluation, Pictures]:
    """Evaluates a classifier.

    Args:
        model: A folder, or a name on the hub.
        data, split, image_column, label_column: See `data.open_pictures`; or a folder that is one split by itself, and
            is called so.
        batch_size: Pictures at once.
        workers: Processes that read pictures; None for as many as pay.
        device: See `loading.choose_device`.
        dtype: Type of the weights.
        advance: Is told how many pictures of how many are done.

    Returns:
        What was found, and the pictures.

    Raises:
        UsageError: The model or the data cannot be opened, or their classes do not fit.
    """
    place = choose_device(device)
    classifier = load_model(Swinv2ForImageClassification, model, place, dtype)
    processor = load_processor(model)
    pictures = open_pictures(data, _split_of(data, split), image_column=image_column, label_column=label_column)
    if pictures.label_column is None:
        raise UsageError(f"{data} has no labels; sort the pictures into a folder for each class.")
    names = tuple(label_names(classifier.config))
    to_model = _match_classes(pictures, names)

    examples = EvaluationExamples(pictures, Recipe(partial(_prepare, processor), 3))
    confusion = np.zeros((len(names), len(names)), np.int64)
    unreadable: list[str] = []
    worst: list[tuple[int, int, int, float]] = []
    loss, among_five, done = 0.0, 0, 0
    for batch in read_batches(examples, batch_size, workers):
        pixels = torch.from_numpy(np.stack([example["pixel_values"] for example in batch]))
        with torch.inference_mode():
            logits = classifier(pixels.to(place, dtype)).logits.float().cpu()
        truths = torch.tensor([example["labels"] for example in batch])
        readable = truths != IGNORED_LABEL
        unreadable += [name for example in batch for name in example["broken"]]
        indices = torch.arange(done, done + len(readable))[readable]
        labels = torch.tensor([to_model[int(label)] for label in truths[readable]], dtype=torch.long)
        done += len(readable)
        advance(done, len(pictures))
        if not len(labels):
            continue
        probabilities = logits[readable].softmax(-1)
        sureness, answers = probabilities.max(-1)
        np.add.at(confusion, (labels.numpy(), answers.numpy()), 1)
        loss += torch.nn.functional.cross_entropy(logits[readable], labels, reduction="sum").item()
        among_five += int((probabilities.topk(min(5, len(names))).indices == labels[:, None]).any(1).sum())
        wrong = (answers != labels).nonzero().flatten().tolist()
        worst += [(int(indices[i]), int(labels[i]), int(answers[i]), float(sureness[i])) for i in wrong]
        worst = sorted(worst, key=lambda mistake: -mistake[3])[:MOST_MISTAKES]
    counted = int(confusion.sum())
    if not counted:
        raise UsageError(f"{data} holds no picture that can be read.")
    found = Evaluation(
        top1=float(confusion.trace() / counted),
        top5=among_five / counted if len(names) > 5 else None,
        loss=loss / counted,
        pictures=counted,
        unreadable=unreadable,
        confusion=confusion,
        names=names,
        worst=worst,
    )
    return found, pictures


def _split_of(data: str, split: str) -> str:
    """What the pictures are asked for by: a folder such as data/validation has one split, its own, which `datasets`
    calls "train" as it does wherever it finds none."""
    names = {name for called in SPLIT_FOLDERS.values() for name in called}
    folder = Path(data).resolve()
    own = folder.name.lower()
    if not folder.is_dir() or own not in names - {*SPLIT_FOLDERS["train"]} or split not in ("evaluation", own):
        return split
    return split if any(path.name.lower() in names for path in folder.iterdir()) else "train"


def _prepare(processor: Any, image: Image.Image) -> Any:
    # An array of numpy, for `read_batches`.
    return processor(image, return_tensors="pt")["pixel_values"][0].numpy()


def _match_classes(pictures: Pictures, names: tuple[str, ...]) -> dict[int, int]:
    """The model's class for each of the data's: by name where the model knows the data's names, by number where it
    knows none of them and there are as many."""
    pictures.check_labels(len(pictures.names) or len(names))
    if pictures.names and set(pictures.names) <= set(names):
        return {index: names.index(name) for index, name in enumerate(pictures.names)}
    if pictures.names and (len(pictures.names) != len(names) or set(pictures.names) & set(names)):
        raise UsageError(
            f"{pictures.place} names classes that the model does not know, for example "
            f"{sorted(set(pictures.names) - set(names))[:3]}; the folders must be called as in the model's config.json."
        )
    if pictures.names:
        logger.warning(
            f"the model calls no class as {pictures.place} does ({names[0]!r}, {pictures.names[0]!r} ...); classes are "
            "matched by their order"
        )
    return {index: index for index in range(len(names))}


def draw_evaluation(found: Evaluation, pictures: Pictures, folder: Path) -> list[Path]:
    """Draws the confusion matrix and, if there are any, the surest mistakes.

    Returns:
        The files.
    """
    files = [folder / "confusion.png"]
    draw_confusion(found.confusion, found.names, files[0])
    if found.worst:
        files.append(folder / "mistakes.png")
        drawn = []
        for index, truth, answer, probability in found.worst:
            image = decode(pictures[index].picture, 3)
            drawn.append(Mistake(np.asarray(image), found.names[truth], found.names[answer], probability))
        draw_mistakes(drawn, files[1])
    return files
