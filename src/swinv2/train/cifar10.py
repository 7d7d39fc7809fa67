"""CIFAR-10, from wherever it lies, as arrays.

In: a place. Out: images (N, 32, 32, 3) and labels (N,), both uint8, and the names of the ten classes. Three places are
understood: a folder of image sheets (`cifar10_*.webp` and `cifar10_labels.npz`), torchvision's folder
(`cifar-10-batches-py`), and a name or folder for `datasets`. This module knows no model.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
TRAIN_SIZE, TEST_SIZE = 50_000, 10_000
SHEET_SIDE = 100
"""Images along each side of a sheet."""


class Split(NamedTuple):
    """Part of the data.

    Attributes:
        images: (N, 32, 32, 3), uint8.
        labels: (N,), integers from 0 to 9, an index into `LABELS`.
    """

    images: np.ndarray
    labels: np.ndarray


def load_cifar10(source: str | Path, train: bool) -> Split:
    """Loads the training or the test images.

    Args:
        source: A folder of sheets; a folder that holds torchvision's `cifar-10-batches-py`; a folder written by
            `datasets.save_to_disk`; or the name of a data set on the hub, for example "uoft-cs/cifar10".
        train: True for the 50,000 training images, False for the 10,000 test images.

    Raises:
        ValueError: The place holds none of these, or not the whole split.
    """
    folder = Path(source)
    if (folder / "cifar10_labels.npz").is_file():
        split = _from_sheets(folder, train)
    elif (folder / "cifar-10-batches-py").is_dir():
        split = _from_torchvision(folder, train)
    elif folder.exists() and not (folder / "dataset_dict.json").is_file():
        raise ValueError(
            f"{source} holds no CIFAR-10; expected cifar10_labels.npz with its sheets, torchvision's folder "
            "cifar-10-batches-py, or a folder written by datasets' save_to_disk."
        )
    else:
        split = _from_datasets(source, train)
    expected = TRAIN_SIZE if train else TEST_SIZE
    if split.images.shape != (expected, SIDE, SIDE, 3) or split.labels.shape != (expected,):
        raise ValueError(
            f"{source} holds images {split.images.shape} and labels {split.labels.shape}; expected {expected} images "
            f"of {SIDE} x {SIDE} x 3 and as many labels."
        )
    return split


def _from_sheets(folder: Path, train: bool) -> Split:
    names = [f"cifar10_{index}.webp" for index in (range(5) if train else (5,))]
    images = []
    for name in names:
        with Image.open(folder / name) as sheet:
            pixels = np.asarray(sheet.convert("RGB"))
        tiles = pixels.reshape(SHEET_SIDE, SIDE, SHEET_SIDE, SIDE, 3).transpose(0, 2, 1, 3, 4)
        images.append(tiles.reshape(-1, SIDE, SIDE, 3))
    with np.load(folder / "cifar10_labels.npz", allow_pickle=False) as labels:
        return Split(np.concatenate(images), labels["ytr" if train else "yte"].astype(np.uint8))


def _from_torchvision(folder: Path, train: bool) -> Split:
    from torchvision.datasets import CIFAR10

    data = CIFAR10(str(folder), train=train, download=False)
    return Split(data.data, np.asarray(data.targets, dtype=np.uint8))


def _from_datasets(source: str | Path, train: bool) -> Split:
    from datasets import load_dataset, load_from_disk

    name = "train" if train else "test"
    data: Any = load_from_disk(str(source))[name] if Path(source).is_dir() else load_dataset(str(source), split=name)
    image, label = ("img" if "img" in data.column_names else "image"), "label"
    images = np.stack([np.asarray(picture.convert("RGB")) for picture in data[image]])
    return Split(images, np.asarray(data[label], dtype=np.uint8))
