"""YOLO's annotations: lines by hand, where files may be, and every kind of broken line."""

from pathlib import Path

import pytest
from PIL import Image

from swinv2.errors import UsageError
from swinv2.train.data.objects.dataset import ObjectDataset
from swinv2.train.data.objects.opening import open_objects


def image(file: Path, orientation: int = 1) -> None:
    """An image that is stored with 10 x 8 pixels (width x height)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", (10, 8)).save(file, exif=exif)


def text(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


def make(folder: Path, *labels: str, names: str = "cat\ndog\n") -> str:
    """Images 0.jpg, 1.jpg ... and their text files, in the folders images and labels."""
    for index, content in enumerate(labels):
        image(folder / "images" / f"{index}.jpg")
        text(folder / "labels" / f"{index}.txt", content)
    text(folder / "classes.txt", names)
    return str(folder)


def boxes(dataset: ObjectDataset) -> list[list[list[float]]]:
    return [one.objects.boxes.tolist() for one in dataset]


def test_lines_by_hand(tmp_path: Path) -> None:
    found = open_objects(make(tmp_path, "1 0.5 0.5 0.2 0.25\n\n0 .1 .125 .2 .25\n", ""), "train")
    # Centre (5, 4), 2 x 2 pixels; and the corner at the left and the top.
    assert boxes(found) == [[[4, 3, 6, 5], pytest.approx([0, 0, 2, 2])], []]
    assert found[0].objects.labels.tolist() == [1, 0]
    assert found[0].objects.areas.tolist() == pytest.approx([4, 4])
    assert found[0].objects.segments == (None, None)
    assert found[0].annotated_size == (8, 10)
    assert (found.names, found.category_ids, found.split) == (("cat", "dog"), (1, 2), None)
    assert [one.image_id for one in found] == [0, 1]


def test_a_polygon_has_a_box_around_it(tmp_path: Path) -> None:
    found = open_objects(make(tmp_path, "1 0.1 0.25 0.5 0.25 0.5 0.75\n"), "train", needs_masks=True)
    assert found.has_masks
    assert found[0].objects.boxes[0].tolist() == pytest.approx([1, 2, 5, 6])
    assert found[0].objects.segments == ([[1, 2, 5, 2, 5, 6]],)


def test_boxes_are_those_of_the_upright_image(tmp_path: Path) -> None:
    source = make(tmp_path, "0 0.5 0.5 1 0.5")
    image(tmp_path / "images" / "0.jpg", orientation=6)
    found = open_objects(source, "train")
    assert boxes(found) == [[[0, 2.5, 8, 7.5]]]
    assert found[0].annotated_size == (10, 8)


class TestWhereFilesAre:
    @pytest.mark.parametrize("below", ["images/{}", "{}/images"])
    def test_folders_of_splits_inside_or_outside(self, tmp_path: Path, below: str) -> None:
        for split, size in (("train", 0.5), ("val", 1)):
            place = tmp_path / below.format(split)
            image(place / "deep" / "a.jpg")
            text(Path(str(place).replace("images", "labels")) / "deep" / "a.txt", f"0 0.5 0.5 {size} {size}")
        text(tmp_path / "classes.txt", "cat")
        found = open_objects(str(tmp_path), "evaluation")
        assert (found.split, set(found.splits)) == ("validation", {"train", "validation"})
        assert boxes(found) == [[[0, 0, 10, 8]]]
        assert boxes(open_objects(str(tmp_path), "train")) == [[[2.5, 2, 7.5, 6]]]
        with pytest.raises(UsageError, match=r"has the splits \['train', 'validation'\]; expected 'test'"):
            open_objects(str(tmp_path), "test")

    @pytest.mark.parametrize(
        ("train", "names"),
        [
            ("train: images/a", "names: [cat, dog]"),
            ("train: ../images/a", "names: {1: dog, 0: cat}"),
            ("path: .\ntrain: [images/a]", "nc: 2\nnames:\n  0: cat\n  1: dog"),
            ("path: /nowhere/at/all\ntrain: images/a", "names: [cat, dog]"),
            ("train: list.txt", "names: [cat, dog]"),
        ],
    )
    @pytest.mark.parametrize("gives_file", [True, False])
    def test_a_data_yaml(self, tmp_path: Path, train: str, names: str, gives_file: bool) -> None:
        folder = tmp_path / "set"
        image(folder / "images" / "a" / "0.jpg")
        text(folder / "labels" / "a" / "0.txt", "1 0.5 0.5 1 1")
        text(folder / "list.txt", "./images/a/0.jpg\n")
        text(folder / "data.yaml", f"{train}\nval: images/a\n{names}\n")
        found = open_objects(str(folder / "data.yaml" if gives_file else folder), "train")
        assert (found.names, found.splits, boxes(found)) == (("cat", "dog"), ("train", "validation"), [[[0, 0, 10, 8]]])

    def test_text_files_beside_the_images(self, tmp_path: Path) -> None:
        image(tmp_path / "train" / "0.jpg")
        text(tmp_path / "train" / "0.txt", "0 0.5 0.5 1 1")
        text(tmp_path / "pets.yaml", "train: train\nnames: [cat]")
        assert boxes(open_objects(str(tmp_path), "train")) == [[[0, 0, 10, 8]]]

    def test_names_that_are_given(self, tmp_path: Path) -> None:
        source = make(tmp_path, "1 0.5 0.5 1 1")
        (tmp_path / "classes.txt").unlink()
        with pytest.raises(UsageError, match=r"has no names of classes; write them into .*classes\.txt, one a line"):
            open_objects(source, "train")
        assert open_objects(source, "train", names=("cat", "dog")).counts().tolist() == [0, 1]


class TestImages:
    def test_an_image_without_a_text_file_has_no_objects(
        self, tmp_path: Path, warnings: pytest.LogCaptureFixture
    ) -> None:
        source = make(tmp_path, "0 0.5 0.5 1 1")
        image(tmp_path / "images" / "x.jpg")
        assert boxes(open_objects(source, "train")) == [[[0, 0, 10, 8]], []]
        assert (
            f"has 1 images without a text file, which count as images without objects; first {source}/images/x.jpg"
            in (warnings.text)
        )

    def test_no_image_has_a_text_file(self, tmp_path: Path) -> None:
        source = make(tmp_path, "0 0.5 0.5 1 1")
        (tmp_path / "labels" / "0.txt").rename(tmp_path / "labels" / "other.txt")
        with pytest.raises(
            UsageError, match=r"has no labels for its images; expected, for example, .*labels/0\.txt for"
        ):
            open_objects(source, "train")

    def test_a_text_file_without_an_image_is_named(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        source = make(tmp_path, "0 0.5 0.5 1 1", "0 0.5 0.5 1 1")
        (tmp_path / "images" / "1.jpg").unlink()
        assert len(open_objects(source, "train")) == 1
        assert f"has 1 text files without an image, which are left out; first {source}/labels/1.txt" in warnings.text

    def test_an_image_that_cannot_be_read_is_named(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        source = make(tmp_path, "0 0.5 0.5 1 1", "0 0.5 0.5 1 1")
        (tmp_path / "images" / "1.jpg").write_bytes(b"nothing")
        assert len(open_objects(source, "train")) == 1
        assert f"1 image left out, because the file cannot be read; first {source}/images/1.jpg" in warnings.text

    def test_a_listed_image_that_does_not_exist_is_named(
        self, tmp_path: Path, warnings: pytest.LogCaptureFixture
    ) -> None:
        make(tmp_path, "0 0.5 0.5 1 1")
        text(tmp_path / "train.txt", "images/0.jpg\nimages/9.jpg\n")
        text(tmp_path / "data.yaml", "train: train.txt\nnames: [cat]")
        assert len(open_objects(str(tmp_path), "train")) == 1
        assert f"1 image left out, because the file does not exist; first {tmp_path}/images/9.jpg" in warnings.text

    def test_no_image_at_all(self, tmp_path: Path) -> None:
        source = make(tmp_path, "0 0.5 0.5 1 1")
        (tmp_path / "images" / "0.jpg").unlink()
        with pytest.raises(UsageError, match=r"no image of .* was found; put the images beside"):
            open_objects(source, "train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.1", r"'0 0\.5 0\.5 0\.1' has 4 values; expected 5 for a box, or the class and at least 3 points"),
        ("0 0.5 0.5 0.1 0.1 0.9", r"has 6 values; expected 5"),
        ("0 0.5 0.5 0.1 0.1 0.9 0.2 0.3", r"has 8 values; expected 5"),
        ("cat 0.5 0.5 0.1 0.1", r"'cat 0\.5 0\.5 0\.1 0\.1' has text; expected numbers, 'class x y width height'"),
        ("0,0.5,0.5,0.1,0.1", r"has text; expected numbers"),
        ("2 0.5 0.5 0.1 0.1", r"the class is 2; expected 0 to 1, as there are 2 names"),
        ("-1 0.5 0.5 0.1 0.1", r"the class is -1; expected 0 to 1"),
        ("0.5 0.5 0.5 0.1 0.1", r"the class is 0\.5; expected 0 to 1"),
        ("nan 0.5 0.5 0.1 0.1", r"the class is nan; expected 0 to 1"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    source = make(tmp_path, "0 0.5 0.5 1 1", f"1 0.5 0.5 1 1\n{line}\n")
    with pytest.raises(UsageError, match=rf"labels/1\.txt, line 2: .*{message}"):
        open_objects(source, "train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0 0.1", "the box has no area"),
        ("0 1.5 0.5 0.1 0.1", "the box is outside the image"),
        ("0 nan 0.5 0.1 0.1", "a number is NaN or infinite"),
        ("0 0.1 0.1 inf 0.1 0.5 0.5", "a number is NaN or infinite"),
        ("0 0.1 0.1 0.1 0.5 0.1 0.7", "the box has no area"),
    ],
)
def test_an_unusable_box_is_left_out_and_named(
    tmp_path: Path, warnings: pytest.LogCaptureFixture, line: str, message: str
) -> None:
    found = open_objects(make(tmp_path, f"1 0.5 0.5 1 1\n\n{line}"), "train")
    assert boxes(found) == [[[0, 0, 10, 8]]]
    assert f"1 object left out, because {message}; first {tmp_path}/labels/0.txt, line 3" in warnings.text


def test_pixels_instead_of_fractions(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"labels/0\.txt, line 1: the numbers of most lines are pixels; expected fract"
    ):
        open_objects(make(tmp_path, "0 5 4 3 3\n0 4 4 3 3"), "train")


def test_a_text_file_that_is_no_text(tmp_path: Path) -> None:
    source = make(tmp_path, "")
    (tmp_path / "labels" / "0.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"labels/0\.txt cannot be read: .*; expected a text file"):
        open_objects(source, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("names: [cat\ntrain: images", r"data\.yaml, line \d: is no valid YAML"),
        ("- cat", r"data\.yaml has no keys; expected 'names', 'train' and 'val'"),
        ("names: cat\ntrain: images", r"has 'names' 'cat'; expected a list of names, or number: name"),
        ("names: {0: cat, 2: dog}\ntrain: images", r"has names with the numbers 0, 2; expected 0, 1, \.\.\."),
        ("names: [cat]\nnc: 3\ntrain: images", r"has 1 names, but 'nc' is 3; expected equal numbers"),
        ("names: [cat, cat]\ntrain: images", r"has the class name 'cat' twice"),
        ("names: [cat]\ntrain: pictures", r"has 'train': pictures, which does not exist; expected a folder of images"),
        ("names: [cat]\ntrain: images\nkpt_shape: [17, 3]", r"with keypoints \('kpt_shape'\); expected boxes"),
        ("names: [cat]\nval: images", r"has the splits \['validation'\]; expected 'train'"),
    ],
)
def test_a_broken_data_yaml_is_named(tmp_path: Path, content: str, message: str) -> None:
    make(tmp_path, "0 0.5 0.5 1 1")
    text(tmp_path / "data.yaml", content)
    with pytest.raises(UsageError, match=message):
        open_objects(str(tmp_path), "train")


def test_several_data_files(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        text(tmp_path / name, "names: [cat]\ntrain: images")
    with pytest.raises(UsageError, match=r"has several data files, a\.yaml, b\.yaml; give one of them"):
        open_objects(str(tmp_path), "train")
