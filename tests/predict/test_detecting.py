"""Objects that are sure enough, in the order of their scores, with their image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from swinv2.dense.average_precision import Detections
from swinv2.dense.masks import encode_masks
from swinv2.drawing.overlays import palette
from swinv2.images import BrokenImage
from swinv2.predict.detecting import Detected, above, as_records, detect_files

NAMES = ["cat", "dog"]


def some_objects(masks: bool = False) -> Detections:
    """Three objects, not in the order of their scores; the masks are rows 0, 1 and 2 of an image of 4 x 5 pixels."""
    boxes = np.array([[0, 0, 2.256, 1], [1, 1, 3, 2], [2, 2, 5, 4]], np.float32)
    rows = np.zeros((3, 4, 5), bool)
    rows[range(3), range(3)] = True
    return Detections(
        boxes, np.array([1, 0, 1]), np.array([0.4, 0.9, 0.5], np.float32), encode_masks(rows) if masks else None
    )


class OneForEach:
    """A detector that finds an object as large as the image, and notes the images of each batch."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, ...]]] = []

    def __call__(self, images: Sequence[np.ndarray]) -> list[Detections]:
        self.batches.append([image.shape for image in images])
        return [
            Detections(
                np.array([[0, 0, image.shape[1], image.shape[0]]], float),
                np.array([1]),
                np.array([0.75]),
                encode_masks(np.ones((1, *image.shape[:2]), bool)),
            )
            for image in images
        ]


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Three images of different sizes, two of them of one name, and a broken one."""
    paths = [tmp_path / name for name in ("a.png", "b.png", "broken.png", "more/a.png")]
    paths[3].parent.mkdir()
    for side, path in enumerate(paths, 2):
        Image.new("RGB", (side, 2 * side), (100, 100, 100)).save(path)
    paths[2].write_text("nothing")
    return paths


def test_objects_below_the_threshold_are_left_out_and_the_surest_is_first() -> None:
    found = above(some_objects(masks=True), 0.5)
    assert found.scores.tolist() == pytest.approx([0.9, 0.5])
    assert found.labels.tolist() == [0, 1]
    assert found.boxes.tolist() == [[1, 1, 3, 2], [2, 2, 5, 4]]
    assert found.masks == [some_objects(masks=True).masks[index] for index in (1, 2)]
    assert above(some_objects(), 0.0).masks is None
    assert len(above(some_objects(), 0.0).scores) == 3
    assert len(above(some_objects(), 0.95).scores) == 0


def test_records_have_rounded_numbers_and_the_name_of_the_class() -> None:
    records = as_records(some_objects(masks=True), NAMES)
    assert [(each["label"], each["index"], each["score"]) for each in records] == [
        ("dog", 1, 0.4),
        ("cat", 0, 0.9),
        ("dog", 1, 0.5),
    ]
    assert records[0]["box"] == [0.0, 0.0, 2.26, 1.0]
    assert records[0]["mask"]["size"] == [4, 5]
    assert "mask" not in as_records(some_objects(), NAMES)[0]


def test_each_image_has_its_objects_and_broken_ones_are_skipped(photos: list[Path]) -> None:
    detector = OneForEach()
    found = dict(detect_files(detector, NAMES, photos, batch_size=2))
    assert list(found) == photos
    assert found[photos[2]] == BrokenImage(photos[2], "not an image")
    for index in (0, 1, 3):
        answer = found[photos[index]]
        assert isinstance(answer, Detected)
        assert answer.size == (index + 2, 2 * index + 4)
        assert answer.found.boxes.tolist() == [[0, 0, *answer.size]]
        assert answer.files == []
    assert detector.batches == [[(4, 2, 3), (6, 3, 3)], [(10, 5, 3)]]


def test_a_batch_of_broken_images_does_not_reach_the_detector(photos: list[Path]) -> None:
    detector = OneForEach()
    assert len(list(detect_files(detector, NAMES, [photos[2]]))) == 1
    assert detector.batches == []


def test_objects_are_drawn_into_files_of_their_own(photos: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "new" / "out"
    answers = [answer for _, answer in detect_files(OneForEach(), NAMES, photos, output=output)]
    files = [file for answer in answers if isinstance(answer, Detected) for file in answer.files]
    assert [file.name for file in files] == ["a_objects.png", "b_objects.png", "a-2_objects.png"]
    assert sorted(output.iterdir()) == sorted(files)
    colour = palette()[1].astype(float)
    for file, side in zip(files, (2, 3, 5), strict=True):
        with Image.open(file) as image:
            drawn = np.asarray(image)
        factor = 1000 // (2 * side)
        assert drawn.shape == (2 * side * factor, side * factor, 3)
        assert drawn[-1, 10].tolist() == colour.tolist()
        np.testing.assert_allclose(drawn[len(drawn) // 2, len(drawn[0]) // 2], 0.55 * 100 + 0.45 * colour, atol=1.5)


def test_an_image_without_objects_is_drawn_as_it_is(photos: list[Path], tmp_path: Path) -> None:
    ((_, answer),) = detect_files(OneForEach(), NAMES, photos[:1], 0.8, output=tmp_path / "out")
    assert isinstance(answer, Detected)
    with Image.open(answer.files[0]) as image:
        assert np.unique(np.asarray(image)).tolist() == [100]
