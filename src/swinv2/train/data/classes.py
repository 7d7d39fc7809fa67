"""The classes of data sets and models, matched by name and never silently by number.

In: data sets, and the names of the classes of a model or of the training data. Out: data sets whose labels are indices
of these names. What does not match is named in a warning, with its number of images. This module opens no file.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from swinv2.errors import UsageError, few
from swinv2.train.data.dataset import ImageDataset

logger = logging.getLogger(__name__)

Data = TypeVar("Data", bound=ImageDataset)


def classes_to_train(train: Data) -> Data:
    """Names the classes of the training data, and leaves out those without an image. A class without a name is called
    by its number.

    Raises:
        UsageError: There are no labels, or only one class; the data streams and does not name its classes.
    """
    if train.streams and train.label_column is not None:
        if not train.names:
            raise UsageError(f"{train.source} does not name its classes; give --label-names-file, a name on each line.")
        return train
    names = _names_of_labels(train)
    train.check_labels(max(names, default=0) + 1)
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise UsageError(f"{train.source} has several classes with the name {_quoted(twice)}; give each its own name.")
    present = set(train.labels().tolist())
    kept = [name for label, name in names.items() if label in present]
    without = [name for label, name in names.items() if label not in present]
    if without:
        logger.warning(
            f"{train.source} has no {train.things[:-1]} to train {_quoted(without)}; the classifier does not get "
            f"{'this class' if len(without) == 1 else 'these classes'}"
        )
    if len(kept) == 1 and not train.several:
        raise UsageError(
            f"{train.source} has {train.things} of only one class, {kept[0]!r}; a classifier needs two. In a folder of "
            f"{train.things}, the folders directly below are the classes; in a list, the labels are."
        )
    return _renumbered(train, names, tuple(kept))


def match_classes(dataset: Data, names: Sequence[str], owner: str) -> Data:
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
    own = _names_of_labels(dataset)
    if not dataset.names and not set(own.values()) <= set(names):
        logger.warning(
            f"{dataset.source} has numbers instead of class names: 0 is {names[0]!r} of {owner}, and so on in its order"
        )
        own = dict(enumerate(names))
    dataset.check_labels(max(own, default=0) + 1)
    if own == dict(enumerate(names)):
        return replace(dataset, names=names)
    images = Counter(dataset.labels().tolist())
    counts = {name: images[label] for label, name in own.items()}
    unknown = [name for name, count in counts.items() if count and name not in names]
    if not any(count and name in names for name, count in counts.items()):
        raise UsageError(
            f"{dataset.source} has the classes {_quoted(unknown)}, and {owner} has none of them, but {_quoted(names)}; "
            "give the same class the same name."
        )
    if unknown:
        left_out = few([f"{name!r} ({counts[name]:,})" for name in unknown], 5)
        what = "these labels" if dataset.several else f"their {dataset.things}"
        logger.warning(
            f"{dataset.source} has classes that {owner} lacks; {what} are left out of the evaluation: {left_out}"
        )
    return _renumbered(dataset, own, names)


def _names_of_labels(dataset: ImageDataset) -> dict[int, str]:
    """The name of the class of each label, in the order of the labels; if the data has no names, the numbers that
    occur."""
    if dataset.names:
        return dict(enumerate(dataset.names))
    return {label: str(label) for label in np.unique(dataset.labels()).tolist()}


def _renumbered(dataset: Data, own: Mapping[int, str], names: tuple[str, ...]) -> Data:
    """The images whose class is among some names; their labels become the indices of the names. An image that may have
    several labels stays, without those of other classes."""
    place = {name: index for index, name in enumerate(names)}
    numbers = {label: place.get(name, -1) for label, name in own.items()}
    if dataset.several:
        kept = np.arange(len(dataset))
    else:
        kept = np.flatnonzero([numbers[label] >= 0 for label in dataset.labels().tolist()])
    return replace(
        dataset,
        names=names,
        chosen=kept if dataset.chosen is None else dataset.chosen[kept],
        # -1, of images that are left out, stays -1.
        numbers=numbers
        if dataset.numbers is None
        else {stored: numbers.get(label, -1) for stored, label in dataset.numbers.items()},
    )


def _quoted(names: Sequence[str]) -> str:
    """The first of some classes, for a message."""
    return few([repr(name) for name in names], 5)
