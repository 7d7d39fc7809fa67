"""`scripts/tiny_imagenet.py`: from each kind of source, what `swinv2 finetune` reads."""

import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from swinv2.train.data.augment import decode
from swinv2.train.data.sources import open_dataset

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPTS)
    import tiny_imagenet

    yield tiny_imagenet
    sys.modules.pop("tiny_imagenet")


def solid(colour: int) -> Image.Image:
    return Image.new("RGB", (64, 64), (colour, colour, colour))


def check(folder: Path, split: str, expected: list[tuple[str, int]]) -> None:
    """The classes and the shades of grey of the images, in their order."""
    found = open_dataset(str(folder), split)
    assert len(found.names) == 200
    labels = found.labels()
    rows = [(found.names[labels[index]], int(np.mean(decode(each.image, 3)))) for index, each in enumerate(found)]
    assert [name for name, _ in rows] == [name for name, _ in expected]
    assert [shade for _, shade in rows] == pytest.approx([shade for _, shade in expected], abs=2)


def test_the_unpacked_zip_file(script: Any, tmp_path: Path) -> None:
    """Files are stored as they are; the labels of validation are those of its annotations."""
    source = tmp_path / "tiny-imagenet-200"
    for wnid, shade in zip(script.CLASSES, range(200), strict=True):
        (source / "train" / wnid / "images").mkdir(parents=True)
        if shade < 2:
            solid(shade).save(source / "train" / wnid / "images" / f"{wnid}_0.JPEG")
    (source / "val" / "images").mkdir(parents=True)
    lines = []
    for index, wnid in enumerate(["n02231487", "n01443537"]):
        solid(100 * index).save(source / "val" / "images" / f"val_{index}.JPEG")
        lines.append(f"val_{index}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (source / "val" / "val_annotations.txt").write_text("".join(lines))
    script.main(str(source), tmp_path / "made")
    check(tmp_path / "made", "train", [("goldfish", 0), ("European fire salamander", 1)])
    check(tmp_path / "made", "validation", [("stick insect", 0), ("goldfish", 100)])
    stored = datasets.load_dataset("parquet", data_files=str(tmp_path / "made" / "validation.parquet"))["train"]
    image = stored.cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert image["bytes"] == (source / "val" / "images" / "val_0.JPEG").read_bytes()


def save_sheets(folder: Path, classes: list[str], sheets: int, labels: int) -> Path:
    """A folder of sheets of 2 x 2 images for training, and labels that count up."""
    folder.mkdir()
    for number in range(sheets):
        shades = number * 10 + np.arange(4, dtype=np.uint8).reshape(2, 1, 2, 1)
        pixels = np.broadcast_to(shades, (2, 64, 2, 64)).reshape(128, 128)
        Image.fromarray(np.stack([pixels] * 3, -1)).save(folder / f"train_{number}.webp", lossless=True)
    counted = np.arange(labels, dtype=np.uint8)
    np.savez(folder / "labels.npz", train=counted, validation=counted, wnids=np.array(classes))
    return folder


def test_sheets(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row; the tenth sheet comes after the ninth."""
    monkeypatch.setattr(script, "ACROSS", 2)
    source = save_sheets(tmp_path / "sheets", list(script.CLASSES), 11, 44)
    script.main(str(source), tmp_path / "made", "train")
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["train.parquet"]
    names = list(script.CLASSES.values())
    shades = [sheet * 10 + place for sheet in range(11) for place in range(4)]
    check(tmp_path / "made", "train", list(zip(names, shades, strict=False)))


def test_sheets_and_labels_of_other_numbers(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing sheet is named: the labels after it would be those of other images."""
    monkeypatch.setattr(script, "ACROSS", 2)
    source = save_sheets(tmp_path / "sheets", list(script.CLASSES), 3, 12)
    (source / "train_1.webp").unlink()
    with pytest.raises(SystemExit, match=r"has 12 labels for train, but lacks train_1\.webp"):
        script.main(str(source), tmp_path / "made", "train")
    with pytest.raises(SystemExit, match=r"has 12 labels for validation, but lacks validation\.webp"):
        script.main(str(source), tmp_path / "made", "validation")
    for labels in (8, 11):
        source = save_sheets(tmp_path / str(labels), list(script.CLASSES), 3, labels)
        with pytest.raises(SystemExit, match=rf"has {labels} labels for train; expected 4 for each of 3 sheets"):
            script.main(str(source), tmp_path / "made", "train")
    assert not list((tmp_path / "made").iterdir())


def test_a_data_set_of_the_hub(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its classes are WordNet's numbers, and its second split is called valid; other classes are an error."""
    numbers = datasets.ClassLabel(names=list(script.CLASSES))
    features = datasets.Features({"image": datasets.Image(), "label": numbers})
    rows = datasets.Dataset.from_dict({"image": [solid(7), solid(9)], "label": [40, 0]}, features=features)
    hub = datasets.DatasetDict({"train": rows.select([1]), "valid": rows})
    monkeypatch.setattr(script.datasets, "load_dataset", lambda name: hub)
    script.main("somebody/tiny-imagenet", tmp_path / "made", "validation")
    monkeypatch.undo()
    check(tmp_path / "made", "validation", [("stick insect", 7), ("goldfish", 9)])
    other = rows.cast_column("label", datasets.ClassLabel(names=[f"n{index}" for index in range(200)]))
    monkeypatch.setattr(script.datasets, "load_dataset", lambda name: {"train": other})
    with pytest.raises(SystemExit, match="other classes"):
        script.main("somebody/else", tmp_path / "made", "train")
