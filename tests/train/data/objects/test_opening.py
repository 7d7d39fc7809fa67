"""Cleaning, whose right values are worked out by hand, and the choice of a format."""

from pathlib import Path

import pytest
from PIL import Image

from annotated import write_coco
from swinv2.errors import UsageError
from swinv2.train.data.objects.dataset import ObjectDataset
from swinv2.train.data.objects.opening import open_objects

SQUARE = [[1.0, 1.0, 3.0, 1.0, 3.0, 3.0]]


def boxes(dataset: ObjectDataset) -> list[list[float]]:
    return [box for one in dataset for box in one.objects.boxes.tolist()]


class TestCleaning:
    @pytest.mark.parametrize(
        ("box", "expected", "message"),
        [
            ([1, 1, 0, 5], None, "1 object left out, because the box has no area"),
            ([1, 1, 5, -2], None, "1 object left out, because the box has no area"),
            # Wider than nothing in float64, but not in float32.
            ([9, 1, 1e-9, 5], None, "1 object left out, because the box has no area"),
            ([10, 1, 5, 5], None, "1 object left out, because the box is outside the image"),
            ([-5, 1, 5, 5], None, "1 object left out, because the box is outside the image"),
            ([1, -9, 5, 5], None, "1 object left out, because the box is outside the image"),
            ([float("nan"), 1, 5, 5], None, "1 object left out, because a number is NaN or infinite"),
            ([1, 1, float("inf"), 5], None, "1 object left out, because a number is NaN or infinite"),
            ([float("-inf"), 1, float("inf"), 5], None, "1 object left out, because a number is NaN or infinite"),
            ([-2, -3, 5, 5], [0, 0, 3, 2], "1 object whose box was clipped to the image"),
            ([6, 6, 1e300, 5], [6, 6, 10, 8], "1 object whose box was clipped to the image"),
            ([6, 6, 4.01, 2], [6, 6, 10, 8], None),
            ([0, 0, 10, 8], [0, 0, 10, 8], None),
        ],
    )
    def test_one_box(
        self,
        tmp_path: Path,
        warnings: pytest.LogCaptureFixture,
        box: list[float],
        expected: list[float] | None,
        message: str | None,
    ) -> None:
        source = write_coco(tmp_path, {}, {"bbox": box})
        found = open_objects(source, "train")
        assert boxes(found) == [[1, 1, 3, 3]] + ([expected] if expected else [])
        if message is None:
            assert warnings.messages == []
        else:
            (sentence,) = warnings.messages
            assert message in sentence
            assert sentence.endswith(f"; first {source}/_annotations.coco.json, annotation 11")

    def test_each_kind_is_counted_once(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        nothing, outside = {"bbox": [1, 1, 0, 0]}, {"bbox": [20, 20, 5, 5]}
        found = open_objects(write_coco(tmp_path, {}, nothing, outside, nothing, outside, nothing), "train")
        assert len(found[0].objects) == 1
        assert [message.split(" has ", 1)[1].split(";")[0] for message in warnings.messages] == [
            "2 objects left out, because the box is outside the image",
            "3 objects left out, because the box has no area",
        ]

    def test_the_area_of_a_box_is_that_of_the_clipped_one(self, tmp_path: Path) -> None:
        source = write_coco(tmp_path, {"bbox": [8, 6, 5, 5]}, {"area": 1.5}, {"area": None})
        assert open_objects(source, "train")[0].objects.areas.tolist() == [4, 1.5, 4]

    def test_an_area_that_is_no_number(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        found = open_objects(write_coco(tmp_path, {"area": float("nan")}, {"area": 3}), "train")
        assert found[0].objects.areas.tolist() == [3]
        assert "a number is NaN or infinite; first" in warnings.text

    def test_objects_stay_with_their_images_in_any_order(self, tmp_path: Path) -> None:
        annotations = [
            {"image_id": image, "bbox": [0, 0, image + 1, width]} for image, width in ((2, 1), (0, 2), (2, 3))
        ]
        found = open_objects(write_coco(tmp_path, *annotations, images=4), "train")
        assert [one.objects.boxes[:, 2:].tolist() for one in found] == [[[1, 2]], [], [[3, 1], [3, 3]], []]


class TestMasks:
    def test_a_polygon_of_two_points_is_no_mask(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        short = {"segmentation": [[1, 1, 3, 3]]}
        both = {"segmentation": [[1, 1, 3, 3], *SQUARE]}
        found = open_objects(write_coco(tmp_path, short, both, {"segmentation": SQUARE}), "train")
        assert found[0].objects.segments == (None, SQUARE, SQUARE)
        assert not found.has_masks
        assert "2 objects with a polygon of fewer than 3 points, which is no mask; first" in warnings.text

    def test_a_polygon_that_is_not_finite(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        broken = {"segmentation": [*SQUARE, [1, 1, float("inf"), 1, 3, 3]]}
        found = open_objects(write_coco(tmp_path, {"segmentation": SQUARE}, broken, {"segmentation": SQUARE}), "train")
        assert found[0].objects.segments == (SQUARE, SQUARE)
        assert "1 object left out, because a polygon has NaN or infinite numbers; first" in warnings.text
        assert "annotation 11" in warnings.text

    def test_several_polygons_and_run_lengths(self, tmp_path: Path) -> None:
        two = [[0.5, 1.0, 3.0, 1.0, 3.0, 3.0], [5.0, 5.0, 6.0, 5.0, 6.0, 6.0, 5.0, 6.0]]
        runs = {"size": [8, 10], "counts": "T1"}
        source = write_coco(tmp_path, *({"segmentation": one} for one in (two, runs, SQUARE)))
        found = open_objects(source, "train", needs_masks=True)
        assert found[0].objects.segments == (two, runs, SQUARE)
        assert found.has_masks

    def test_objects_without_one_are_left_out_if_masks_are_needed(
        self, tmp_path: Path, warnings: pytest.LogCaptureFixture
    ) -> None:
        crowd = {"iscrowd": 1, "bbox": [0, 0, 9, 7]}
        source = write_coco(tmp_path, {}, {"segmentation": SQUARE}, {"segmentation": []}, crowd)
        found = open_objects(source, "train", needs_masks=True)
        assert found[0].objects.segments == (SQUARE, None)
        assert found[0].objects.crowd.tolist() == [False, True]
        assert found.has_masks
        assert "has 2 objects left out, because they have no mask; first" in warnings.text
        assert not open_objects(source, "train").has_masks

    def test_no_mask_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"no object of .* has a mask; train with --task detection"):
            open_objects(write_coco(tmp_path, {}), "train", needs_masks=True)


class TestFormats:
    def test_two_formats_in_a_folder(self, tmp_path: Path) -> None:
        source = write_coco(tmp_path, {})
        (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: .\n")
        with pytest.raises(UsageError, match=r"COCO \(.*coco\.json\) and YOLO \(.*data\.yaml\); give the JSON file or"):
            open_objects(source, "train")
        assert open_objects(f"{source}/_annotations.coco.json", "train").names == ("cat", "dog")

    def test_no_annotations(self, tmp_path: Path) -> None:
        Image.new("RGB", (10, 8)).save(tmp_path / "a.png")
        with pytest.raises(UsageError, match=r"has no annotations in a known format; expected one of\n  COCO: a JSON"):
            open_objects(str(tmp_path), "train")

    def test_a_file_of_another_kind(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").touch()
        with pytest.raises(UsageError, match=r"a\.txt' is a file of no known format; expected one of"):
            open_objects(str(tmp_path / "a.txt"), "train")

    def test_a_folder_that_does_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"nothing' does not exist"):
            open_objects(str(tmp_path / "nothing"), "train")
