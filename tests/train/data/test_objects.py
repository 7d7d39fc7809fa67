"""Cleaning, whose right values are worked out by hand; shares of a data set; and the choice of a format."""

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from swinv2.errors import UsageError
from swinv2.train.data.objects import ObjectDataset, open_objects, upright_size

SQUARE = [[1.0, 1.0, 3.0, 1.0, 3.0, 3.0]]


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    # The commands switch it off.
    monkeypatch.setattr(logging.getLogger("swinv2"), "propagate", True)
    return caplog


def make(folder: Path, *annotations: dict[str, Any], images: int = 1) -> str:
    """COCO's annotations for images of 10 x 8 pixels (width x height). Annotations have the ids 10, 11, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(images):
        Image.new("RGB", (10, 8)).save(folder / f"{index}.png")
    defaults = {"image_id": 0, "category_id": 1, "bbox": [1, 1, 2, 2]}
    data = {
        "images": [{"id": index, "file_name": f"{index}.png", "width": 10, "height": 8} for index in range(images)],
        "annotations": [{"id": number, **defaults, **one} for number, one in enumerate(annotations, 10)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 4, "name": "dog"}],
    }
    (folder / "_annotations.coco.json").write_text(json.dumps(data))
    return str(folder)


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
        source = make(tmp_path, {}, {"bbox": box})
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
        found = open_objects(make(tmp_path, {}, nothing, outside, nothing, outside, nothing), "train")
        assert len(found[0].objects) == 1
        assert [message.split(" has ", 1)[1].split(";")[0] for message in warnings.messages] == [
            "2 objects left out, because the box is outside the image",
            "3 objects left out, because the box has no area",
        ]

    def test_the_area_of_a_box_is_that_of_the_clipped_one(self, tmp_path: Path) -> None:
        source = make(tmp_path, {"bbox": [8, 6, 5, 5]}, {"area": 1.5}, {"area": None})
        assert open_objects(source, "train")[0].objects.areas.tolist() == [4, 1.5, 4]

    def test_an_area_that_is_no_number(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        found = open_objects(make(tmp_path, {"area": float("nan")}, {"area": 3}), "train")
        assert found[0].objects.areas.tolist() == [3]
        assert "a number is NaN or infinite; first" in warnings.text

    def test_objects_stay_with_their_images_in_any_order(self, tmp_path: Path) -> None:
        annotations = [
            {"image_id": image, "bbox": [0, 0, image + 1, width]} for image, width in ((2, 1), (0, 2), (2, 3))
        ]
        found = open_objects(make(tmp_path, *annotations, images=4), "train")
        assert [one.objects.boxes[:, 2:].tolist() for one in found] == [[[1, 2]], [], [[3, 1], [3, 3]], []]


class TestMasks:
    def test_a_polygon_of_two_points_is_no_mask(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        short = {"segmentation": [[1, 1, 3, 3]]}
        both = {"segmentation": [[1, 1, 3, 3], *SQUARE]}
        found = open_objects(make(tmp_path, short, both, {"segmentation": SQUARE}), "train")
        assert found[0].objects.segments == (None, SQUARE, SQUARE)
        assert not found.has_masks
        assert "2 objects with a polygon of fewer than 3 points, which is no mask; first" in warnings.text

    def test_a_polygon_that_is_not_finite(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        broken = {"segmentation": [*SQUARE, [1, 1, float("inf"), 1, 3, 3]]}
        found = open_objects(make(tmp_path, {"segmentation": SQUARE}, broken, {"segmentation": SQUARE}), "train")
        assert found[0].objects.segments == (SQUARE, SQUARE)
        assert "1 object left out, because a polygon has NaN or infinite numbers; first" in warnings.text
        assert "annotation 11" in warnings.text

    def test_several_polygons_and_run_lengths(self, tmp_path: Path) -> None:
        two = [[0.5, 1.0, 3.0, 1.0, 3.0, 3.0], [5.0, 5.0, 6.0, 5.0, 6.0, 6.0, 5.0, 6.0]]
        runs = {"size": [8, 10], "counts": "T1"}
        source = make(tmp_path, *({"segmentation": one} for one in (two, runs, SQUARE)))
        found = open_objects(source, "train", needs_masks=True)
        assert found[0].objects.segments == (two, runs, SQUARE)
        assert found.has_masks

    def test_objects_without_one_are_left_out_if_masks_are_needed(
        self, tmp_path: Path, warnings: pytest.LogCaptureFixture
    ) -> None:
        crowd = {"iscrowd": 1, "bbox": [0, 0, 9, 7]}
        source = make(tmp_path, {}, {"segmentation": SQUARE}, {"segmentation": []}, crowd)
        found = open_objects(source, "train", needs_masks=True)
        assert found[0].objects.segments == (SQUARE, None)
        assert found[0].objects.crowd.tolist() == [False, True]
        assert found.has_masks
        assert "has 2 objects left out, because they have no mask; first" in warnings.text
        assert not open_objects(source, "train").has_masks

    def test_no_mask_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"no object of .* has a mask; train with --task detection"):
            open_objects(make(tmp_path, {}), "train", needs_masks=True)


class TestDataset:
    @pytest.fixture
    def opened(self, tmp_path: Path) -> ObjectDataset:
        annotations = [{"image_id": image, "category_id": (1, 4)[image % 2]} for image in range(20)]
        return open_objects(make(tmp_path / "data", *annotations, {"iscrowd": 1}, images=21), "train")

    def test_counts_are_those_of_the_chosen_images(self, opened: ObjectDataset) -> None:
        assert opened.counts().tolist() == [10, 10]
        part = opened.share(0.5, 1)
        assert len(part) == 10
        labels = np.concatenate([one.objects.labels[~one.objects.crowd] for one in part])
        assert part.counts().tolist() == np.bincount(labels, minlength=2).tolist()

    def test_a_smaller_share_is_part_of_a_larger_one(self, opened: ObjectDataset) -> None:
        small, large = ({one.image_id for one in opened.share(share, 3)} for share in (0.2, 0.6))
        assert len(small) == 4
        assert small < large
        with pytest.raises(UsageError, match="expected above 0 and at most 1"):
            opened.share(0.0, 3)

    def test_setting_aside_depends_on_the_names_of_the_files(self, opened: ObjectDataset, tmp_path: Path) -> None:
        rest, aside = opened.set_aside(0.3)
        assert (len(rest), len(aside)) == (15, 6)
        assert {one.name for one in rest} | {one.name for one in aside} == {one.name for one in opened}
        # Another folder and one image more.
        more = make(tmp_path / "other", *({"image_id": image} for image in range(22)), images=22)
        again = {Path(one.name).name for one in open_objects(more, "train").set_aside(0.3)[1]}
        assert len(again & {Path(one.name).name for one in aside}) >= 5

    def test_other_names_renumber_the_classes(self, opened: ObjectDataset) -> None:
        found = opened.with_names(("bird", "dog", "cat"), "the model")
        assert found.names == ("bird", "dog", "cat")
        assert found.category_ids == (5, 4, 1)
        assert [found[index].objects.labels[0] for index in (0, 1)] == [2, 1]
        assert found.counts().tolist() == [0, 10, 10]
        with pytest.raises(UsageError, match=r"has classes that the model does not have: dog; it has cat, bird"):
            opened.with_names(("cat", "bird"), "the model")
        with pytest.raises(UsageError, match=r"the model has the class name 'cat' twice"):
            opened.with_names(("cat", "dog", "cat"), "the model")

    def test_given_names_are_an_order(self, opened: ObjectDataset) -> None:
        found = open_objects(opened.source, "train", names=("dog", "cat"))
        assert (found.names, found.category_ids) == (("dog", "cat"), (4, 1))

    def test_it_can_be_sent_to_processes(self, opened: ObjectDataset) -> None:
        part = opened.share(0.5, 1)
        again = pickle.loads(pickle.dumps(part))
        assert [one.name for one in again] == [one.name for one in part]
        assert again[-1].objects.boxes.tolist() == part[9].objects.boxes.tolist()

    def test_what_it_gives_may_be_changed(self, opened: ObjectDataset) -> None:
        opened[0].objects.boxes[:] = 0
        assert opened[0].objects.boxes[0].tolist() == [1, 1, 3, 3]

    def test_an_index_behind_the_end(self, opened: ObjectDataset) -> None:
        with pytest.raises(IndexError):
            opened[21]


class TestFormats:
    def test_two_formats_in_a_folder(self, tmp_path: Path) -> None:
        source = make(tmp_path, {})
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


class TestUprightSize:
    @pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
    @pytest.mark.parametrize(("orientation", "size"), [(1, (8, 10)), (3, (8, 10)), (6, (10, 8)), (8, (10, 8))])
    def test_it_is_that_of_the_image_as_it_is_read(
        self, tmp_path: Path, suffix: str, orientation: int, size: tuple[int, int]
    ) -> None:
        exif = Image.Exif()
        exif[274] = orientation
        file = tmp_path / f"a.{suffix}"
        Image.new("RGB", (10, 8)).save(file, exif=exif)
        assert upright_size(str(file)) == upright_size(file.read_bytes()) == size

    def test_what_is_no_image_has_none(self, tmp_path: Path) -> None:
        assert upright_size(b"nothing") == upright_size(str(tmp_path / "missing.png")) == (0, 0)
