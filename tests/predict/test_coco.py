"""pycocotools reads what is written, with the ids of its annotations."""

import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from swinv2.dense.average_precision import Detections
from swinv2.dense.masks import decode_mask, encode_masks
from swinv2.errors import UsageError
from swinv2.images import BrokenImage
from swinv2.predict.coco import CocoIds, write_coco, write_ids
from swinv2.predict.detecting import Detected

NAMES = ("cat", "dog")
IMAGES = [
    {"id": 70, "file_name": "dog.jpg", "width": 8, "height": 6},
    {"id": 80, "file_name": "b/dog.jpg", "width": 8, "height": 6},
    {"id": 90, "file_name": "cat.jpg", "width": 8, "height": 6},
]
CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}]


def found(*scores: float, masks: bool = False) -> Detected:
    """Objects of an image of 8 x 6 pixels: a dog, a cat, a dog and so on, each from (1, 2) to (4, 6)."""
    count = len(scores)
    pixels = np.zeros((count, 6, 8), bool)
    pixels[:, 2:6, 1:4] = True
    boxes = np.tile([1.0, 2.0, 4.0, 6.0], (count, 1))
    labels = (np.arange(count) + 1) % 2
    return Detected((8, 6), Detections(boxes, labels, np.array(scores), encode_masks(pixels) if masks else None), [])


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps({"images": IMAGES, "categories": CATEGORIES, "annotations": []}))
    return file


def read_results(annotations: Path, results: Path) -> Any:
    """The results as pycocotools reads them."""
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(annotations)).loadRes(str(results))


@pytest.mark.parametrize("masks", [False, True])
def test_pycocotools_reads_the_results(annotations: Path, tmp_path: Path, masks: bool) -> None:
    ids = CocoIds.read(annotations)
    paths = [Path("a/dog.jpg"), Path("broken.jpg"), Path("cat.jpg")]
    answers = [found(0.75, 0.5, masks=masks), BrokenImage(paths[1], "not an image"), found(0.25, masks=masks)]
    image_ids = ids.of_images([paths[0], paths[2]])
    file = tmp_path / "results.json"
    given = list(zip(paths, answers, strict=True))
    assert list(write_coco(given, file, image_ids, ids.of_classes(NAMES))) == given
    read = read_results(annotations, file)
    assert [
        (each["image_id"], each["category_id"], each["score"], list(each["bbox"])) for each in read.anns.values()
    ] == [
        (70, 18, 0.75, [1, 2, 3, 4]),
        (70, 17, 0.5, [1, 2, 3, 4]),
        (90, 18, 0.25, [1, 2, 3, 4]),
    ]
    if masks:
        assert decode_mask(read.anns[3]["segmentation"], (6, 8)).sum() == 12


def test_the_written_ids_are_annotations_for_the_results(tmp_path: Path) -> None:
    paths = [Path("a/dog.jpg"), Path("broken.jpg"), Path("b/dog.jpg")]
    answers = [found(0.75), BrokenImage(paths[1], "not an image"), found(0.5, 0.25)]
    numbers = dict(zip(paths, (1, 2, 3), strict=True))
    results, ids = tmp_path / "r.json", tmp_path / "r.images.json"
    passed = write_coco(zip(paths, answers, strict=True), results, numbers, [1, 2])
    assert len(list(write_ids(passed, ids, numbers, {"cat": 1, "dog": 2}))) == 3
    read = read_results(ids, results)
    assert {image["id"]: image["file_name"] for image in read.imgs.values()} == {1: "a/dog.jpg", 3: "b/dog.jpg"}
    assert [(each["width"], each["height"]) for each in read.imgs.values()] == [(8, 6)] * 2
    assert [(each["image_id"], read.cats[each["category_id"]]["name"]) for each in read.anns.values()] == [
        (1, "dog"),
        (3, "dog"),
        (3, "cat"),
    ]


def test_results_without_objects_are_an_empty_list(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    assert len(list(write_coco([(Path("a.jpg"), found())], file, {Path("a.jpg"): 1}, [1, 2]))) == 1
    assert json.loads(file.read_text()) == []


def test_a_run_that_fails_leaves_the_old_results(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text("old")

    def answers() -> Iterator[tuple[Path, Detected | BrokenImage]]:
        yield Path("a.jpg"), found(0.5)
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        list(write_coco(answers(), file, {Path("a.jpg"): 1}, [1, 2]))
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
    assert file.read_text() == "old"


def test_an_image_is_found_by_the_longest_file_name(annotations: Path) -> None:
    paths = [Path("photos/a/dog.jpg"), Path("/photos/b/dog.jpg"), Path("cat.jpg")]
    assert list(CocoIds.read(annotations).of_images(paths).values()) == [70, 80, 90]


def test_an_image_that_is_not_annotated_is_named(annotations: Path) -> None:
    sentence = "annotations.json' has no image 'cow.jpg'; its file names are dog.jpg, b/dog.jpg, cat.jpg. Give the"
    with pytest.raises(UsageError, match=re.escape(sentence)):
        CocoIds.read(annotations).of_images([Path("cat.jpg"), Path("cow.jpg")])


def test_two_images_with_one_id_are_named(annotations: Path) -> None:
    with pytest.raises(
        UsageError, match=r"'a/dog.jpg' and 'c/dog.jpg' are the same image in '.*', id 70; give only one"
    ):
        CocoIds.read(annotations).of_images([Path("a/dog.jpg"), Path("c/dog.jpg")])


def test_a_class_that_is_no_category_is_named(annotations: Path) -> None:
    with pytest.raises(
        UsageError, match=r"has no category cow, which the model can find; its categories are dog, cat\."
    ):
        CocoIds.read(annotations).of_classes(["cat", "cow"])


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ("{", "has no COCO annotations (JSONDecodeError"),
        ("[]", "has no COCO annotations (TypeError"),
        ('{"images": []}', "has no COCO annotations (KeyError: 'categories'); expected JSON with"),
        ('{"images": [{"file_name": "a"}], "categories": []}', "has no COCO annotations (KeyError: 'id')"),
        ('{"images": [{"file_name": "a", "id": "x"}], "categories": []}', "has no COCO annotations (ValueError"),
        (None, "cannot be read: No such file or directory."),
    ],
)
def test_a_file_without_annotations_is_named(tmp_path: Path, contents: str | None, reason: str) -> None:
    file = tmp_path / "some.json"
    if contents is not None:
        file.write_text(contents)
    with pytest.raises(UsageError, match=re.escape("some.json' " + reason)):
        CocoIds.read(file)
