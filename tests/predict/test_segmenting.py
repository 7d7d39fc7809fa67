"""What is written is what the segmenter found, and nothing but an image and its class map grows with the image."""

import json
import os
import re
import subprocess
import sys
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import peers
from dense.test_heads import SMALL, SMALL_HEADS
from swinv2 import Swinv2Config, Swinv2ForImageClassification
from swinv2.dense import from_backbone
from swinv2.dense.masks import decode_mask
from swinv2.dense.saved import make_dense_processor
from swinv2.drawing.overlays import palette
from swinv2.errors import UsageError
from swinv2.images import BrokenImage
from swinv2.predict import segmenting
from swinv2.predict.segmenting import Segmented, count_classes, read_pixels, segment_files, write_classes

NAMES = ["dark", "never", "light"]


def by_light(pixels: np.ndarray) -> np.ndarray:
    """A segmenter: class 2 for light pixels, 0 for dark ones."""
    return np.where(pixels[..., 0] > 127, 2, 0).astype(np.uint8)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Six pixels, of which the last two are light."""
    pixels = np.array([[[9, 0, 0]] * 3, [[9, 0, 0], [200, 9, 9], [255, 9, 9]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def results(found: Iterable[tuple[Path, Segmented | BrokenImage]]) -> list[Segmented]:
    """The answers, all of images that could be read."""
    answers = [answer for _, answer in found]
    assert all(isinstance(answer, Segmented) for answer in answers)
    return [answer for answer in answers if isinstance(answer, Segmented)]


def test_classes_are_counted_the_largest_first(photo: Path) -> None:
    (found,) = results(segment_files(by_light, NAMES, [photo]))
    assert (found.size, found.files) == ((3, 2), [])
    assert [(each.index, each.label, each.pixels, each.share, each.mask) for each in found.classes] == [
        (0, "dark", 4, 4 / 6, None),
        (2, "light", 2, 2 / 6, None),
    ]


def test_counts_do_not_depend_on_the_rows_counted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = np.random.default_rng(0).integers(0, 5, (70, 30), np.uint8)
    names = list("abcde")
    expected = sorted(((int((classes == index).sum()), -index) for index in range(5)), reverse=True)
    for pixels in (10**6, 100, 1):
        monkeypatch.setattr(segmenting, "_BAND_PIXELS", pixels)
        assert [(each.pixels, -each.index) for each in count_classes(classes, names)] == expected


def test_masks_are_those_of_the_classes(photo: Path) -> None:
    (found,) = results(segment_files(by_light, NAMES, [photo], with_masks=True))
    masks = {each.label: decode_mask(each.mask, (2, 3)).astype(int).tolist() for each in found.classes}
    assert masks == {"dark": [[1, 1, 1], [1, 0, 0]], "light": [[0, 0, 0], [0, 1, 1]]}
    assert json.loads(json.dumps(found.classes[0].mask)) == found.classes[0].mask


def test_the_values_of_a_class_map_are_the_classes(photo: Path, tmp_path: Path) -> None:
    (found,) = results(segment_files(by_light, NAMES, [photo], tmp_path / "new" / "folder"))
    assert [file.name for file in found.files] == ["photo_classes.png", "photo_overlay.png"]
    with Image.open(found.files[0]) as image:
        assert (image.mode, image.size) == ("P", (3, 2))
        assert np.asarray(image).tolist() == [[0, 0, 0], [0, 2, 2]]
        assert np.asarray(image.convert("RGB"))[1].tolist() == palette()[[0, 2, 2]].tolist()
        assert image.getpalette() == palette().ravel().tolist()
    with Image.open(found.files[1]) as image:
        drawn = image.convert("RGB")
        red, green, blue = palette()[0].tolist()
        assert drawn.getpixel((10, 10)) == ((red + 9) // 2, green // 2, blue // 2)
    assert sorted(path.name for path in found.files[0].parent.iterdir()) == [file.name for file in found.files]


def test_without_an_overlay_only_the_class_map_is_written(photo: Path, tmp_path: Path) -> None:
    (found,) = results(segment_files(by_light, NAMES, [photo], tmp_path / "out", overlay=False))
    assert list((tmp_path / "out").iterdir()) == found.files == [tmp_path / "out" / "photo_classes.png"]


def test_a_class_map_of_more_than_256_classes_is_grey_of_16_bits(tmp_path: Path) -> None:
    classes = np.array([[0, 255, 256], [300, 65535, 1]], np.int32)
    write_classes(classes, tmp_path / "classes.png")
    with Image.open(tmp_path / "classes.png") as image:
        assert np.asarray(image).tolist() == classes.tolist()
    with pytest.raises(UsageError, match=re.escape("the class 65536 does not fit into 'more.png', which has 16 bits")):
        write_classes(classes + 1, tmp_path / "more.png")
    assert not (tmp_path / "more.png").exists()


def test_images_of_the_same_name_have_files_of_their_own(photo: Path, tmp_path: Path) -> None:
    other = tmp_path / "more" / "photo.jpg"
    other.parent.mkdir()
    Image.new("RGB", (4, 4), "white").save(other)
    first, second = results(segment_files(by_light, NAMES, [photo, other], tmp_path / "out"))
    assert [file.name for file in second.files] == ["photo-2_classes.png", "photo-2_overlay.png"]
    with Image.open(first.files[0]) as image:
        assert image.size == (3, 2)
    with Image.open(second.files[0]) as image:
        assert (np.asarray(image) == 2).all()


def test_broken_images_are_skipped_in_their_place(photo: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("nothing")
    found = list(segment_files(by_light, NAMES, [broken, photo]))
    assert [path for path, _ in found] == [broken, photo]
    assert found[0][1] == BrokenImage(broken, "not an image")
    assert isinstance(found[1][1], Segmented)


def test_too_little_memory_is_a_sentence_with_the_image(photo: Path) -> None:
    def fails(pixels: np.ndarray) -> np.ndarray:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UsageError, match=r"too little memory for '.*photo.png', 3 x 2 pixels; give a smaller window"):
        list(segment_files(fails, NAMES, [photo]))


def test_pixels_are_those_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (23, 11, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    monkeypatch.setattr(segmenting, "_BAND_PIXELS", 50)
    found = read_pixels(tmp_path / "noise.png")
    assert isinstance(found, np.ndarray)
    assert np.array_equal(found, pixels)


def test_an_image_is_freed_before_the_next_one_is_read(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so is its class map."""
    made: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []

    def read(path: Path) -> np.ndarray | BrokenImage:
        alive.append(sum(each() is not None for each in made))
        pixels = read_pixels(path)
        assert isinstance(pixels, np.ndarray)
        made.append(weakref.ref(pixels))
        return pixels

    def segmenter(pixels: np.ndarray) -> np.ndarray:
        classes = by_light(pixels)
        made.append(weakref.ref(classes))
        return classes

    monkeypatch.setattr(segmenting, "read_pixels", read)
    assert len(list(segment_files(segmenter, NAMES, [photo] * 3))) == 3
    assert alive == [0, 0, 0]


