"""Names of classes.

In: a classifier's number of classes. Out: ImageNet's names, if ImageNet has this number of classes. This module knows
no model.

The authors' models do not have the class order of timm's list of ImageNet-22k: the authors' map from 22k to 1k
(data/map22kto1k.txt) agrees with that list for 718 of the 1000 classes. With timm's list of Google's ImageNet-21k,
which has two more classes, it agrees for 999: all classes that are in both. So the names are from the latter list.

Source: timm, data/imagenet_info.py; microsoft/Swin-Transformer, data/map22kto1k.txt.
"""

import importlib.util

from swinv2.errors import UsageError

IMAGENET_1K, IMAGENET_22K = 1000, 21841


def published_names(num_labels: int) -> tuple[list[str] | None, str]:
    """Names of the classes of a published classifier with so many classes.

    Returns:
        The names in the order of the scores, None if they are not known; and a sentence about their source.
    """
    lists = {IMAGENET_1K: "imagenet-1k", IMAGENET_22K: "imagenet-21k-goog"}
    if num_labels not in lists:
        return None, f"The names of its {num_labels} classes are not known; the classes have numbers instead."
    if importlib.util.find_spec("timm") is None:
        return None, f"Its {num_labels} classes have numbers instead of names: the names need timm, not installed here."
    from timm.data import ImageNetInfo

    names = list(ImageNetInfo(lists[num_labels]).label_descriptions())[:num_labels]
    if len(names) != num_labels:
        raise UsageError(f"timm's list {lists[num_labels]!r} has {len(names)} names; expected {num_labels}.")
    if num_labels == IMAGENET_1K:
        return names, "It has 1000 classes, assumed to be those of ImageNet-1k; the names are timm's."
    return names, (
        "It has 21841 classes, assumed to be those of ImageNet-22k in the authors' order; the names are timm's. The "
        "authors' map to ImageNet-1k proves the order up to class 21817; the last 23 names may be off by two."
    )
