"""The classes of data sets and models, matched by name and never silently by number.

In: data sets, and the names of the classes of a model or of the training data. Out: data sets whose labels are indices
of these names. What does not match is named in a warning, with its number of images. This module opens no file.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from swinv2.errors import UsageError, few
from swinv2.train.data.dataset import ImageDataset

logger = logging.getLogger(__name__)


def classes_to_train(train: ImageDataset) -> ImageDataset:
    """Names the classes of the training data, and leaves out those without an image. A class without a name is called
    by its number.

    Raises:
        UsageError: There are no labels, or only one class; the data streams and does not name its classes.
    """
    if train.streams and train.label_column is not None:
        if not train.names:
            raise UsageError(f"{train.source} does not name its classes; give --label-names-file, a name on each line.")
        return train
    names = _names_or_numbers(train)
    train.check_labels(len(names))
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UsageError(f"{train.source} has several classes with the name {_quoted(twice)}; give each its own name.")
    counts = np.bincount(train.labels(), minlength=len(names))
    kept = [name for name, count in zip(names, counts, strict=True) if count]
    if len(kept) < len(names):
        without = [name for name, count in zip(names, counts, strict=True) if not count]
        logger.warning(
            f"{train.source} has no image to train {_quoted(without)}; the classifier does not get "
            f"{'this class' if len(without) == 1 else 'these classes'}"
        )
    if len(kept) == 1 and not train.several:
        raise UsageError(
            f"{train.source} has images of only one class, {kept[0]!r}; a classifier needs two. In a folder of images, "
            "the folders directly below are the classes."
        )
    return _renumbered(train, names, tuple(kept))


def match_classes(dataset: ImageDataset, names: Sequence[str], owner: str) -> ImageDataset:
    """Gives a data set the classes of a model or of other data, by name.

    Images of other classes are left out, with a warning. If the data set has numbers instead of names, and some are no
    names of classes, they are the indices of the classes; a warning says so.

    Args:
        dataset: The data set; it must not stream.
        names: Names of the classes, in the order of the labels.
        owner: What has these classes, for messages.

    Raises:
        UsageError: There are no labels, no class is in common, or a label is out of range.
    """
    names = tuple(names)
    if not dataset.names and not set(_names_or_numbers(dataset)) <= set(names):
        logger.warning(
            f"{dataset.source} has numbers instead of class names: 0 is {names[0]!r} of {owner}, and so on in its order"
        )
        dataset = replace(dataset, names=names)
    own = _names_or_numbers(dataset)
    dataset.check_labels(len(own))
    if own == names:
        return replace(dataset, names=names)
    counts = dict(zip(own, np.bincount(dataset.labels(), minlength=len(own)).tolist(), strict=True))
    unknown = [name for name, count in counts.items() if count and name not in names]
    if not any(count and name in names for name, count in counts.items()):
        raise UsageError(
            f"{dataset.source} has the classes {_quoted(unknown)}, and {owner} has none of them, but {_quoted(names)}; "
            "give the same class the same name."
        )
    if unknown:
        left_out = few([f"{name!r} ({counts[name]:,})" for name in unknown], 5)
        what = "these labels" if dataset.several else "their images"
        logger.warning(
            f"{dataset.source} has classes that {owner} lacks; {what} are left out of the evaluation: {left_out}"
        )
    return _renumbered(dataset, own, names)


def _names_or_numbers(dataset: ImageDataset) -> tuple[str, ...]:
    """The names of the classes; if the data has none, the numbers up to the largest label."""
    return dataset.names or tuple(map(str, range(int(dataset.labels().max(initial=0)) + 1)))


def _renumbered(dataset: ImageDataset, own: Sequence[str], names: tuple[str, ...]) -> ImageDataset:
    """The images whose class is among some names; their labels become the indices of the names. An image that may have
    several labels stays, without those of other classes."""
    place = {name: index for index, name in enumerate(names)}
    numbers = np.array([place.get(name, -1) for name in own])
    kept = np.arange(len(dataset)) if dataset.several else np.flatnonzero(numbers[dataset.labels()] >= 0)
    return replace(
        dataset,
        names=names,
        chosen=kept if dataset.chosen is None else dataset.chosen[kept],
        # -1, of images that are left out, stays -1.
        numbers=numbers if dataset.numbers is None else np.append(numbers, -1)[dataset.numbers],
    )


def _quoted(names: Sequence[str]) -> str:
    """The first of some classes, for a message."""
    return few([repr(name) for name in names], 5)
