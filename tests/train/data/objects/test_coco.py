"""COCO's annotations: where files and images may be, which classes there are, and every kind of broken file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from swinv2.errors import UsageError
from swinv2.train.data.objects.dataset import ObjectDataset
from swinv2.train.data.objects.opening import open_objects

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]


def entry(number: int, image: int = 1, category: int = 7, box: Any = (1, 2, 3, 4), **others: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, **others}


def make(
    file: Path, annotations: list[Any], files: tuple[str, ...] = ("a.png",), folder: Path | None = None, **others: Any
) -> str:
    """A JSON file, and images of 10 x 8 pixels (width x height) in a folder, by default beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    entries = [{"id": index, "file_name": name, "width": 10, "height": 8} for index, name in enumerate(files, 1)]
    for name in files:
        path = (folder or file.parent) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 8)).save(path)
    data = {"images": entries, "annotations": annotations, "categories": CATEGORIES, **others}
    file.write_text(json.dumps(data))
    return str(file)


def boxes(dataset: ObjectDataset) -> list[list[list[float]]]:
    return [one.objects.boxes.tolist() for one in dataset]


def test_a_file_with_two_images_by_hand(tmp_path: Path) -> None:
    square = [[1, 1, 5, 1, 5, 5, 1, 5]]
    annotations = [
        entry(5, 2, 3, [0, 0, 10, 8], segmentation=square, area=16.5),
        entry(6, 1, 7, [1, 2, 3.5, 4]),
        entry(9, 2, 7, [2, 2, 2, 2], segmentation={"size": [8, 10], "counts": [70, 10]}, area=10, iscrowd=1),
    ]
    found = open_objects(make(tmp_path / "all.json", annotations, ("a.png", "b.png", "c.png")), "train")
    assert (found.names, found.category_ids) == (("dog", "cat"), (3, 7))
    assert (found.split, found.splits, found.has_evaluation_split) == (None, (), False)
    first, second, third = found
    assert (first.image, first.name, first.image_id) == (str(tmp_path / "a.png"), str(tmp_path / "a.png"), 1)
    assert first.annotated_size == (8, 10)
    assert first.objects.boxes.tolist() == [[1, 2, 4.5, 6]]
    assert first.objects.areas.tolist() == [14.0]
    assert first.objects.segments == (None,)
    assert second.objects.labels.tolist() == [0, 1]
    assert second.objects.boxes.tolist() == [[0, 0, 10, 8], [2, 2, 4, 4]]
    assert second.objects.areas.tolist() == [16.5, 10]
    assert second.objects.crowd.tolist() == [False, True]
    assert second.objects.segments == (square, {"size": [8, 10], "counts": [70, 10]})
    assert third.objects.boxes.shape == (0, 4)
    assert third.image_id == 3
    assert first.objects.boxes.dtype == np.float32
    assert first.objects.labels.dtype == np.int64
    assert found.counts().tolist() == [1, 1]
    assert not found.has_masks


