"""Masks as they are stored, and the class of each pixel."""

import io
import logging
import pickle
import struct
import zlib
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from swinv2.errors import UsageError
from swinv2.images import BrokenImageError
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.masks import (
    IGNORED_PIXEL,
    NO_VALUE,
    MaskDataset,
    MaskedImage,
    check_size,
    scan_values,
    stored_values,
)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    # The commands switch it off.
    monkeypatch.setattr(logging.getLogger("swinv2"), "propagate", True)
    return caplog


def sample_of(mask: str | bytes | np.ndarray) -> MaskedImage:
    return MaskedImage(b"", mask, "a.jpg", "a.png")


def as_file(image: Image.Image, **options: object) -> MaskedImage:
    """A mask as the contents of a PNG, or of another format."""
    file = io.BytesIO()
    image.save(file, **{"format": "PNG", **options})  # type: ignore[arg-type]
    return sample_of(file.getvalue())


def grey_png(bits: int, values: list[list[int]]) -> bytes:
    """A grey PNG of less than eight bits, which PIL cannot write. Rows fill whole bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b""
    for row in values:
        packed = 0
        for value in row:
            packed = packed << bits | value
        rows += b"\0" + packed.to_bytes(len(row) * bits // 8, "big")
    header = struct.pack(">IIBBBBB", len(values[0]), len(values), bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def dataset_of(names: tuple[str, ...] = ("a", "b"), count: int = 1, **fields: object) -> MaskDataset:
    """Rows whose masks have the values 0 and 1."""
    mask = as_file(Image.fromarray(np.array([[0, 1, 1]], np.uint8))).mask
    columns = {"image": [f"{index}.jpg" for index in range(count)], "mask": [mask] * count}
    images = ImageDataset(datasets.Dataset.from_dict(columns), "image", None, (), "data", "train", ("train", "test"))
    values = tuple(range(len(names)))
    return MaskDataset(images, "mask", names, **{"values": values, **fields})  # type: ignore[arg-type]


class TestStored:
    @pytest.mark.parametrize(
        ("mask", "expected"),
        [
            (Image.fromarray(np.array([[0, 7, 255]], np.uint8)), [[0, 7, 255]]),
            (Image.fromarray(np.array([[0, 300, 65535]], np.uint16)), [[0, 300, 65535]]),
            (Image.fromarray(np.array([[False, True]])), [[0, 1]]),
            (Image.fromarray(np.array([[[9, 255], [4, 0]]], np.uint8), "LA"), [[9, 4]]),
            (Image.fromarray(np.array([[[5, 5, 5], [6, 6, 6]]], np.uint8)), [[5, 6]]),
            (Image.fromarray(np.array([[[5, 5, 5, 0], [6, 6, 6, 255]]], np.uint8)), [[5, 6]]),
        ],
    )
    @pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
    def test_values_are_read_as_they_are_stored(self, mask: Image.Image, expected: list[list[int]]) -> None:
        assert stored_values(as_file(mask)).tolist() == expected

    def test_a_palette_has_indices_and_no_colours(self) -> None:
        mask = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
        mask.putpalette([9, 9, 9, 200, 0, 0, 0, 0, 100])
        assert mask.mode == "P"
        assert stored_values(as_file(mask)).tolist() == [[0, 1, 2]]
        # With a table, the colours decide.
        assert stored_values(as_file(mask), {0x090909: 4, 0x000064: 5, 0xC80000: 6}).tolist() == [[4, 6, 5]]

    @pytest.mark.parametrize(
        ("bits", "row"), [(1, [0, 1, 1, 0, 0, 0, 0, 1]), (2, [0, 1, 2, 3]), (4, [0, 1, 7, 15]), (8, [0, 85, 17, 255])]
    )
    def test_grey_of_few_bits_is_not_stretched(self, bits: int, row: list[int]) -> None:
        assert stored_values(sample_of(grey_png(bits, [row, row]))).tolist() == [row, row]

    def test_pixels_of_an_array(self) -> None:
        assert stored_values(sample_of(np.array([[[3], [4]]], np.int32))).tolist() == [[3, 4]]
        assert stored_values(sample_of(np.array([[True, False]]))).tolist() == [[1, 0]]

    def test_a_turned_mask_stays_as_it_is_stored(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        assert stored_values(as_file(Image.fromarray(np.array([[1, 2, 3]], np.uint8)), exif=exif)).shape == (1, 3)

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            (np.zeros((2, 3), np.float32), r"a\.png has float32 values of the shape \(2, 3\); expected integers"),
            (np.zeros((2, 3, 4), np.uint8), r"of the shape \(2, 3, 4\); expected integers"),
            (np.array([[[1, 2, 3]]], np.uint8), r"a\.png is a mask in colours.*class_dict\.csv.*name,r,g,b"),
        ],
    )
    def test_what_is_no_mask(self, mask: np.ndarray, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            stored_values(sample_of(mask))

    def test_a_float_file_and_a_jpeg_are_no_masks(self) -> None:
        with pytest.raises(UsageError, match=r"a\.png has float32 values"):
            stored_values(as_file(Image.fromarray(np.zeros((2, 2), np.float32)), format="TIFF"))
        with pytest.raises(UsageError, match=r"a\.png is a mask in JPEG, which changes values"):
            stored_values(as_file(Image.new("L", (8, 8)), format="JPEG"))

    def test_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        contents = as_file(Image.new("L", (64, 64))).mask
        assert isinstance(contents, bytes)
        for mask, reason in (
            (b"", "the file is empty"),
            (b"text", "not an image"),
            (contents[:-30], "damaged"),
            (str(tmp_path / "none.png"), "no such file"),
        ):
            with pytest.raises(BrokenImageError, match=reason):
                stored_values(sample_of(mask))

    def test_colours_by_a_table(self) -> None:
        table = {0x010203: 2, 0xFF0000: 0, 0x000000: 1}
        mask = np.array([[[255, 0, 0], [1, 2, 3]], [[0, 0, 0], [255, 0, 0]]], np.uint8)
        assert stored_values(sample_of(mask), table).tolist() == [[0, 2], [1, 0]]
        with pytest.raises(UsageError, match=r"a\.png has the colour \(1, 2, 4\) in 2 pixels"):
            stored_values(sample_of(np.array([[[1, 2, 4], [0, 0, 0], [1, 2, 4]]], np.uint8)), table)

    def test_a_grey_mask_beside_colours_has_values_unless_all_are_grey(self) -> None:
        mask = np.array([[0, 1]], np.uint8)
        assert stored_values(sample_of(mask), {0x000000: 1, 0xFF0000: 0}).tolist() == [[0, 1]]
        mask = np.array([[0, 255]], np.uint8)
        assert stored_values(sample_of(mask), {0x000000: 1, 0xFFFFFF: 0}).tolist() == [[1, 0]]


class TestClasses:
    def test_ignored_values_and_labels_from_1(self) -> None:
        stored = sample_of(np.array([[0, 1, 3, 9]]))
        plain = dataset_of(("a", "b", "c", "d"), ignore_index=9)
        assert plain.read_mask(stored).tolist() == [[0, 1, 3, IGNORED_PIXEL]]
        assert plain.read_mask(stored).dtype == np.uint8
        reduced = dataset_of(("a", "b", "c"), values=(1, 2, 3), ignore_index=9, reduce_labels=True)
        assert reduced.read_mask(stored).tolist() == [[IGNORED_PIXEL, 0, 2, IGNORED_PIXEL]]
        binary = dataset_of(values=(0, 255), ignore_index=NO_VALUE)
        assert binary.read_mask(sample_of(np.array([[255, 0]], np.uint8))).tolist() == [[1, 0]]

    def test_254_is_a_class_like_others(self) -> None:
        many = dataset_of(tuple(map(str, range(255))))
        assert many.read_mask(sample_of(np.array([[0, 254, 255]]))).tolist() == [[0, 254, 255]]
        with pytest.raises(UsageError, match="data has 256 classes; expected at most 255"):
            dataset_of(tuple(map(str, range(256))))

    @pytest.mark.parametrize("value", [7, 65535, -3])
    def test_a_value_that_is_no_class_is_named(self, value: int) -> None:
        with pytest.raises(UsageError) as error:
            dataset_of().read_mask(sample_of(np.array([[0, value, value, 1, 255]])))
        assert f"a.png has the value {value} in 2 pixels; expected 0 to 1, or 255 for pixels" in str(error.value)
        assert all(flag in str(error.value) for flag in ("--ignore-index", "--reduce-labels", "--label-names-file"))

    def test_two_classes_of_one_name(self) -> None:
        with pytest.raises(UsageError, match="data has several classes with the name 'a'"):
            dataset_of(("a", "b", "a"))

    def test_another_order_is_renumbered(self) -> None:
        found = dataset_of(("a", "b", "c")).with_names(("c", "a", "b"), "the model")
        assert found.names == ("c", "a", "b")
        assert found.read_mask(sample_of(np.array([[0, 1, 2, 255]]))).tolist() == [[1, 2, 0, IGNORED_PIXEL]]
        again = found.with_names(("b", "c", "a"), "the model")
        assert again.read_mask(sample_of(np.array([[0, 1, 2, 255]]))).tolist() == [[2, 0, 1, IGNORED_PIXEL]]

    def test_numbers_match_by_order(self, warnings: pytest.LogCaptureFixture) -> None:
        assert dataset_of(("0", "1")).with_names(("cat", "dog"), "the model").names == ("cat", "dog")
        assert "data has the classes '0', '1', the model 'cat', 'dog'; they are matched" in warnings.text
        assert dataset_of(("cat", "dog")).with_names(("0", "1"), "the model").names == ("0", "1")

    def test_a_missing_and_an_extra_class_are_named(self) -> None:
        with pytest.raises(UsageError, match="data lacks the classes 'c'"):
            dataset_of().with_names(("a", "b", "c"), "the model")
        with pytest.raises(UsageError, match="the model lacks the classes 'b'"):
            dataset_of().with_names(("a",), "the model")
        with pytest.raises(UsageError, match="data lacks the classes 'cat', 'dog', 'fly'"):
            dataset_of(("0", "1")).with_names(("cat", "dog", "fly"), "the model")


class TestDataset:
    def test_pixels_are_counted_and_progress_is_told(self, warnings: pytest.LogCaptureFixture) -> None:
        told: list[tuple[int, int]] = []
        counts = dataset_of(count=3).count_pixels(lambda done, total: told.append((done, total)))
        assert counts.tolist() == [3, 6]
        assert counts.dtype == np.int64
        assert told == [(1, 3), (2, 3), (3, 3)]
        assert warnings.text == ""

    def test_values_are_scanned_and_unreadable_masks_are_named(self, warnings: pytest.LogCaptureFixture) -> None:
        good = dataset_of(count=2)
        rows = datasets.Dataset.from_dict({"image": ["x.jpg", "y.jpg"], "mask": [b"", good[0].mask]})
        images = ImageDataset(rows, "image", None, (), "other")
        found = scan_values([MaskDataset(images, "mask"), good])
        assert found == {0: "other[1] (mask)", 1: "other[1] (mask)"}
        assert "masks that cannot be read are left out: other[0] (mask): the file is empty" in warnings.text

    def test_samples_have_names(self) -> None:
        found = dataset_of(count=2)
        assert [(sample.image, sample.name, sample.mask_name) for sample in found] == [
            ("0.jpg", "data[0]", "data[0] (mask)"),
            ("1.jpg", "data[1]", "data[1] (mask)"),
        ]
        assert (found.source, found.split, found.splits, found.has_evaluation_split) == (
            "data",
            "train",
            ("train", "test"),
            True,
        )

    def test_shares_keep_masks_beside_their_images(self) -> None:
        masks = [np.full((1, 1), index, np.uint8).tolist() for index in range(40)]
        rows = datasets.Dataset.from_dict({"image": [f"{index}.jpg" for index in range(40)], "mask": masks})
        images = ImageDataset(rows, "image", None, (), "data")
        found = MaskDataset(images, "mask", tuple(map(str, range(40))), tuple(range(40)))
        rest, aside = found.set_aside(0.25)
        assert (len(rest), len(aside)) == (30, 10)
        assert {sample.image for sample in rest} | {sample.image for sample in aside} == {s.image for s in found}
        for part in (rest, aside, found.share(0.5, 3)):
            assert all(f"{part.read_mask(sample).item()}.jpg" == sample.image for sample in part)
        # The choice depends on names, not on the order.
        turned = MaskDataset(
            ImageDataset(rows.select(range(39, -1, -1)), "image", None, (), "data"), "mask", found.names, found.values
        )
        assert {sample.image for sample in turned.set_aside(0.25)[1]} == {sample.image for sample in aside}
        half, quarter = ({sample.image for sample in found.share(part, 3)} for part in (0.5, 0.25))
        assert quarter < half
        assert (len(quarter), len(half)) == (10, 20)

    def test_workers_get_a_copy(self) -> None:
        found = dataset_of(colours={0x000000: 0, 0x010101: 1})
        copy = pickle.loads(pickle.dumps(found))
        assert copy.read_mask(copy[0]).tolist() == found.read_mask(found[0]).tolist() == [[0, 1, 1]]

    def test_sizes_that_differ(self) -> None:
        check_size((4, 6), (4, 6), sample_of(b""))
        with pytest.raises(UsageError, match=r"a\.png has 4 x 6 pixels, its image a\.jpg has 6 x 4.*upright"):
            check_size((4, 6), (6, 4), sample_of(b""))
