"""Writes torchvision's copy of CIFAR-10 as train.parquet and test.parquet, for the recipes and scripts.

    python scripts/cifar10.py --root downloads --output cifar10

With access to the hub this is not needed: `--data uoft-cs/cifar10` is the same data.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from pathlib import Path
from typing import Annotated

import datasets
import numpy as np
import typer
from torchvision.datasets import CIFAR10

from swinv2.train.data.augment import decode
from swinv2.train.data.sources import open_dataset


def read_arrays(source: str, split: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """All images of a split (N, H, W, 3), their labels (N,), and the names of the classes."""
    dataset = open_dataset(source, split)
    return np.stack([np.asarray(decode(sample.image, 3)) for sample in dataset]), dataset.labels(), dataset.names


def main(
    root: Annotated[Path, typer.Option(help="Folder of cifar-10-batches-py; downloaded if missing.")],
    output: Annotated[Path, typer.Option(help="The folder to write.")] = Path("cifar10"),
) -> None:
    """Writes both splits."""
    output.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        found = CIFAR10(str(root), train=split == "train", download=True)
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=found.classes)})
        rows = datasets.Dataset.from_dict({"image": list(found.data), "label": found.targets}, features=features)
        rows.to_parquet(output / f"{split}.parquet")


if __name__ == "__main__":
    typer.run(main)
