"""Folders of images and masks as people have them: what is recognised, what is left out, and that it is named."""

import pickle
from pathlib import Path

import pytest

from annotated import draw, mask, read, seen
from swinv2.errors import UsageError
from swinv2.train.data.masks.folders import CAMVID
from swinv2.train.data.masks.opening import open_masks


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