class TestWhereFilesAre:
    def test_roboflow_has_a_file_in_each_folder_of_a_split(self, tmp_path: Path) -> None:
        for split, number in (("train", 1), ("valid", 2), ("test", 3)):
            make(tmp_path / split / "_annotations.coco.json", [entry(1, box=[0, 0, number, 1])])
        found = open_objects(str(tmp_path), "evaluation")
        assert (found.split, sorted(found.splits)) == ("validation", ["test", "train", "validation"])
        assert boxes(found) == [[[0, 0, 2, 1]]]
        assert boxes(open_objects(str(tmp_path), "test")) == [[[0, 0, 3, 1]]]
        assert found.has_evaluation_split

    def test_the_official_folders_have_the_year_in_their_names(self, tmp_path: Path) -> None:
        for split, number in (("train2017", 1), ("val2017", 2)):
            file = tmp_path / "annotations" / f"instances_{split}.json"
            make(file, [entry(1, box=[0, 0, number, 1])], folder=tmp_path / split)
            make(tmp_path / "annotations" / f"captions_{split}.json", [], ())
        found = open_objects(str(tmp_path), "validation")
        assert boxes(found) == [[[0, 0, 2, 1]]]
        assert found[0].name == str(tmp_path / "val2017" / "a.png")
        direct = open_objects(str(tmp_path / "annotations" / "instances_train2017.json"), "train")
        assert direct[0].name == str(tmp_path / "train2017" / "a.png")
        assert direct.split is None

    @pytest.mark.parametrize("name", ["a.png", "deep/er/a.png"])
    def test_a_file_beside_a_folder_of_images(self, tmp_path: Path, name: str) -> None:
        make(tmp_path / "labels.json", [entry(1)], (name,), tmp_path / "images")
        assert open_objects(str(tmp_path), "train")[0].name == str(tmp_path / "images" / name)

    def test_a_folder_that_is_only_in_the_file_s_names_is_ignored(self, tmp_path: Path) -> None:
        file = tmp_path / "labels.json"
        make(file, [entry(1)], ("a.png",), tmp_path / "photos")
        file.write_text(file.read_text().replace("a.png", "C:\\\\\\\\work\\\\\\\\a.png".replace("\\\\\\\\", "\\\\")))
        assert open_objects(str(tmp_path), "train")[0].name == str(tmp_path / "photos" / "a.png")

    def test_an_image_of_the_same_name_in_another_split_is_not_taken(self, tmp_path: Path) -> None:
        make(tmp_path / "annotations" / "train.json", [entry(1), entry(2, 2)], ("a.png", "b.png"), tmp_path / "train")
        make(tmp_path / "annotations" / "val.json", [entry(1)], ("b.png",), tmp_path / "val")
        (tmp_path / "train" / "b.png").unlink()
        assert [one.name for one in open_objects(str(tmp_path), "train")] == [str(tmp_path / "train" / "a.png")]

    def test_files_that_cannot_be_told_apart(self, tmp_path: Path) -> None:
        make(tmp_path / "one.json", [entry(1)])
        make(tmp_path / "two.json", [entry(1)])
        with pytest.raises(UsageError, match=r"several files .*one\.json, .*two\.json; .* Give one of them instead"):
            open_objects(str(tmp_path), "train")

    def test_a_split_that_does_not_exist(self, tmp_path: Path) -> None:
        make(tmp_path / "train" / "_annotations.coco.json", [entry(1)])
        with pytest.raises(UsageError, match=r"has the splits \['train'\]; expected 'test'"):
            open_objects(str(tmp_path), "test")


class TestClasses:
    def test_the_parent_that_roboflow_writes_is_no_class_and_others_without_an_object_are(self, tmp_path: Path) -> None:
        categories = [
            {"id": 0, "name": "pets", "supercategory": "none"},
            {"id": 1, "name": "cat", "supercategory": "pets"},
            {"id": 2, "name": "dog", "supercategory": "pets"},
        ]
        file = make(tmp_path / "a.json", [entry(1, category=2)], categories=categories)
        assert open_objects(file, "train").names == ("cat", "dog")
        assert open_objects(file, "train")[0].objects.labels.tolist() == [1]
        make(tmp_path / "a.json", [entry(1, category=2), entry(2, category=0)], categories=categories)
        assert open_objects(file, "train").names == ("pets", "cat", "dog")

    def test_a_first_class_without_a_parent_is_a_class(self, tmp_path: Path) -> None:
        categories = [{"id": number, "name": name, "supercategory": "none"} for number, name in enumerate("ab")]
        file = make(tmp_path / "a.json", [entry(1, category=1)], categories=categories)
        assert open_objects(file, "train").names == ("a", "b")


