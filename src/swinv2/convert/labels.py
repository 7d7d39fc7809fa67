"""Names of classes.

In: the number of classes of a classifier. Out: the names of ImageNet's, if it has as many. This module knows no model.

ImageNet-22k as the authors' models know it is not in the order of timm's list of that name: the authors' own map from
22k to 1k (data/map22kto1k.txt) agrees with that list for 718 of the 1000 classes, and with timm's list of Google's
ImageNet-21k, which has two classes more, for 999: for all that are in it at all. So the names are taken from there.

Source: timm, data/imagenet_info.py; microsoft/Swin-Transformer, data/map22kto1k.txt.
"""

import importlib.util

from swinv2.errors import UsageError

IMAGENET_1K, IMAGENET_22K = 1000, 21841


def published_names(num_labels: int) -> tuple[list[str] | None, str]:
    """Names of the classes of a published classifier.

    Args:
        num_labels: How many it has.

    Returns:
        The names in the order of the scores, None if they are not known; and a sentence that says where they are from.
    """
    lists = {IMAGENET_1K: "imagenet-1k", IMAGENET_22K: "imagenet-21k-goog"}
    if num_labels not in lists:
        return None, f"The names of its {num_labels} classes are not known; they are numbered."
    if importlib.util.find_spec("timm") is None:
        return None, f"Its {num_labels} classes are numbered: their names are timm's, which is not installed."
    from timm.data import ImageNetInfo

    names = list(ImageNetInfo(lists[num_labels]).label_descriptions())[:num_labels]
    if len(names) != num_labels:
        raise UsageError(f"timm's list {lists[num_labels]!r} has {len(names)} names; expected {num_labels}.")
    if num_labels == IMAGENET_1K:
        return names, "It has 1000 classes, which are taken for those of ImageNet-1k; the names are timm's."
    return names, (
        "It has 21841 classes, which are taken for those of ImageNet-22k in the authors' order; the names are timm's. "
        "The order is proven up to class 21817 by the authors' map to ImageNet-1k; the last 23 names may be off by two."
    )
