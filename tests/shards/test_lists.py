"""Lists of names: sorted with little memory, stored once, and compared."""

import random
from pathlib import Path

import pytest

from swinv2.errors import UsageError
from swinv2.shards import lists
from swinv2.shards.lists import FOLDER, store_list
from swinv2.shards.output import Output


@pytest.fixture
def output(tmp_path: Path) -> Output:
    found = Output(str(tmp_path / "out"))
    found.prepare(FOLDER)
    return found


@pytest.mark.parametrize("at_once", [3, 7, 50_000])
def test_names_are_sorted_whatever_their_order(output: Output, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(lists, "_SORTED_AT_ONCE", at_once)
    monkeypatch.setattr(lists, "_MERGED_AT_ONCE", 3)
    names = [f"{folder}/{number}.jpg" for folder in ("a", "a-b", "ü", "\udcff") for number in range(25)]
    random.Random(0).shuffle(names)
    stored = store_list(output, "/photos", iter(names))
    assert stored is not None
    lines = Path(stored).read_bytes().splitlines()
    assert lines == sorted(name.encode("utf-8", "surrogateescape") for name in names)
    # The next run finds the same list.
    assert store_list(output, "/photos", reversed(names)) == stored
    assert output.names(FOLDER) == {Path(stored).name}


def test_a_change_is_named(output: Output) -> None:
    store_list(output, "/photos", ["b", "d", "e"])
    with pytest.raises(UsageError) as raised:
        store_list(output, "/photos", ["a", "b", "c", "d", "f", "g"])
    assert "'/photos' has changed" in str(raised.value)
    assert "4 were added (a, c, f) and 1 are gone (e)" in str(raised.value)
    # Another source has a list of its own.
    assert store_list(output, "/others", ["x"])


def test_no_names_are_no_list(output: Output) -> None:
    assert store_list(output, "/photos", []) is None
    assert output.names(FOLDER) == set()


@pytest.mark.parametrize("name", ["a\nb.jpg", " a.jpg", "a.jpg\r"])
def test_a_name_that_fits_no_line(output: Output, name: str) -> None:
    with pytest.raises(UsageError, match="rename the file"):
        store_list(output, "/photos", ["b.jpg", name])


def test_in_a_store() -> None:
    output = Output("memory://lists-of-a-test")
    stored = store_list(output, "/photos", ["b", "a"])
    assert stored is not None
    assert stored.startswith("memory://")
    assert output.read(f"{FOLDER}/{stored.rpartition('/')[2]}") == b"a\nb\n"
    with pytest.raises(UsageError, match=r"1 were added \(c\)"):
        store_list(output, "/photos", ["b", "a", "c"])
