"""Writes Tiny-ImageNet as train.parquet and validation.parquet, with class names in plain English.

    python scripts/tiny_imagenet.py --source tiny-imagenet-200 --output tiny-imagenet
    swinv2 finetune --config recipes/tiny-imagenet-32.yaml --data tiny-imagenet --output-dir runs/tiny-imagenet-32

The source is one of three:

- the folder of the unpacked tiny-imagenet-200.zip of Stanford's course CS231n: train/n01443537/images/*.JPEG, and
  val/images with val/val_annotations.txt; the files are stored as they are;
- a name on the hub, such as zh-plus/tiny-imagenet, whose classes are WordNet's numbers;
- a folder of sheets of 100 x 100 images of 64 x 64 pixels, train_0.webp ... and validation.webp, row by row, with the
  classes in the arrays `train` and `validation` of labels.npz; they are stored as PNG.

`tiny_imagenet.csv` beside this file has the 200 classes in the order of their numbers. A name is WordNet's first one,
or a clearer one ("stick insect" instead of "walking stick"). The images are ImageNet's: only for non-commercial
research.
"""

import csv
import io
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import datasets
import numpy as np
import typer
from PIL import Image

SIDE, ACROSS = 64, 100
"""Pixels of an image, and images along a side of a sheet."""

with (Path(__file__).parent / "tiny_imagenet.csv").open(newline="") as file:
    CLASSES: dict[str, str] = {row["wnid"]: row["name"] for row in csv.DictReader(file)}
"""The name of each class by its WordNet number, in the order of the labels."""

FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES.values()))})

Row = dict[str, Any]


def read_folder(folder: Path, split: str) -> Iterator[Row]:
    """The rows of a split of the unpacked zip file: the bytes of each file, and its label."""
    label_of = {wnid: label for label, wnid in enumerate(CLASSES)}
    if split == "train":
        files = [(path, wnid) for wnid in label_of for path in sorted((folder / "train" / wnid / "images").iterdir())]
    else:
        lines = (folder / "val" / "val_annotations.txt").read_text().splitlines()
        files = [(folder / "val" / "images" / name, wnid) for name, wnid, *_ in (line.split("\t") for line in lines)]
    for path, wnid in files:
        yield {"image": {"bytes": path.read_bytes(), "path": path.name}, "label": label_of[wnid]}


def read_sheets(folder: Path, split: str) -> Iterator[Row]:
    """The rows of a split that is stored as sheets; each label must have an image, and each image a label."""
    with np.load(folder / "labels.npz") as arrays:
        if arrays["wnids"].tolist() != list(CLASSES):
            raise SystemExit(f"{folder / 'labels.npz'} has other classes than tiny_imagenet.csv; expected its 200.")
        labels = arrays[split].tolist()
    of_train = [f"train_{number}.webp" for number in range(len(labels) // ACROSS**2)]
    sheets = [folder / name for name in (of_train if split == "train" else ["validation.webp"])]
    missing = [sheet.name for sheet in sheets if not sheet.is_file()]
    if missing:
        raise SystemExit(f"{folder} has {len(labels)} labels for {split}, but lacks {', '.join(missing)}.")
    found = len(list(folder.glob(f"{split}*.webp")))
    if len(labels) != found * ACROSS**2:
        raise SystemExit(
            f"{folder / 'labels.npz'} has {len(labels)} labels for {split}; expected {ACROSS**2} for each of {found} "
            "sheets."
        )
    label_of_next = iter(labels)
    for sheet in sheets:
        with Image.open(sheet) as opened:
            pixels = np.asarray(opened.convert("RGB")).reshape(ACROSS, SIDE, ACROSS, SIDE, 3)
        for image in pixels.transpose(0, 2, 1, 3, 4).reshape(-1, SIDE, SIDE, 3):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            yield {"image": {"bytes": buffer.getvalue(), "path": None}, "label": next(label_of_next)}


def read_hub(name: str, split: str) -> datasets.Dataset:
    """A split of a data set whose classes are WordNet's numbers, with the names instead."""
    found = datasets.load_dataset(name)
    rows = found["train" if split == "train" else next(other for other in found if other != "train")]
    if rows.features["label"].names != list(CLASSES):
        raise SystemExit(f"{name} has other classes than tiny_imagenet.csv; expected its 200 WordNet numbers.")
    return rows.select_columns(["image", "label"]).cast(FEATURES)


def main(
    source: Annotated[str, typer.Option(help="The unpacked zip file, a folder of sheets, or a name on the hub.")],
    output: Annotated[Path, typer.Option(help="The folder to write.")] = Path("tiny-imagenet"),
    splits: Annotated[str, typer.Option(help="Only these splits.")] = "train,validation",
) -> None:
    """Writes a file for each split."""
    Image.MAX_IMAGE_PIXELS = None  # A sheet has 41 million pixels.
    folder = Path(source)
    read = read_sheets if (folder / "labels.npz").is_file() else read_folder
    output.mkdir(parents=True, exist_ok=True)
    for split in splits.split(","):
        with tempfile.TemporaryDirectory(dir=output) as cache:
            rows: Any = (
                datasets.Dataset.from_generator(
                    partial(read, folder, split), FEATURES, cache, split=datasets.Split(split)
                )
                if folder.is_dir()
                else read_hub(source, split)
            )
            rows.to_parquet(output / f"{split}.parquet")


if __name__ == "__main__":
    typer.run(main)
