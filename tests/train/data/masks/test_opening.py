"""Which classes images with masks have, by files, by given names or by the masks; and columns of tables."""

import json
import os
from pathlib import Path

import datasets
import pytest

from annotated import draw, mask, read, seen
from swinv2.errors import UsageError
from swinv2.train.data.masks.dataset import NO_VALUE
from swinv2.train.data.masks.opening import open_masks


class TestClasses:
    @pytest.fixture
    def source(self, tmp_path: Path) -> str:
        draw(tmp_path, "images/a.jpg")
        return mask(tmp_path, "masks/a.png", values=(0, 2, 255))

    @pytest.mark.parametrize(
        ("file", "content"),
        [
            ("classes.txt", "road\n\nsky \ncar\n"),
            ("objectInfo150.txt", "Idx\tName\n1\troad, route\n2\tsky\n3\tcar, auto"),
            ("class_dict.csv", "name,r,g,b\nroad,1,1,2\nsky,0,0,255\ncar, 9, 9, 8"),
        ],
    )
    def test_files_with_names(self, source: str, tmp_path: Path, file: str, content: str) -> None:
        (tmp_path / file).write_text(content, "utf-8")
        found = open_masks(source, "train", reduce_labels=False)
        assert found.names == ("road", "sky", "car")
        assert read(found) == [0, 2, 255]
        assert open_masks(source, "train", names=("x", "y", "z"), reduce_labels=False).names == ("x", "y", "z")

    def test_fewer_names_than_values(self, source: str) -> None:
        found = open_masks(source, "train", names=("a", "b"))
        with pytest.raises(UsageError, match=r"a\.png has the value 2 in 1 pixels; expected 0 to 1, or 255"):
            read(found)

    def test_masks_in_colours(self, tmp_path: Path) -> None:
        draw(tmp_path, "images/a.jpg", "masks/a.png")
        found = open_masks(str(tmp_path), "train", names=("a",))
        with pytest.raises(UsageError, match=r"a\.png is a mask in colours"):
            read(found)
        with pytest.raises(UsageError, match=r"a\.png is a mask in colours"):
            open_masks(str(tmp_path), "train")
        (tmp_path / "class_dict.csv").write_text("name,r,g,b\nroad,1,2,3\nvoid,0,0,0\nsky,10,200,30\n")
        found = open_masks(str(tmp_path), "train", ignore_index=1)
        assert (found.names, read(found)) == (("road", "sky"), [1, 1, 1])
        with pytest.raises(UsageError, match=r"class_dict\.csv has 3 colours, but there are 2 names"):
            open_masks(str(tmp_path), "train", names=("a", "b"))
        found = open_masks(str(tmp_path), "train", names=("a", "b", "c"))
        assert (found.names, read(found)) == (("a", "b", "c"), [2, 2, 2])
        # The same names in another order belong to the same colours.
        found = open_masks(str(tmp_path), "train", names=("sky", "road", "void"))
        assert (found.names, read(found)) == (("road", "void", "sky"), [2, 2, 2])

    def test_without_names_the_values_of_all_splits_count(
        self, tmp_path: Path, warnings: pytest.LogCaptureFixture
    ) -> None:
        draw(tmp_path, "images/train/a.jpg", "images/val/b.jpg", "images/test/c.jpg")
        mask(tmp_path, "masks/train/a.png", values=(0, 1, 255))
        mask(tmp_path, "masks/val/b.png", values=(3, 0, 0))
        told: list[tuple[int, int]] = []
        found = open_masks(str(tmp_path), "train", advance=lambda done, total: told.append((done, total)))
        assert (found.names, found.values) == (("0", "1", "2", "3"), (0, 1, 2, 3))
        assert told == [(1, 2), (2, 2)]
        assert "the values 0, 1, 3, 255, so there are 4 classes, '0' to '3'. To name them, give --label-names-file" in (
            warnings.text
        )
        # A split with only 0 and 255 is not binary if others have more.
        mask(tmp_path, "masks/train/a.png", values=(0, 0, 255))
        assert read(open_masks(str(tmp_path), "train")) == [0, 0, 255]

    def test_an_ignored_value_and_labels_from_1_without_names(self, source: str) -> None:
        mask(Path(source), "masks/a.png", values=(0, 4, 2))
        found = open_masks(source, "train", ignore_index=2)
        assert (found.names, found.values, read(found)) == (("0", "1", "2", "3"), (0, 1, 3, 4), [0, 3, 255])
        found = open_masks(source, "train", reduce_labels=True)
        assert (found.names, found.values, read(found)) == (("0", "1", "2", "3"), (1, 2, 3, 4), [255, 3, 1])

    def test_too_many_classes(self, source: str) -> None:
        with pytest.raises(UsageError, match=r"a\.png has the value 255: .* has 256 classes.*give --ignore-index 255"):
            open_masks(source, "train", ignore_index=300)

    def test_black_and_white_masks_are_two_classes(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        draw(tmp_path, "images/a.jpg", "images/b.jpg")
        mask(tmp_path, "masks/a.png", values=(0, 255, 255))
        mask(tmp_path, "masks/b.png", values=(0, 0, 0))
        found = open_masks(str(tmp_path), "train")
        assert (found.names, found.values, found.ignore_index) == (("0", "1"), (0, 255), NO_VALUE)
        assert read(found) == [0, 1, 1]
        assert "have only the values 0 and 255, which are taken as two classes" in warnings.text
        found = open_masks(str(tmp_path), "train", names=("background", "cell"))
        assert (found.names, read(found)) == (("background", "cell"), [0, 1, 1])
        found = open_masks(str(tmp_path), "train", names=("background", "cell"), ignore_index=255)
        assert (found.names, read(found)) == (("background", "cell"), [0, 255, 255])

    def test_the_name_of_the_ignored_value_is_no_class(self, source: str, warnings: pytest.LogCaptureFixture) -> None:
        found = open_masks(source, "train", names=("void", "a", "b"), ignore_index=0)
        assert (found.names, found.values) == (("a", "b"), (1, 2))
        assert "'void', with the value 0, is ignored and is no class" in warnings.text
        mask(Path(source), "masks/a.png", values=(0, 2, 1))
        assert read(found) == [255, 1, 0]

    def test_masks_in_which_nothing_counts(self, source: str) -> None:
        mask(Path(source), "masks/a.png", values=(255, 255, 255))
        with pytest.raises(UsageError, match="have the values 255; expected classes from 0, besides 255"):
            open_masks(source, "train")


class TestColumns:
    @pytest.fixture
    def rows(self, tmp_path: Path) -> datasets.Dataset:
        draw(tmp_path, "files/a.jpg", "files/b.jpg")
        mask(tmp_path, "files/a.png", "files/b.png")
        image, label = datasets.Image(), datasets.Image()
        columns = {
            "image": [str(tmp_path / "files/a.jpg"), str(tmp_path / "files/b.jpg")],
            "annotation": [str(tmp_path / "files/a.png"), str(tmp_path / "files/b.png")],
            "scene": ["x", "y"],
        }
        features = {"image": image, "annotation": label, "scene": datasets.Value("string")}
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))

    def test_parquet_and_saved_data(self, tmp_path: Path, rows: datasets.Dataset) -> None:
        datasets.DatasetDict({"train": rows, "validation": rows.select([1])}).save_to_disk(str(tmp_path / "saved"))
        (tmp_path / "parquet").mkdir()
        for split, part in (("train", rows), ("validation", rows.select([1]))):
            part.to_parquet(str(tmp_path / f"parquet/{split}-0.parquet"))
        for source in ("saved", "parquet"):
            (tmp_path / source / "classes.txt").write_text("road\nsky\n")
            found = open_masks(str(tmp_path / source), "train", ignore_index=255)
            assert (len(found), found.names, found.split) == (2, ("road", "sky"), "train")
            assert set(found.splits) == {"train", "validation"}
            assert [read(found, index) for index in (0, 1)] == [[0, 1, 255]] * 2
            assert len(open_masks(str(tmp_path / source), "evaluation")) == 1

    def test_columns_by_name(self, tmp_path: Path, rows: datasets.Dataset) -> None:
        rows = rows.rename_columns({"annotation": "truth", "image": "photo"})
        rows.to_parquet(str(tmp_path / "x.parquet"))
        source = str(tmp_path / "x.parquet")
        with pytest.raises(
            UsageError, match=r"'photo', 'scene', 'truth'\]; choose the one of the masks with --mask-col"
        ):
            open_masks(source, "train")
        with pytest.raises(UsageError, match="has no column 'none'"):
            open_masks(source, "train", mask_column="none")
        found = open_masks(source, "train", mask_column="truth", names=("a", "b"))
        assert (found.mask_column, found.images.image_column, read(found)) == ("truth", "photo", [0, 1, 255])

    def test_rows_without_a_mask_are_left_out(
        self, tmp_path: Path, rows: datasets.Dataset, warnings: pytest.LogCaptureFixture
    ) -> None:
        table = rows.to_dict()
        table["annotation"][0] = None  # type: ignore[index]
        datasets.Dataset.from_dict(table, features=rows.features).save_to_disk(str(tmp_path / "saved"))  # type: ignore[arg-type]
        found = open_masks(str(tmp_path / "saved"), "train", names=("a", "b"))
        assert len(found) == 1
        assert os.path.basename(found[0].name) == "b.jpg"
        assert "1 images without a mask are left out, first row 0 of" in warnings.text

    def test_a_table_beside_the_images(self, tmp_path: Path) -> None:
        draw(tmp_path, "train/photos/a.jpg")
        mask(tmp_path, "train/truth/a.png")
        line = {"file_name": "photos/a.jpg", "mask_file_name": "truth/a.png"}
        (tmp_path / "train/metadata.jsonl").write_text(json.dumps(line))
        found = open_masks(str(tmp_path), "train", names=("a", "b"))
        assert seen(found) == [("a.jpg", "a.png")]
        assert read(found) == [0, 1, 255]

    def test_a_source_that_does_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="does not exist"):
            open_masks(str(tmp_path / "nothing"), "train")

    def test_damaged_parquet(self, tmp_path: Path) -> None:
        (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing")
        with pytest.raises(UsageError, match="cannot be opened"):
            open_masks(str(tmp_path / "x.parquet"), "train")
