"""Places on this machine and in a store: the same names, and one sentence for what cannot be reached."""

import importlib.util
import os
from pathlib import Path

import fsspec
import pytest

from shard_files import write_folder
from swinv2.errors import UsageError
from swinv2.shards.places import (
    absolute,
    described,
    expand_braces,
    folder_of,
    is_address,
    joined,
    last_part,
    matching,
    open_binary,
    read_many,
    walk,
)

FILES = {name: name.encode() for name in ("a.jpg", "b/c.jpg", "b/d/e.jpg", "b/.hidden.jpg", ".git/f.jpg", "z.tar")}
VISIBLE = ["a.jpg", "b/c.jpg", "b/d/e.jpg", "z.tar"]


@pytest.fixture(params=["folder", "store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same files, here and in a store."""
    if request.param == "folder":
        return str(write_folder(tmp_path / "files", FILES))
    store = fsspec.filesystem("memory")
    store.pipe({f"/places/{name}": content for name, content in FILES.items()})
    return absolute("memory://places")


def test_all_files_but_hidden_ones(place: str) -> None:
    assert sorted(walk(place)) == VISIBLE
    for name in VISIBLE:
        with open_binary(joined(place, name)) as file:
            assert file.read() == name.encode()


def test_what_cannot_be_listed_is_a_sentence(place: str) -> None:
    with pytest.raises(UsageError, match=r"there is no '.*gone'"):
        list(walk(joined(place, "gone")))


def test_files_are_described(place: str) -> None:
    places = [joined(place, name) for name in ("b/c.jpg", "gone.jpg", "a.jpg", "b")]
    found = described(places)
    assert list(found) == places
    assert [about and (about["type"], about["size"]) for about in found.values()][:3] == [
        ("file", 7),
        None,
        ("file", 5),
    ]
    assert found[places[3]] is not None
    assert found[places[3]]["type"] == "directory"  # type: ignore[index]
    assert described([joined(place, "gone")]) == {joined(place, "gone"): None}


def test_globs_match_by_name(place: str) -> None:
    assert [found[len(place) + 1 :] for found in matching(joined(place, "**/*.jpg"))] == [
        ".git/f.jpg",
        "a.jpg",
        "b/.hidden.jpg",
        "b/c.jpg",
        "b/d/e.jpg",
    ]
    assert list(matching(joined(place, "*.tar"))) == [joined(place, "z.tar")]
    assert matching(joined(place, "*.zip")) == {}


def test_many_files_are_read_and_errors_are_kept() -> None:
    store = fsspec.filesystem("memory")
    # A name with the wildcards of a glob is a name.
    store.pipe({"/many/a.jpg": b"a", "/many/[b]*.jpg": b"b", "/many/b.jpg": b"other"})
    places = ["memory://many/a.jpg", "memory://many/[b]*.jpg", "memory://many/gone.jpg", "nowhere://x/y.jpg"]
    found = read_many(places)
    assert [found[place] for place in places[:2]] == [b"a", b"b"]
    assert isinstance(found[places[2]], FileNotFoundError)
    assert isinstance(found[places[3]], UsageError)


def test_names() -> None:
    assert absolute("a/../b") == os.path.join(os.getcwd(), "b")
    assert absolute("file:///tmp/x") == "/tmp/x"
    assert absolute("memory://x/y/") == absolute("memory:///x/y")
    assert [is_address(place) for place in ("s3://b/x", "hf://datasets/a/b", "C:/x", "a//b")] == [
        True,
        True,
        False,
        False,
    ]
    assert joined("s3://b/x", "y/z.jpg") == "s3://b/x/y/z.jpg"
    assert joined("/a", "/b.jpg") == "/b.jpg"
    assert joined("/a", "gs://b/c.jpg") == "gs://b/c.jpg"
    assert (folder_of("s3://b/x/y.tar"), last_part("s3://b/x/y.tar")) == ("s3://b/x", "y.tar")


def test_a_store_without_its_package_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="'nowhere://x' is in no store that fsspec knows"):
        absolute("nowhere://x")
    if importlib.util.find_spec("s3fs") is None:
        with pytest.raises(UsageError, match=r"'s3://b/x' needs a package that is not installed: Install s3fs"):
            absolute("s3://b/x")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{0..2}", ["0", "1", "2"]),
        ("x-{098..101}.tar", ["x-098.tar", "x-099.tar", "x-100.tar", "x-101.tar"]),
        ("{9..11}", ["9", "10", "11"]),
        ("{a,b}/{1..2}", ["a/1", "a/2", "b/1", "b/2"]),
        ("{only}-{}", ["{only}-{}"]),
    ],
)
def test_braces(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


@pytest.mark.parametrize("pattern", ["{5..2}", "{0..99999999}"])
def test_braces_that_are_no_range(pattern: str) -> None:
    with pytest.raises(UsageError, match=r"is no range"):
        expand_braces(pattern)


def test_links_that_form_a_circle_end(tmp_path: Path) -> None:
    write_folder(tmp_path / "files", {"b/x.jpg": b"x"})
    (tmp_path / "files" / "a").symlink_to(tmp_path / "files" / "b")
    (tmp_path / "files" / "b" / "up").symlink_to(tmp_path / "files")
    # The first name by which a folder is found, whatever the order of the file system.
    assert list(walk(str(tmp_path / "files"))) == ["a/x.jpg"]
