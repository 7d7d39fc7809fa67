"""What readers of annotations share: splits, masks in arrays, sizes of images."""

from pathlib import Path

import pytest
from PIL import Image

from swinv2.errors import UsageError
from swinv2.train.data.objects.annotations import SegmentStore, choose_split, rows_of_files, upright_size

SQUARE = [[1.0, 1.0, 3.0, 1.0, 3.0, 3.0]]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize(("orientation", "size"), [(1, (8, 10)), (3, (8, 10)), (6, (10, 8)), (8, (10, 8))])
def test_it_is_that_of_the_image_as_it_is_read(
    tmp_path: Path, suffix: str, orientation: int, size: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    file = tmp_path / f"a.{suffix}"
    Image.new("RGB", (10, 8)).save(file, exif=exif)
    assert upright_size(str(file)) == upright_size(file.read_bytes()) == size


def test_what_is_no_image_has_none(tmp_path: Path) -> None:
    assert upright_size(b"nothing") == upright_size(str(tmp_path / "missing.png")) == (0, 0)


@pytest.mark.parametrize(
    ("splits", "split", "expected"),
    [
        (("train", "validation"), "evaluation", "validation"),
        (("train", "test"), "evaluation", "test"),
        (("train", "validation"), "val", "validation"),
        ((), "train", None),
        ((), "evaluation", None),
        # A folder without splits is the one that it is called.
        ((), "validation", None),
    ],
)
def test_the_split_of_a_folder(splits: tuple[str, ...], split: str, expected: str | None) -> None:
    assert choose_split(splits, split, Path("data/valid")) == expected


def test_a_split_that_does_not_exist() -> None:
    with pytest.raises(UsageError, match=r"'data' has the splits \['train'\]; expected 'test'\. Choose one"):
        choose_split(("train",), "test", Path("data"))
    with pytest.raises(UsageError, match=r"'data' has no splits; expected 'test'"):
        choose_split((), "test", Path("data"))


def test_masks_are_stored_and_given_back() -> None:
    runs = {"size": [2, 3], "counts": [1, 2, 3]}
    two = [[0.5, 1.0, 3.0, 1.0, 3.0, 3.0], [5.0, 5.0, 6.0, 5.0, 6.0, 6.0, 5.0, 6.0]]
    infinite = [[1.0, 1.0, float("inf"), 1.0, 3.0, 3.0]]
    store = SegmentStore([None, two, runs, [[1.0, 1.0, 3.0, 3.0]], [], infinite, SQUARE], str)
    assert [store[index] for index in (0, 1, 2, 3, 4, 6)] == [None, two, runs, None, None, SQUARE]
    assert store.exists.tolist() == [False, True, True, False, False, True, True]
    assert (store.short, store.broken.tolist()) == ([3], [5])


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        ("T1", "annotation 1 has the mask 'T1'; expected polygons or run lengths"),
        ([[1, 1, 3, 1, 3, 3, 4]], r"annotation 1 has a polygon \[1, 1, 3, 1, 3, 3, 4\]; expected a list of polygons"),
        ([["a", 1, 3, 1, 3, 3]], "annotation 1 has a polygon with values that are not numbers"),
        ({"counts": [6]}, r"annotation 1 has run lengths with the keys \['counts'\]; expected 'size'"),
        ({"size": [2, 3], "counts": [1, 2]}, "annotation 1 has run lengths of 3 pixels; expected 2 x 3"),
    ],
)
def test_a_mask_in_no_known_notation_is_named(segment: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SegmentStore([SQUARE, segment], lambda index: f"annotation {index}")


def test_rows_of_files_have_no_labels_and_a_missing_file_is_empty() -> None:
    found = rows_of_files(["a.png", None], Path("data"))
    assert [(sample.image, sample.label) for sample in found] == [("a.png", None), ("", None)]
    with pytest.raises(UsageError, match=r"the name of .+ is no valid text \(UTF-8\); rename it"):
        rows_of_files(["a\udcff.png"], Path("data"))
