"""A classifier is not trained on masks or objects by mistake."""

from pathlib import Path

import pytest
from PIL import Image

from colours import draw_colours
from scenes import write_masks, write_objects
from swinv2.errors import UsageError
from swinv2.train.data.tasks import refuse_masks_and_objects


def test_masks_and_objects_are_named_with_their_task(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has images and masks, not classes of images; give --task segmentation"):
        refuse_masks_and_objects(write_masks(tmp_path / "masks", count=2))
    with pytest.raises(UsageError, match=r"_annotations\.coco\.json.*give --task detection or instances"):
        refuse_masks_and_objects(write_objects(tmp_path / "objects", count=2))
    yolo = tmp_path / "yolo"
    for split in ("train", "val"):
        (yolo / "images" / split).mkdir(parents=True)
        (yolo / "labels" / split).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(yolo / "images" / split / "a.png")
        (yolo / "labels" / split / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    with pytest.raises(UsageError, match="give --task detection or instances"):
        refuse_masks_and_objects(yolo)


def test_classes_are_classes_whatever_they_are_called(tmp_path: Path) -> None:
    draw_colours(tmp_path / "train", 2, seed=0)
    refuse_masks_and_objects(tmp_path)
    for name in ("mask", "bird", "label"):
        (tmp_path / "birds" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "birds" / name / "a.png")
    refuse_masks_and_objects(tmp_path / "birds")
