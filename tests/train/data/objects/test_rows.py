"""Boxes in rows of `datasets`: tables beside images, parquet files and saved data sets, and broken rows."""

import gc
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from swinv2.errors import UsageError
from swinv2.train.data.objects.dataset import ObjectDataset
from swinv2.train.data.objects.opening import open_objects


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def pixels(width: int = 10, height: int = 8) -> bytes:
    """The contents of an image file."""
    file = BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def table(folder: Path, *objects: Any) -> str:
    """Images 0.png, 1.png ... and a metadata.jsonl with their objects."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, one in enumerate(objects):
        (folder / f"{index}.png").write_bytes(pixels())
        lines.append(json.dumps({"file_name": f"{index}.png", "objects": one}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return str(folder)


def parquet(file: Path, objects: Sequence[Any], category: Any = None, **columns: Any) -> str:
    """A parquet file with images, and lists of boxes and categories."""
    category = category or datasets.Value("int64")
    features: dict[str, Any] = {
        "image": datasets.Image(),
        "objects": {
            "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
            "category": datasets.List(category),
        },
    }
    features |= {name: datasets.Value("int64") for name in columns}
    data = {"image": [{"bytes": pixels(), "path": None}] * len(objects), "objects": list(objects), **columns}
    datasets.Dataset.from_dict(data, features=datasets.Features(features)).to_parquet(str(file))
    return str(file)


def boxes(dataset: ObjectDataset) -> list[list[list[float]]]:
    return [one.objects.boxes.tolist() for one in dataset]


LISTS = {"bbox": [[1, 2, 3, 4], [0, 0, 1, 1]], "category": [1, 0]}


class TestTables:
    def test_lists_of_boxes_and_words(self, tmp_path: Path) -> None:
        words = {"bbox": [[1, 2, 3, 4], [0, 0, 1, 1]], "category": ["dog", "cat"]}
        found = open_objects(table(tmp_path, words, {"bbox": [], "category": []}), "train")
        assert boxes(found) == [[[1, 2, 4, 6], [0, 0, 1, 1]], []]
        assert (found.names, found.category_ids) == (("cat", "dog"), (1, 2))
        assert found[0].objects.labels.tolist() == [1, 0]
        assert found[0].objects.areas.tolist() == [12, 1]
        assert (found[0].name, found[0].annotated_size) == (str(tmp_path / "0.png"), (8, 10))
        assert not found.has_masks

    def test_a_list_of_objects_with_masks_and_crowds(self, tmp_path: Path) -> None:
        square = [[1.0, 1.0, 3.0, 1.0, 3.0, 3.0]]
        first = {"bbox": [1, 1, 2, 2], "category": "a", "segmentation": square, "area": 3.5, "iscrowd": 0}
        second = {"bbox": [0, 0, 9, 7], "category": "a", "segmentation": [], "area": 50.0, "iscrowd": 1}
        found = open_objects(table(tmp_path, [first, second], []), "train", needs_masks=True)
        assert found[0].objects.segments == (square, None)
        assert found[0].objects.areas.tolist() == [3.5, 50]
        assert found[0].objects.crowd.tolist() == [False, True]
        assert len(found[1].objects) == 0

    def test_a_file_that_does_not_exist_is_named(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        one = {"bbox": [[1, 2, 3, 4]], "category": ["a"]}
        source = table(tmp_path, one, one)
        (tmp_path / "1.png").unlink()
        assert len(open_objects(source, "train")) == 1
        assert f"1 image left out, because the file does not exist; first {source}/1.png" in warnings.text

    def test_folders_of_splits(self, tmp_path: Path) -> None:
        for split, width in (("train", 1), ("val", 2)):
            table(tmp_path / split, {"bbox": [[0, 0, width, 1]], "category": ["a"]})
        found = open_objects(str(tmp_path), "evaluation")
        assert (found.split, boxes(found)) == ("validation", [[[0, 0, 2, 1]]])
        assert found.has_evaluation_split

    # `datasets` leaves the table open.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    def test_a_csv_has_the_objects_as_json(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(pixels())
        stored = json.dumps(LISTS).replace('"', '""')
        (tmp_path / "metadata.csv").write_text(f'file_name,objects\na.png,"{stored}"\n')
        assert boxes(open_objects(str(tmp_path), "train")) == [[[1, 2, 4, 6], [0, 0, 1, 1]]]
        (tmp_path / "metadata.csv").write_text("file_name,objects\na.png,{\n")
        with pytest.raises(UsageError, match=r"row 0: 'objects' is '\{'; expected JSON with bbox and category"):
            open_objects(str(tmp_path), "train")
        # `datasets` leaves the file open; here the warning of that is ignored, in a later test it is not.
        gc.collect()

    def test_a_table_of_labels_is_not_recognised(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(pixels())
        (tmp_path / "metadata.csv").write_text("file_name,label\na.png,cat\n")
        with pytest.raises(UsageError, match="has no annotations in a known format"):
            open_objects(str(tmp_path), "train")


class TestParquet:
    def test_a_file_with_classes(self, tmp_path: Path) -> None:
        file = parquet(tmp_path / "a.parquet", [LISTS, None], datasets.ClassLabel(names=["x", "y", "z"]))
        found = open_objects(file, "train")
        assert (found.names, found.category_ids, found.counts().tolist()) == (("x", "y", "z"), (1, 2, 3), [1, 1, 0])
        assert found[0].objects.labels.tolist() == [1, 0]
        assert found[0].image == pixels()
        assert boxes(found)[1] == []
        assert boxes(open_objects(str(tmp_path), "train")) == boxes(found)

    def test_integers_are_their_own_names_or_have_given_ones(self, tmp_path: Path) -> None:
        file = parquet(tmp_path / "a.parquet", [{"bbox": [[1, 2, 3, 4]] * 3, "category": [7, 2, 7]}])
        found = open_objects(file, "train")
        assert (found.names, found.category_ids) == (("2", "7"), (2, 7))
        assert found[0].objects.labels.tolist() == [1, 0, 1]
        with pytest.raises(
            UsageError, match=r"row 0, object 0, both counted from 0: the category is 7; expected 0 to 1"
        ):
            open_objects(file, "train", names=("a", "b"))
        assert open_objects(file, "train", names=list("abcdefgh"))[0].objects.labels.tolist() == [7, 2, 7]

    def test_columns_of_sizes_and_ids(self, tmp_path: Path) -> None:
        columns = {"width": [3, 10], "height": [5, 8], "image_id": [40, 30]}
        found = open_objects(parquet(tmp_path / "a.parquet", [LISTS, LISTS], **columns), "train")
        assert [one.annotated_size for one in found] == [(5, 3), (8, 10)]
        assert [one.image_id for one in found] == [40, 30]
        assert boxes(found)[0][0] == [1, 2, 3, 5]
        again = open_objects(parquet(tmp_path / "b.parquet", [LISTS] * 2, image_id=[4, 4]), "train")
        assert [one.image_id for one in again] == [0, 1]

    def test_an_image_that_is_missing_and_one_that_cannot_be_read(
        self, tmp_path: Path, warnings: pytest.LogCaptureFixture
    ) -> None:
        stored = [{"bytes": pixels(), "path": None}, None, {"bytes": b"nothing", "path": None}]
        features = {
            "image": datasets.Image(),
            "objects": {
                "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
                "category": datasets.List(datasets.Value("string")),
            },
        }
        one = {"bbox": [[1, 2, 3, 4]], "category": ["a"]}
        rows = datasets.Dataset.from_dict({"image": stored, "objects": [one] * 3}, features=datasets.Features(features))
        file = str(tmp_path / "a.parquet")
        rows.to_parquet(file)
        assert [one.image_id for one in open_objects(file, "train")] == [0]
        assert f"1 image left out, because the file does not exist; first {file}[1]" in warnings.text
        assert f"1 image left out, because the file cannot be read; first {file}[2]" in warnings.text

    def test_a_saved_data_set_with_splits(self, tmp_path: Path) -> None:
        rows = datasets.Dataset.from_parquet(
            parquet(tmp_path / "a.parquet", [LISTS]), cache_dir=str(tmp_path / "cache")
        )
        saved = datasets.DatasetDict({"train": rows, "test": rows})
        saved.save_to_disk(str(tmp_path / "saved"))
        found = open_objects(str(tmp_path / "saved"), "evaluation")
        assert (found.split, found.splits, len(found)) == ("test", ("train", "test"), 1)
        assert [len(part) for part in open_objects(str(tmp_path / "saved"), "train").set_aside(0.5)] == [1, 0]

    def test_no_column_of_objects(self, tmp_path: Path) -> None:
        rows = datasets.Dataset.from_dict({"image": [{"bytes": pixels(), "path": None}], "boxes": [[1, 2, 3, 4]]})
        file = str(tmp_path / "a.parquet")
        rows.cast_column("image", datasets.Image()).to_parquet(file)
        with pytest.raises(
            UsageError, match=r"has the columns \['boxes', 'image'\]; expected 'objects' with the boxes"
        ):
            open_objects(file, "train")


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ({"bbox": [[1, 2, 3, 4]], "category": []}, "has 1 boxes, but 0 values of 'category'; expected equal numbers"),
        (
            {"bbox": [[1, 2, 3]], "category": ["a"]},
            r"has the box '\[.*\]'; expected 4 numbers, left, top, width and height",
        ),
        ({"bbox": [[1, 2, 3, None]], "category": ["a"]}, "expected 4 numbers"),
        ({"bbox": [["1", "2", "3", "4"]], "category": ["a"]}, "expected 4 numbers"),
        ({"bbox": [[1, 2, 3, 4]]}, r"'objects' has the keys \['bbox'\]; expected 'bbox' .* and 'category'"),
        ({"bbox": [[1, 2, 3, 4]], "category": [1.5]}, r"object 0, .*: the category is 1\.5; expected an integer"),
        ({"bbox": [[1, 2, 3, 4]] * 2, "category": ["a", None]}, r"object 1, .*: the category is None; expected a word"),
        ([1, 2], r"'objects' is \[1, 2\]; expected objects with bbox and category"),
        (3, "'objects' is '3'; expected objects with bbox and category"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, objects: Any, message: str) -> None:
    source = table(tmp_path, objects)
    with pytest.raises(UsageError, match=f"{source}, row 0.*{message}"):
        open_objects(source, "train")


def test_an_unusable_box_is_left_out_and_named(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    first, second = ({"bbox": [[1, 1, 2, 2], [1, 1, width, 2]], "category": ["a", "a"]} for width in (2, 0))
    source = table(tmp_path, first, second)
    assert len(open_objects(source, "train")[1].objects) == 1
    assert f"has no area; first {source}, row 1, object 1, both counted from 0" in warnings.text
