"""Masks in COCO's notations, worked out by hand."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_masks

from swinv2.dense.masks import as_rle, decode_mask, encode_masks
from swinv2.errors import UsageError

SIZE = (4, 5)
# Rows 1 and 2, columns 1 to 3. In COCO's order, column by column: 5 pixels are outside, then 2 inside, 2 outside ...
SQUARE = np.zeros(SIZE, bool)
SQUARE[1:3, 1:4] = True
COUNTS = [5, 2, 2, 2, 2, 2, 5]
POLYGON = [1, 1, 4, 1, 4, 3, 1, 3]


@pytest.mark.parametrize(
    "segment",
    [
        {"size": [4, 5], "counts": COUNTS},
        {"size": (4, 5), "counts": tuple(COUNTS)},
        encode_masks(SQUARE[None])[0],
        # Counts as bytes, as pycocotools itself has them.
        coco_masks.encode(np.asfortranarray(SQUARE, np.uint8)),
        [POLYGON],
        # Polygons together are one mask.
        [[1, 1, 2, 1, 2, 3, 1, 3], np.array([2, 1, 4, 1, 4, 3, 2, 3])],
    ],
    ids=["counts", "tuples", "text", "bytes", "polygon", "polygons"],
)
def test_masks_are_decoded_from_all_notations(segment: Any) -> None:
    found = decode_mask(segment, SIZE)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, SQUARE)


def test_masks_are_encoded_as_text_and_decoded() -> None:
    random = np.random.default_rng(0)
    masks = random.random((3, 7, 9)) < 0.4
    encoded = encode_masks(torch.tensor(masks))
    assert [each["size"] for each in encoded] == [[7, 9]] * 3
    assert all(isinstance(each["counts"], str) for each in encoded)
    np.testing.assert_array_equal([decode_mask(each, (7, 9)) for each in encoded], masks)
    assert encode_masks(np.zeros((0, *SIZE), bool)) == []
    # The same as from counts that are worked out by hand.
    counts = as_rle({"size": SIZE, "counts": COUNTS}, SIZE, "the mask")["counts"]
    assert encode_masks(SQUARE[None])[0]["counts"] == counts.decode()


@pytest.mark.parametrize("masks", [np.zeros((1, 2, 2), np.uint8), np.zeros((2, 2), bool)])
def test_only_booleans_are_encoded(masks: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"the masks are \w+ \(.*\); expected booleans \(masks, height, width\)"):
        encode_masks(masks)


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        ([], "the mask is neither RLE nor polygons"),
        ("T1", "the mask is neither RLE nor polygons"),
        (None, "the mask is neither RLE nor polygons"),
        ([[1, 1, 3, 3]], "of at least 3 points"),
        ({"size": [5, 4], "counts": COUNTS}, r"the mask has the size \(5, 4\); expected \(4, 5\), that of the image"),
        ({"counts": COUNTS}, r"the mask has the size \(\); expected \(4, 5\)"),
        ({"size": [4, 5], "counts": [7]}, "the mask has other counts than the 20 pixels of the image"),
        ({"size": [4, 5]}, "the mask has other counts than the 20 pixels of the image"),
    ],
)
def test_what_is_no_mask_of_the_image_is_named(segment: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        decode_mask(segment, SIZE)


def test_without_pycocotools_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pycocotools", "pycocotools.mask"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=r"needs pycocotools; install it by: pip install 'swinv2\[dense\]'"):
        encode_masks(SQUARE[None])
