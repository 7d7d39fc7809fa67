"""Evaluation of a model without a classifier: each image gets the class of its nearest neighbours.

In: a model's folder or name, and a source of labelled images. Out: accuracies, as of a classifier. Nothing is trained:
the images of the split "train" are the bank, and the images of another split ask for their neighbours among them. If
there is no other split, each image asks all others (leave-one-out). Nearest is the largest cosine similarity of the
features; a neighbour's vote counts exp(similarity / `TEMPERATURE`).

Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, 2018, section 3.4; the same
evaluation as in Caron et al., Emerging Properties in Self-Supervised Vision Transformers (DINO), 2021.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2.errors import UsageError, few
from swinv2.loading import choose_device, load_model, load_processor
from swinv2.model import Swinv2Model
from swinv2.train.data.augment import process_image
from swinv2.train.data.classes import classes_to_train, match_classes
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.examples import IGNORED_LABEL
from swinv2.train.data.sources import open_dataset
from swinv2.train.features import Features, collect_features, read_features
from swinv2.train.scores import BEST_CLASSES, Evaluation

NEIGHBOURS = 20
TEMPERATURE = 0.07

NO_CLASS = -1
"""In place of a class that got no vote."""

_SIMILARITIES_AT_ONCE = 2**24


@dataclass(frozen=True)
class NeighbourEvaluation(Evaluation):
    """The results of an evaluation by nearest neighbours. There is no loss: most classes have no neighbour."""

    neighbours: int
    """Number of neighbours that vote."""
    bank: int
    """Number of images among which they are."""
    leave_one_out: bool
    """Whether the bank is the images themselves, and each image asks all others."""

    def summary(self) -> dict[str, Any]:
        """The results as plain values, for JSON."""
        own = {"neighbours": self.neighbours, "bank": self.bank, "leave_one_out": self.leave_one_out}
        return super().summary() | own


class Bank:
    """Images with known classes, among which neighbours are found.

    Args:
        values: Features (images, channels), on the device that computes.
        labels: Their classes (images,).
        classes: Number of classes.
    """

    def __init__(self, values: Tensor, labels: Tensor, classes: int) -> None:
        self.values, self.labels, self.classes = F.normalize(values), labels.to(values.device), classes

    def votes(self, queries: Tensor, neighbours: int, left_out: Tensor | None = None) -> Tensor:
        """The sum of the votes for each class.

        Args:
            queries: Features (queries, channels).
            neighbours: Number of neighbours that vote; fewer than the images of the bank if `left_out` is given.
            left_out: For each query (queries,), an image of the bank that does not vote: the query itself.

        Returns:
            Votes (queries, classes), fp64, on the CPU.
        """
        directions, votes = F.normalize(queries.to(self.values)), list[Tensor]()
        chunk = max(_SIMILARITIES_AT_ONCE // len(self.values), 1)
        for start in range(0, len(queries), chunk):
            similarities = directions[start : start + chunk] @ self.values.T
            if left_out is not None:
                own = left_out[start : start + chunk, None].to(self.values.device)
                similarities.scatter_(1, own, -torch.inf)
            nearest = find_largest(similarities, neighbours)
            weights = (similarities.gather(1, nearest).double() / TEMPERATURE).exp()
            counted = weights.new_zeros(len(weights), self.classes)
            votes.append(counted.scatter_add_(1, self.labels[nearest], weights).cpu())
        return torch.cat(votes)


def find_largest(values: Tensor, number: int) -> Tensor:
    """The columns of the largest values of each row, in the order of the columns; of equal values, the first ones."""
    # Of equal values, `topk` takes any.
    limit = values.topk(number).values[:, -1:]
    is_larger, is_equal = values > limit, values == limit
    room = number - is_larger.sum(1, keepdim=True)
    return (is_larger | (is_equal & (is_equal.cumsum(1) <= room))).nonzero()[:, 1].view(len(values), number)


def evaluate_neighbours(
    model: str,
    data: str,
    split: str = "evaluation",
    *,
    neighbours: int = NEIGHBOURS,
    batch_size: int = 64,
    workers: int | None = None,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    image_column: str | None = None,
    label_column: str | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[NeighbourEvaluation, ImageDataset]:
    """Evaluates a model with any head, or with none.

    Args:
        neighbours: Number of neighbours that vote; all images of a smaller bank.
        model, data, split, batch_size, workers, device, dtype, image_column, label_column: See `evaluate.evaluate`.
        advance: Called with the number of images done and the number of all images, those of the bank first.

    Returns:
        The results, and the images that were classified.

    Raises:
        UsageError: The model or the data cannot be opened, or no class is in both splits.
    """
    encoder = load_model(Swinv2Model, model, choose_device(device), dtype)
    transform = partial(process_image, load_processor(model, encoder.config.num_channels))
    bank_images, images = _open_splits(data, split, image_column, label_column)
    leave_one_out = images is bank_images
    total = len(bank_images) + (0 if leave_one_out else len(images))

    read = partial(read_features, encoder, transform=transform, batch_size=batch_size, workers=workers)
    found = collect_features(read(bank_images), lambda done: advance(done, total))
    known = found.readable()
    number = min(neighbours, len(known.labels) - leave_one_out)
    if number < 1:
        raise UsageError(f"{bank_images.source} has too few readable images for a neighbour; expected at least two.")
    bank = Bank(known.values.to(encoder.device), known.labels, len(bank_images.names))
    unreadable, done = list(found.broken), len(bank_images)
    columns: list[tuple[Tensor, ...]] = []
    for batch, left_out in _leave_out_each(found, batch_size) if leave_one_out else _leave_out_none(read(images)):
        votes = bank.votes(batch.values, number, left_out)
        most, order = votes.sort(descending=True, stable=True)
        # A class without votes is no answer.
        best = torch.where(most > 0, order, NO_CLASS)[:, :BEST_CLASSES]
        columns.append((batch.labels, best, most[:, 0] / most.sum(1)))
        if not leave_one_out:
            unreadable += batch.broken
            done += len(batch.labels)
            advance(done, total)
    truths, best, shares = (np.concatenate(column) for column in zip(*columns, strict=True))
    if (truths == IGNORED_LABEL).all():
        raise UsageError(f"{images.source} has no readable image.")
    plain = Evaluation.of(truths, best, shares, None, bank_images.names, unreadable)
    return NeighbourEvaluation(
        **vars(plain), neighbours=number, bank=len(known.labels), leave_one_out=leave_one_out
    ), images


def _open_splits(
    data: str, split: str, image_column: str | None, label_column: str | None
) -> tuple[ImageDataset, ImageDataset]:
    """The images of the bank and those to classify, with the classes of the bank; the same object if there is a single
    split."""
    columns: Any = {"image_column": image_column, "label_column": label_column}
    bank = classes_to_train(_open_bank(data, split, columns))
    if bank.several:
        raise UsageError(f"--knn is for images of one label, and {data} has lists of labels; leave it out.")
    has_others = split != "evaluation" or bank.has_evaluation_split
    is_alone = bank.split is None or split == bank.split or not has_others
    if is_alone:
        return bank, bank
    return bank, match_classes(open_dataset(data, split, **columns), bank.names, f"the split {bank.split!r}")


def _open_bank(data: str, split: str, columns: dict[str, Any]) -> ImageDataset:
    """The split "train"."""
    try:
        return open_dataset(data, "train", **columns)
    except UsageError:
        splits = open_dataset(data, "evaluation" if split == "train" else split, **columns).splits
        if not splits or "train" in splits:
            raise
    raise UsageError(
        f"--knn looks for neighbours in the split 'train', and {data} has only {few(sorted(splits))}; give the folder "
        "or the files of one split, for example DATA/validation: each of its images asks the others."
    )


def _leave_out_each(found: Features, batch_size: int) -> Iterator[tuple[Features, Tensor]]:
    """Features in batches, and the place of each image among the readable ones."""
    places = ((found.labels != IGNORED_LABEL).cumsum(0) - 1).clamp(min=0)
    parts = (column.split(batch_size) for column in (found.values, found.labels, places))
    for values, labels, left_out in zip(*parts, strict=True):
        yield Features(values, labels, []), left_out


def _leave_out_none(batches: Iterator[Features]) -> Iterator[tuple[Features, None]]:
    """Features of images that are not in the bank."""
    return ((batch, None) for batch in batches)
