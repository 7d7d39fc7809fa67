"""Images with masks as people have them: what is recognised, what is left out, and that it is named."""

import json
import logging
import os
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from swinv2.errors import UsageError
from swinv2.train.data.mask_folders import CAMVID, open_masks
from swinv2.train.data.masks import NO_VALUE, MaskDataset


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    # The commands switch it off.
    monkeypatch.setattr(logging.getLogger("swinv2"), "propagate", True)
    return caplog


def draw(folder: Path, *files: str) -> str:
    """Images of 3 x 1 pixels in colours."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 1), (10, 200, 30)).save(folder / name)
    return str(folder)


def mask(folder: Path, *files: str, values: tuple[int, ...] = (0, 1, 255)) -> str:
    """Masks with one row of values."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array([values], np.uint8)).save(folder / name)
    return str(folder)


def seen(found: MaskDataset) -> list[tuple[str, str]]:
    """The files of each pair."""
    return [(os.path.basename(str(sample.image)), os.path.basename(str(sample.mask))) for sample in found]


def read(found: MaskDataset, index: int = 0) -> list[int]:
    """The classes in the one row of a mask."""
    return found.read_mask(found[index])[0].tolist()


class TestLayouts:
    @pytest.mark.parametrize(
        ("image_folder", "mask_folder"),
        [
            ("images/train", "masks/train"),
            ("train/images", "train/masks"),
            ("img/training", "labels/train"),
            ("Images/train", "Annotations/train"),
            ("images/train", "masks"),
            ("data/set/train/imgs", "data/set/train/label"),
        ],
    )
    def test_parallel_folders(self, tmp_path: Path, image_folder: str, mask_folder: str) -> None:
        draw(tmp_path, f"{image_folder}/b.jpg", f"{image_folder}/deep/a.jpg")
        mask(tmp_path, f"{mask_folder}/b.png", f"{mask_folder}/deep/a.png")
        found = open_masks(str(tmp_path), "train", names=("road", "sky"))
        assert seen(found) == [("b.jpg", "b.png"), ("a.jpg", "a.png")]
        assert (found.split, found.splits) == ("train", ("train",))
        assert read(found) == [0, 1, 255]
        assert pickle.loads(pickle.dumps(found))[1] == found[1]

    def test_splits(self, tmp_path: Path) -> None:
        for split, called in (("train", "train"), ("val", "validation"), ("test", "test")):
            draw(tmp_path, f"images/{split}/{called}.jpg")
            mask(tmp_path, f"masks/{split}/{called}.png")
        for asked, split in (("train", "train"), ("evaluation", "validation"), ("val", "validation"), ("test", "test")):
            found = open_masks(str(tmp_path), asked, names=("a", "b"), ignore_index=255)
            assert (found.split, seen(found)) == (split, [(f"{split}.jpg", f"{split}.png")])
            assert found.has_evaluation_split
        with pytest.raises(UsageError, match=r"has the splits \['test', 'train', 'validation'\]; expected 'other'"):
            open_masks(str(tmp_path), "other")

    def test_without_splits(self, tmp_path: Path) -> None:
        draw(tmp_path, "images/a.b.jpg")
        mask(tmp_path, "masks/a.b.png")
        for split in ("train", "evaluation"):
            found = open_masks(str(tmp_path), split, names=("a", "b"))
            assert (seen(found), found.split, found.splits) == ([("a.b.jpg", "a.b.png")], None, ())
        with pytest.raises(UsageError, match="has no folders of splits; expected 'test'"):
            open_masks(str(tmp_path), "test", names=("a", "b"))

    @pytest.mark.parametrize("suffix", ["_mask", "_label", "_L"])
    def test_masks_with_a_suffix(self, tmp_path: Path, suffix: str) -> None:
        draw(tmp_path, "images/a.jpg", "images/b_L.jpg")
        mask(tmp_path, f"masks/a{suffix}.png", "masks/b_L.png")
        assert seen(open_masks(str(tmp_path), "train", names=("a", "b"))) == [
            ("a.jpg", f"a{suffix}.png"),
            ("b_L.jpg", "b_L.png"),
        ]

    def test_cityscapes(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        draw(tmp_path, "leftImg8bit/train/bonn/b_1_leftImg8bit.png", "gtFine/train/bonn/b_1_gtFine_color.png")
        mask(tmp_path, *(f"gtFine/train/bonn/b_1_gtFine_{kind}.png" for kind in ("instanceIds", "labelIds")))
        image = "b_1_leftImg8bit.png"
        names = tuple(map(str, range(19)))
        assert seen(open_masks(str(tmp_path), "train", names=names)) == [(image, "b_1_gtFine_labelIds.png")]
        mask(tmp_path, "gtFine/train/bonn/b_1_gtFine_labelTrainIds.png")
        assert seen(open_masks(str(tmp_path), "train", names=names)) == [(image, "b_1_gtFine_labelTrainIds.png")]
        assert warnings.text == ""

    def test_camvid(self, tmp_path: Path) -> None:
        for split in ("train", "val", "test"):
            draw(tmp_path, f"{split}/1.png")
            mask(tmp_path, f"{split}annot/1.png", values=(0, 10, 11))
        found = open_masks(str(tmp_path), "evaluation")
        assert (found.names, found.ignore_index, found.split) == (CAMVID, 11, "validation")
        assert (CAMVID[0], CAMVID[10], len(CAMVID)) == ("sky", "bicyclist", 11)
        assert read(found) == [0, 10, 255]

    def test_ade20k(self, tmp_path: Path) -> None:
        root = tmp_path / "ADEChallengeData2016"
        draw(root, "images/training/a.jpg", "images/validation/b.jpg")
        mask(root, "annotations/training/a.png", "annotations/validation/b.png", values=(0, 1, 3))
        lines = [
            "Idx\tRatio\tTrain\tVal\tName",
            "1\t0.1\t9\t1\twall",
            "2\t0.1\t9\t1\tbuilding, edifice",
            "3\t0.1\t9\t1\tsky ",
        ]
        (root / "objectInfo150.txt").write_text("\n".join(lines))
        for source in (root, tmp_path):
            found = open_masks(str(source), "evaluation")
            assert (found.names, found.reduce_labels, seen(found)) == (
                ("wall", "building", "sky"),
                True,
                [("b.jpg", "b.png")],
            )
            # The stored 0 is "other"; 1 is the first class.
            assert read(found) == [255, 0, 2]
        assert read(open_masks(str(root), "train", names=("other", "x", "y", "z"), reduce_labels=False)) == [0, 1, 3]

    def test_voc(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        draw(tmp_path, *(f"VOC2012/JPEGImages/{name}.jpg" for name in "abcd"))
        mask(tmp_path, *(f"VOC2012/SegmentationClass/{name}.png" for name in "abc"))
        (tmp_path / "VOC2012/Annotations").mkdir()
        (tmp_path / "VOC2012/Annotations/a.xml").touch()
        lists = tmp_path / "VOC2012/ImageSets/Segmentation"
        lists.mkdir(parents=True)
        for name, stems in (("train", "a\nb\n"), ("val", "c\nd\ne\n"), ("trainval", "a\nb\nc\n")):
            (lists / f"{name}.txt").write_text(stems)
        names = ("background", "cat", "dog")
        assert seen(open_masks(str(tmp_path), "train", names=names)) == [("a.jpg", "a.png"), ("b.jpg", "b.png")]
        assert warnings.text == ""
        assert seen(open_masks(str(tmp_path), "evaluation", names=names)) == [("c.jpg", "c.png")]
        assert f"1 images without a mask are left out, first {tmp_path / 'VOC2012/JPEGImages/d.jpg'}" in warnings.text
        assert "1 images of the list of 'validation' do not exist" in warnings.text
        assert len(open_masks(str(tmp_path), "trainval", names=names)) == 3

    def test_side_by_side(self, tmp_path: Path) -> None:
        draw(tmp_path, "suffix/a.jpg", "suffix/b.png", "stem/train/a.jpg", "stem/train/b.webp", "sat/1_sat.jpg")
        mask(
            tmp_path, "suffix/a_mask.png", "suffix/b_mask.png", "stem/train/a.png", "stem/train/b.png", "sat/1_mask.png"
        )
        for source, expected in (
            ("suffix", [("a.jpg", "a_mask.png"), ("b.png", "b_mask.png")]),
            ("stem", [("a.jpg", "a.png"), ("b.webp", "b.png")]),
            ("sat", [("1_sat.jpg", "1_mask.png")]),
        ):
            assert seen(open_masks(str(tmp_path / source), "train", names=("a", "b"))) == expected

    def test_a_png_in_colours_beside_an_image_is_no_mask(self, tmp_path: Path) -> None:
        draw(tmp_path, "a.jpg", "a.png")
        with pytest.raises(
            UsageError, match=r"has no masks that belong to its images; expected the folders images and"
        ):
            open_masks(str(tmp_path), "train")


class TestLeftOut:
    def test_images_and_masks_alone_are_counted_and_named(
        self, tmp_path: Path, warnings: pytest.LogCaptureFixture
    ) -> None:
        draw(tmp_path, "images/a.jpg", "images/b.jpg", "images/c.jpg")
        mask(tmp_path, "masks/c.png", "masks/d.png")
        assert seen(open_masks(str(tmp_path), "train", names=("a", "b"))) == [("c.jpg", "c.png")]
        assert f"2 images without a mask are left out, first {tmp_path / 'images/a.jpg'}" in warnings.text
        assert f"1 masks without an image are left out, first {tmp_path / 'masks/d.png'}" in warnings.text

    def test_no_pairs(self, tmp_path: Path) -> None:
        draw(tmp_path, "images/a.jpg")
        mask(tmp_path, "masks/d.png")
        with pytest.raises(UsageError, match=r"none of the 1 images in .*images has a mask in .*masks.* a mask a\.png"):
            open_masks(str(tmp_path), "train")

    def test_empty_folders(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="has no images; expected the folders images and masks"):
            open_masks(str(tmp_path), "train")
        (tmp_path / "images").mkdir()
        (tmp_path / "masks").mkdir()
        with pytest.raises(UsageError, match="images has no images"):
            open_masks(str(tmp_path), "train")

    def test_two_masks_or_two_images_of_one_stem(self, tmp_path: Path) -> None:
        draw(tmp_path, "images/a.jpg")
        mask(tmp_path, "masks/a.png", "masks/a_mask.png")
        with pytest.raises(UsageError, match=r"a\.png and .*a_mask\.png are both masks of .*a\.jpg; move one away"):
            open_masks(str(tmp_path), "train")
        draw(tmp_path, "images/a.webp")
        with pytest.raises(UsageError, match=r"a\.jpg and .*a\.webp have the same stem"):
            open_masks(str(tmp_path), "train")

    def test_two_folders_of_masks_and_two_of_one_split(self, tmp_path: Path) -> None:
        draw(tmp_path, "images/train/a.jpg")
        mask(tmp_path, "masks/train/a.png", "labels/train/a.png")
        with pytest.raises(UsageError, match="several folders of masks, labels, masks"):
            open_masks(str(tmp_path), "train")
        draw(tmp_path / "other", "images/val/a.jpg", "images/valid/a.jpg", "masks/val/a.png")
        with pytest.raises(UsageError, match="two folders of one split, val and valid"):
            open_masks(str(tmp_path / "other"), "train")

    def test_a_split_without_masks(self, tmp_path: Path) -> None:
        draw(tmp_path, "images/train/a.jpg", "images/test/b.jpg")
        mask(tmp_path, "masks/train/a.png")
        assert len(open_masks(str(tmp_path), "train")) == 1
        with pytest.raises(UsageError, match=r"none of the 1 images in .*test has a mask in .*masks.test, where 0 are"):
            open_masks(str(tmp_path), "test")

    def test_a_source_that_does_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="does not exist"):
            open_masks(str(tmp_path / "nothing"), "train")


class TestNames:
    @pytest.fixture
    def source(self, tmp_path: Path) -> str:
        draw(tmp_path, "images/a.jpg")
        return mask(tmp_path, "masks/a.png", values=(0, 2, 255))

    @pytest.mark.parametrize(
        ("file", "content"),
        [
            ("classes.txt", "road\n\nsky \ncar\n"),
            ("labels.txt", "\ufeffroad\r\nsky\r\ncar"),
            ("names.txt", "road\nsky\ncar"),
            ("id2label.json", '{"2": "car", "0": "road", "1": "sky"}'),
            ("objectInfo150.txt", "Idx\tName\n1\troad, route\n2\tsky\n3\tcar, auto"),
            ("class_dict.csv", "name,r,g,b\nroad,1,1,2\nsky,0,0,255\ncar, 9, 9, 8"),
            ("label_colors.txt", "1 1 2\troad\n0 0 255 sky\n9 9 8\tcar"),
        ],
    )
    def test_files_with_names(self, source: str, tmp_path: Path, file: str, content: str) -> None:
        (tmp_path / file).write_text(content, "utf-8")
        found = open_masks(source, "train", reduce_labels=False)
        assert found.names == ("road", "sky", "car")
        assert read(found) == [0, 2, 255]
        assert open_masks(source, "train", names=("x", "y", "z"), reduce_labels=False).names == ("x", "y", "z")

    @pytest.mark.parametrize(
        ("file", "content", "message"),
        [
            ("classes.txt", "\n", r"classes\.txt names no class"),
            ("id2label.json", "{", r"id2label\.json does not name classes"),
            ("id2label.json", '{"1": "a"}', "the numbers are not 0, 1 and so on"),
            ("class_dict.csv", "r,g,b\n1,2,3", r"class_dict\.csv does not name classes"),
            ("label_colors.txt", "1 2 3 a\n1 2 300 b", r"class 2, '1 2 300 b', needs red, green, blue"),
            ("label_colors.txt", "1 2 3 a\n1 2 3 b", r"two classes have the colour \(1, 2, 3\)"),
        ],
    )
    def test_files_that_name_no_classes(
        self, source: str, tmp_path: Path, file: str, content: str, message: str
    ) -> None:
        (tmp_path / file).write_text(content)
        with pytest.raises(UsageError, match=message):
            open_masks(source, "train")

    def test_text_that_is_not_utf8(self, source: str, tmp_path: Path) -> None:
        (tmp_path / "classes.txt").write_bytes(b"\xff\xfe\xfa")
        with pytest.raises(UsageError, match=r"classes\.txt cannot be read.*save it as UTF-8"):
            open_masks(source, "train")

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

    def test_damaged_parquet(self, tmp_path: Path) -> None:
        (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing")
        with pytest.raises(UsageError, match="cannot be opened"):
            open_masks(str(tmp_path / "x.parquet"), "train")
