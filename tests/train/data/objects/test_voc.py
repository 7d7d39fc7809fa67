"""VOC's annotations: boxes by hand, where files may be, and every kind of broken file."""

from pathlib import Path

import pytest
from PIL import Image

from swinv2.errors import UsageError
from swinv2.train.data.objects.dataset import ObjectDataset
from swinv2.train.data.objects.opening import open_objects

CAT = ("cat", 2, 3, 5, 8)


def xml(*objects: tuple[object, ...], size: str = "<width>10</width><height>8</height>", filename: str = "") -> str:
    """A file with objects: name, xmin, ymin, xmax, ymax, and possibly difficult."""
    parts = [
        f"<object><name>{name}</name><difficult>{other[0] if other else 0}</difficult><part><name>head</name></part>"
        f"<bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for name, left, top, right, bottom, *other in objects
    ]
    return f"<annotation><filename>{filename}</filename><size>{size}</size>{''.join(parts)}</annotation>"


def add(file: Path, content: str, image: Path | None) -> None:
    """An XML file, and its image of 10 x 8 pixels (width x height)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    if image is not None:
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 8)).save(image)


def make(folder: Path, *contents: str, lists: dict[str, str] | None = None) -> str:
    """Files 0.xml, 1.xml ... in the folders of VOC, and lists of images."""
    for index, content in enumerate(contents):
        add(folder / "Annotations" / f"{index}.xml", content, folder / "JPEGImages" / f"{index}.jpg")
    for name, content in (lists or {}).items():
        file = folder / "ImageSets" / "Main" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return str(folder)


def boxes(dataset: ObjectDataset) -> list[list[list[float]]]:
    return [one.objects.boxes.tolist() for one in dataset]


def test_pixels_count_from_1_and_the_last_one_is_inside(tmp_path: Path) -> None:
    found = open_objects(make(tmp_path, xml(CAT, ("ant", 1, 1, 10, 8, 1)), xml()), "train")
    # Columns 2 to 5 are 4 pixels wide, rows 3 to 8 are 6 high; the other box is the whole image.
    assert boxes(found) == [[[1, 2, 5, 8], [0, 0, 10, 8]], []]
    assert found[0].objects.areas.tolist() == [24, 80]
    assert found[0].objects.crowd.tolist() == [False, True]
    assert (found.names, found[0].objects.labels.tolist()) == (("ant", "cat"), [1, 0])
    assert found.counts().tolist() == [0, 1]
    assert (found[0].annotated_size, found[1].image_id) == ((8, 10), 1)
    assert not found.has_masks
    with pytest.raises(UsageError, match=r"no object of .* has a mask; train with --task detection"):
        open_objects(str(tmp_path), "train", needs_masks=True)


def test_a_size_that_the_file_does_not_have_is_read_from_the_image(tmp_path: Path) -> None:
    assert open_objects(make(tmp_path, xml(CAT, size="")), "train")[0].annotated_size == (8, 10)


def test_given_names_are_an_order(tmp_path: Path) -> None:
    found = open_objects(make(tmp_path, xml(CAT)), "train", names=("dog", "cat"))
    assert (found.names, found.counts().tolist()) == (("dog", "cat"), [0, 1])


class TestWhereFilesAre:
    def test_lists_are_splits(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        lists = {"train": "0\n", "val": "1\n", "trainval": "0\n1\n", "cat_train": "0  1\n"}
        source = make(tmp_path, xml(CAT), xml(("dog", 1, 1, 2, 2)), lists=lists)
        found = open_objects(source, "evaluation")
        assert (found.split, found.splits, found.names) == ("validation", ("train", "trainval", "validation"), ("dog",))
        assert [Path(one.name).name for one in found] == ["1.jpg"]
        assert len(open_objects(source, "trainval")) == 2
        assert warnings.messages == []
        with pytest.raises(UsageError, match=r"has the splits .*; expected 'test'"):
            open_objects(source, "test")

    def test_a_listed_image_without_a_file_is_named(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        assert len(open_objects(make(tmp_path, xml(CAT), lists={"train": "0\n7\n"}), "train")) == 1
        assert "1 image left out, because no annotation names them; first 7 of" in warnings.text

    def test_folders_of_splits_with_files_beside_their_images(self, tmp_path: Path) -> None:
        for split, right in (("train", 4), ("valid", 6)):
            add(tmp_path / split / "a.xml", xml(("cat", 1, 1, right, 8)), tmp_path / split / "a.jpg")
        found = open_objects(str(tmp_path), "evaluation")
        assert (found.split, boxes(found)) == ("validation", [[[0, 0, 6, 8]]])
        assert boxes(open_objects(str(tmp_path / "train"), "train")) == [[[0, 0, 4, 8]]]

    def test_the_image_may_have_the_name_that_the_file_gives(self, tmp_path: Path) -> None:
        add(tmp_path / "a.xml", xml(CAT, filename="photo.png"), tmp_path / "photo.png")
        assert open_objects(str(tmp_path), "train")[0].name == str(tmp_path / "photo.png")

    def test_files_and_images_without_the_other(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        source = make(tmp_path, xml(CAT))
        add(tmp_path / "Annotations" / "x.xml", xml(CAT), None)
        (tmp_path / "JPEGImages" / "y.jpg").touch()
        assert len(open_objects(source, "train")) == 1
        assert f"1 image left out, because the file does not exist; first the one of {source}/Annotations/x.xml" in (
            warnings.text
        )
        assert f"because no annotation names them; first {source}/JPEGImages/y.jpg" in warnings.text

    def test_no_image_at_all(self, tmp_path: Path) -> None:
        source = make(tmp_path, xml(CAT))
        (tmp_path / "JPEGImages" / "0.jpg").unlink()
        with pytest.raises(UsageError, match=r"no image of .* was found, for example the one of .*0\.xml"):
            open_objects(source, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (xml(CAT)[:-9], r"1\.xml, line 1: is no valid XML \(.*\); it may be incomplete"),
        ("<annotation>\n<object>\n</annotation>", r"1\.xml, line 3: is no valid XML"),
        (xml(CAT).replace("annotation>", "labels>"), r"1\.xml begins with <labels>; expected <annotation>"),
        (xml(CAT).replace("<name>cat</name>", "", 1), r"1\.xml, object 1: has no <name>; expected a name"),
        (xml(CAT, ("", 1, 1, 2, 2)), r"1\.xml, object 2: has no <name>"),
        (
            xml(CAT).replace("<ymax>8</ymax>", ""),
            r"1\.xml, object 1: has no <bndbox><ymax>; expected a name, and a box",
        ),
        (xml(CAT, ("cat", 1, "two", 2, 2)), r"1\.xml, object 2: <ymin> is 'two'; expected a number of pixels"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    source = make(tmp_path, xml(CAT), content)
    with pytest.raises(UsageError, match=message):
        open_objects(source, "train")


def test_a_name_that_is_not_among_the_given_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"0\.xml, object 2: the name is 'dog'; expected one of cat, bird\."):
        open_objects(make(tmp_path, xml(CAT, ("dog", 1, 1, 2, 2))), "train", names=("cat", "bird"))


def test_an_empty_list(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.txt is empty; expected the name of an image in each line"):
        open_objects(make(tmp_path, xml(CAT), lists={"train": "\n"}), "train")


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((5, 3, 4, 8), "left out, because the box has no area"),
        ((11, 3, 14, 8), "left out, because the box is outside the image"),
        (("nan", 3, 14, 8), "left out, because a number is NaN or infinite"),
        ((0, 3, 4, 8), "whose box was clipped to the image"),
    ],
)
def test_an_unusual_box_is_named(
    tmp_path: Path, warnings: pytest.LogCaptureFixture, box: tuple[object, ...], message: str
) -> None:
    source = make(tmp_path, xml(CAT, ("cat", *box)))
    open_objects(source, "train")
    assert f"has 1 object {message}; first {source}/Annotations/0.xml, object 2" in warnings.text
