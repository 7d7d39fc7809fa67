"""Masks as they are stored: palettes, grey of few bits, colours, and what is no mask."""

import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from swinv2.errors import UsageError
from swinv2.images import BrokenImageError
from swinv2.train.data.masks.files import stored_values


def read(mask: str | bytes | np.ndarray, colours: Mapping[int, int] | None = None) -> np.ndarray:
    return stored_values(mask, "a.png", colours)


def as_file(image: Image.Image, **options: object) -> bytes:
    """A mask as the contents of a PNG, or of another format."""
    file = io.BytesIO()
    image.save(file, **{"format": "PNG", **options})  # type: ignore[arg-type]
    return file.getvalue()


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
def test_values_are_read_as_they_are_stored(mask: Image.Image, expected: list[list[int]]) -> None:
    assert read(as_file(mask)).tolist() == expected


def test_a_palette_has_indices_and_no_colours() -> None:
    mask = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    mask.putpalette([9, 9, 9, 200, 0, 0, 0, 0, 100])
    assert mask.mode == "P"
    assert read(as_file(mask)).tolist() == [[0, 1, 2]]
    # With a table, the colours decide.
    assert read(as_file(mask), {0x090909: 4, 0x000064: 5, 0xC80000: 6}).tolist() == [[4, 6, 5]]


@pytest.mark.parametrize(
    ("bits", "row"), [(1, [0, 1, 1, 0, 0, 0, 0, 1]), (2, [0, 1, 2, 3]), (4, [0, 1, 7, 15]), (8, [0, 85, 17, 255])]
)
def test_grey_of_few_bits_is_not_stretched(bits: int, row: list[int]) -> None:
    assert read(grey_png(bits, [row, row])).tolist() == [row, row]


def test_pixels_of_an_array() -> None:
    assert read(np.array([[[3], [4]]], np.int32)).tolist() == [[3, 4]]
    assert read(np.array([[True, False]])).tolist() == [[1, 0]]


def test_a_turned_mask_stays_as_it_is_stored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read(as_file(Image.fromarray(np.array([[1, 2, 3]], np.uint8)), exif=exif)).shape == (1, 3)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((2, 3), np.float32), r"a\.png has float32 values of the shape \(2, 3\); expected integers"),
        (np.zeros((2, 3, 4), np.uint8), r"of the shape \(2, 3, 4\); expected integers"),
        (np.array([[[1, 2, 3]]], np.uint8), r"a\.png is a mask in colours.*class_dict\.csv.*name,r,g,b"),
    ],
)
def test_what_is_no_mask(mask: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(mask)


def test_a_float_file_and_a_jpeg_are_no_masks() -> None:
    with pytest.raises(UsageError, match=r"a\.png has float32 values"):
        read(as_file(Image.fromarray(np.zeros((2, 2), np.float32)), format="TIFF"))
    with pytest.raises(UsageError, match=r"a\.png is a mask in JPEG, which changes values"):
        read(as_file(Image.new("L", (8, 8)), format="JPEG"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    contents = as_file(Image.new("L", (64, 64)))
    for mask, reason in (
        (b"", "the file is empty"),
        (b"text", "not an image"),
        (contents[:-30], "damaged"),
        (str(tmp_path / "none.png"), "no such file"),
    ):
        with pytest.raises(BrokenImageError, match=reason):
            read(mask)


def test_colours_by_a_table() -> None:
    table = {0x010203: 2, 0xFF0000: 0, 0x000000: 1}
    mask = np.array([[[255, 0, 0], [1, 2, 3]], [[0, 0, 0], [255, 0, 0]]], np.uint8)
    assert read(mask, table).tolist() == [[0, 2], [1, 0]]
    with pytest.raises(UsageError, match=r"a\.png has the colour \(1, 2, 4\) in 2 pixels"):
        read(np.array([[[1, 2, 4], [0, 0, 0], [1, 2, 4]]], np.uint8), table)


def test_a_grey_mask_beside_colours_has_values_unless_all_are_grey() -> None:
    mask = np.array([[0, 1]], np.uint8)
    assert read(mask, {0x000000: 1, 0xFF0000: 0}).tolist() == [[0, 1]]
    mask = np.array([[0, 255]], np.uint8)
    assert read(mask, {0x000000: 1, 0xFFFFFF: 0}).tolist() == [[1, 0]]