class TestImages:
    def test_a_missing_image_is_left_out_and_named(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        file = make(tmp_path / "a.json", [entry(1, 1), entry(2, 2, box=[0, 0, 5, 5])], ("a.png", "b.png"))
        (tmp_path / "a.png").unlink()
        found = open_objects(file, "train")
        assert [one.image_id for one in found] == [2]
        assert boxes(found) == [[[0, 0, 5, 5]]]
        assert found.counts().tolist() == [0, 1]
        assert "has 1 image left out, because the file does not exist; first a.png (image 1 of" in warnings.text

    def test_an_image_that_the_file_does_not_name_is_counted(
        self, tmp_path: Path, warnings: pytest.LogCaptureFixture
    ) -> None:
        file = make(tmp_path / "a.json", [entry(1)])
        for name in ("x.png", "y.jpg"):
            (tmp_path / name).touch()
        assert len(open_objects(file, "train")) == 1
        assert f"has 2 images left out, because no annotation names them; first {tmp_path}/x.png" in warnings.text

    def test_no_image_at_all(self, tmp_path: Path) -> None:
        file = make(tmp_path / "a.json", [entry(1)])
        (tmp_path / "a.png").unlink()
        with pytest.raises(UsageError, match=r"no image of .*a\.json was found, for example a\.png .* put the images"):
            open_objects(file, "train")

    def test_a_size_that_the_file_does_not_have_is_read_from_the_image(self, tmp_path: Path) -> None:
        file = make(tmp_path / "a.json", [entry(1, box=[5, 5, 90, 90])], files=("a.png",))
        data = json.loads(Path(file).read_text())
        del data["images"][0]["width"]
        Path(file).write_text(json.dumps(data))
        assert boxes(open_objects(file, "train")) == [[[5, 5, 10, 8]]]


NAN, HUGE = float("nan"), 10**400


@pytest.mark.parametrize(
    ("annotations", "others", "message"),
    [
        ([entry(4, box=[1, 2, 3])], {}, r"annotation 4 has the 'bbox' '\[1, 2, 3\]'; expected 4 numbers, left, top"),
        ([entry(3), entry(4, box=[1, 2, 3])], {}, r"annotation 4 has the 'bbox'"),
        ([entry(4, box=[1, 2, "3", 4])], {}, r"annotation 4 has the 'bbox' .*expected 4 numbers"),
        ([entry(4, box=None)], {}, r"annotation 4 has the 'bbox' 'None'; expected 4 numbers"),
        ([entry(4, box=[HUGE, 2, 3, 4])], {}, r"annotation 4 has the 'bbox'"),
        ([entry(4, area="big")], {}, r"annotation 4 has the 'area' 'big'; expected a number"),
        ([{"id": 4, "image_id": 1, "bbox": [1, 2, 3, 4]}], {}, r"annotation 4 has no key 'category_id'"),
        ([{"image_id": 1, "category_id": 7}], {}, r"annotation at position 0, counted from 0, has no key 'bbox'"),
        (["dog"], {}, r"annotation at position 0, counted from 0, is 'dog'; expected an object"),
        ([entry(4, 77)], {}, r"annotation 4 has the 'image_id' 77, which is not in 'images' \(1 such annotations\)"),
        ([entry(4, category=5)], {}, r"annotation 4 has the 'category_id' 5, which is not in 'categories'"),
        ([entry(4, category=5.5)], {}, r"annotation 4 has the 'category_id' 5.5; expected an integer"),
        (
            [entry(4)],
            {"images": [{"id": 1, "file_name": name} for name in "ab"]},
            r"the image id 1 2 times; .* each once",
        ),
        ([entry(4)], {"images": [{"id": 1}]}, r"image 1 has no key 'file_name'; expected text"),
        (
            [entry(4)],
            {"images": [{"id": n, "file_name": "a.png"} for n in (1, 2)]},
            r"images 1 and 2, which are the same",
        ),
        ([entry(4)], {"categories": [{"id": 7, "name": "a"}] * 2}, r"has the category id 7 2 times"),
        ([entry(4)], {"categories": [{"id": 7, "name": "a"}, {"id": 8, "name": "a"}]}, r"the class name 'a' twice"),
        ([entry(4)], {"categories": {}}, r"a\.json has no list 'categories'; expected COCO's annotations"),
        ([], {}, r"a\.json has no object in 1 images"),
        (
            [entry(4, segmentation=[[1, 2, 3, 4, 5, 6, 7]])],
            {},
            r"annotation 4 has a polygon \[1, 2, .*expected a list of",
        ),
        ([entry(4, segmentation=[1, 2, 3, 4, 5, 6])], {}, r"annotation 4 has a polygon 1; expected a list of polygons"),
        (
            [entry(4, segmentation=[[1, 2, 3, 4, 5, "6"]])],
            {},
            r"annotation 4 has a polygon with values that are not num",
        ),
        ([entry(4, segmentation="none")], {}, r"annotation 4 has the mask 'none'; expected polygons or run lengths"),
        ([entry(4, segmentation={"counts": [80]})], {}, r"annotation 4 has run lengths with the keys \['counts'\]"),
        ([entry(4, segmentation={"size": [8, 10], "counts": [79]})], {}, r"run lengths of 79 pixels; expected 8 x 10"),
        (
            [entry(4, segmentation={"size": [10, 8], "counts": [80]})],
            {},
            r"annotation 4 has run lengths for an image of 10 x 8 pixels \(height x width\), but a\.png .* has 8 x 10",
        ),
    ],
)
def test_what_is_broken_is_named(tmp_path: Path, annotations: Any, others: dict[str, Any], message: str) -> None:
    file = make(tmp_path / "a.json", annotations, **others)
    with pytest.raises(UsageError, match=message) as error:
        open_objects(file, "train")
    assert file in str(error.value)


def test_a_file_that_ends_too_early(tmp_path: Path) -> None:
    file = Path(make(tmp_path / "_annotations.coco.json", [entry(1)]))
    file.write_text(file.read_text()[:-20].replace("},", "},\n"))
    with pytest.raises(UsageError, match=r"coco\.json, line \d: is no valid JSON .*may be incomplete"):
        open_objects(str(tmp_path), "train")


def test_a_file_in_another_encoding(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b'{"images": "\xff\xfe"}')
    with pytest.raises(UsageError, match=r"a\.json cannot be read: .*; expected COCO's annotations"):
        open_objects(str(file), "train")
