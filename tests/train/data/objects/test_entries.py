"""Values of entries in COCO's lists, and the entry that an error names."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swinv2.errors import UsageError
from swinv2.train.data.objects.entries import (
    check_once,
    look_up,
    name_entry,
    read_integers,
    read_numbers,
    read_texts,
)

FILE = Path("a.json")


def test_values_of_all_entries() -> None:
    entries = [{"id": 4, "name": "cat", "box": [1, 2.5]}, {"id": 9.0, "name": "dog", "box": [3, 4], "area": None}]
    assert read_numbers(entries, "box", "image", FILE, length=2).tolist() == [[1, 2.5], [3, 4]]
    assert read_numbers(entries, "area", "image", FILE, default=-1).tolist() == [-1, -1]
    assert read_integers(entries, "id", "image", FILE).tolist() == [4, 9]
    assert read_texts(entries, "name", "image", FILE) == ["cat", "dog"]
    assert look_up(entries, "id", {9: 0, 4: 1}, "'images'", FILE).tolist() == [1, 0]


def test_no_entries_have_no_values() -> None:
    assert read_numbers([], "box", "image", FILE, length=4).shape == (0, 4)
    assert read_integers([], "id", "image", FILE).shape == (0,)
    assert read_texts([], "name", "image", FILE) == []


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([], r"a\.json, image at position 1, counted from 0, is '\[\]'; expected an object with the key 'box'"),
        ({"id": 7}, r"a\.json, image 7 has no key 'box'; expected 2 numbers.* Add it, or delete the image"),
        ({"id": 7, "box": [1]}, r"a\.json, image 7 has the 'box' '\[1\]'; expected 2 numbers"),
        ({"id": 7, "box": [1, "a"]}, r"image 7 has the 'box' \"\[1, 'a'\]\"; expected 2 numbers"),
        ({"box": [1, 2**70]}, r"image at position 1, counted from 0, has the 'box' .*; expected 2 numbers"),
    ],
)
def test_the_first_wrong_entry_is_named(entry: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_numbers([{"box": [1, 2]}, entry, {"box": []}], "box", "image", FILE, length=2)


def test_other_values_that_are_wrong() -> None:
    with pytest.raises(UsageError, match=r"a\.json, image 3 has the 'key' 1\.5; expected an integer"):
        read_integers([{"id": 3, "key": 1.5}], "key", "image", FILE)
    with pytest.raises(UsageError, match=r"a\.json, category 3 has the 'name' '5'; expected text"):
        read_texts([{"id": 3, "name": 5}], "name", "category", FILE)
    with pytest.raises(UsageError, match=r"annotation 3 has the 'key' 8, which is not in 'images' \(2 such"):
        look_up([{"id": 3, "key": 8}, {"id": 4, "key": 9}], "key", {1: 0}, "'images'", FILE)
    with pytest.raises(UsageError, match=r"a\.json has the image id 5 2 times; expected each once"):
        check_once(np.array([5, 6, 5]), "image id", FILE)


def test_an_entry_without_an_id_is_called_by_its_position() -> None:
    assert name_entry({"id": 0}, 3, "image") == "image 0"
    assert name_entry("text", 3, "image") == "image at position 3, counted from 0,"