MEASURED = """
import json, sys
from pathlib import Path
import numpy as np
from swinv2.dense.answers import Segmenter
from swinv2.predict import segmenting

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

def phase(name, work):
    # The peak counts from here on.
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    result = work()
    rises[name] = status("VmHWM") - before
    return result

rises = {}
folder, image = Path(sys.argv[1]), Path(sys.argv[2])
segmenter = Segmenter.load(str(folder))
segmenter.window = segmenter.stride = 64
small = np.zeros((128, 128, 3), np.uint8)
segmenting.draw_classes(small, segmenter(small), [])
pixels = phase("read", lambda: segmenting.read_pixels(image))
classes = phase("segment", lambda: segmenter(pixels))
found = phase("count", lambda: segmenting.count_classes(classes, segmenter.names))
phase("write", lambda: segmenting.write_classes(classes, folder / "classes.png"))
legend = [segmenting.Entry(each.index, each.label, each.share) for each in found]
phase("draw", lambda: segmenting.draw_classes(pixels, classes, legend))
del pixels, classes
phase("all", lambda: list(segmenting.segment_files(segmenter, segmenter.names, [image], folder)))
print(json.dumps(rises))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from Linux")
@pytest.mark.usefixtures("registered")
def test_only_the_image_and_its_class_map_grow_with_the_image(tmp_path: Path) -> None:
    """From 4 to 16 million pixels. A byte for each pixel is 12 MB, one more copy of the image 36 MB.

    PIL stores four bytes for a pixel, and while a file is read there are two such images: eight bytes. Afterwards the
    array has three, and the class map one. The rest depends on the width at most: the scores of a row of windows, in
    several copies, are 3 MB each in the larger image, and the rows that are drawn at once. 16 MB are enough for that,
    and less than half of a copy of the image.
    """
    peers.draw_weights(Swinv2ForImageClassification(Swinv2Config(**SMALL))).save_pretrained(tmp_path / "checkpoint")
    model: Any = from_backbone(tmp_path / "checkpoint", "upernet", NAMES, **SMALL_HEADS["upernet"])
    model.save_pretrained(tmp_path / "model")
    make_dense_processor(model, (64, 64), [0.5] * 3, [0.5] * 3).save_pretrained(tmp_path / "model")
    rises: list[dict[str, int]] = []
    for side in (2000, 4000):
        ramp = np.arange(side) % 256
        pixels = np.stack(np.broadcast_arrays(ramp[:, None], ramp, ramp[::-1]), -1).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{side}.png", compress_level=1)
        command = [sys.executable, "-c", MEASURED, str(tmp_path / "model"), str(tmp_path / f"{side}.png")]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        rises.append(json.loads(done.stdout.splitlines()[-1]))
    more = 4000**2 - 2000**2
    bytes_of_pixel = {"read": 8, "segment": 1, "count": 0, "write": 0, "draw": 0, "all": 8}
    assert rises[0].keys() == bytes_of_pixel.keys()
    for name, count in bytes_of_pixel.items():
        assert rises[1][name] - rises[0][name] < count * more + 16 * 2**20, (name, rises)
    # Otherwise nothing was measured.
    assert rises[1]["read"] > 7 * 4000**2
    assert rises[1]["segment"] > 4000**2
