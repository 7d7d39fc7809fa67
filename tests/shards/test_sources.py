"""What a user names, as shards: the same ones each time, and sentences for what is none."""

from pathlib import Path

import fsspec
import pytest
from pyarrow.parquet import ParquetFile

from shard_files import image_bytes, images_of, write_folder, write_parquet, write_tar
from swinv2.errors import UsageError
from swinv2.shards import sources
from swinv2.shards.lists import FOLDER
from swinv2.shards.output import Output
from swinv2.shards.places import absolute
from swinv2.shards.shard import Shard
from swinv2.shards.sources import divide, find_sources


@pytest.fixture
def output(tmp_path: Path) -> Output:
    found = Output(str(tmp_path / "out"))
    found.prepare(FOLDER)
    return found


def shards_of(output: Output, *named: object, size: int = 4) -> list[Shard]:
    found, missing = find_sources(map(str, named))
    assert missing == []
    return [shard for source in found for shard in divide(source, output, size)]


def parts(shards: list[Shard]) -> list[tuple[str, str, int, int]]:
    return [(shard.kind, Path(shard.source).name, shard.part, shard.first_row) for shard in shards]


def test_a_folder_is_divided_by_its_sorted_names(output: Output, tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos", {f"{name}/{number}.jpg": b"" for name in "ba" for number in range(5)})
    (photos / "notes.txt").write_text("no image")
    shards = shards_of(output, photos)
    assert parts(shards) == [("list", "photos", 0, 0), ("list", "photos", 1, 4), ("list", "photos", 2, 8)]
    assert shards_of(output, photos) == shards
    # The same folder by another name.
    assert shards_of(output, tmp_path / "out" / ".." / "photos", photos) == shards
    with open(shards[1].file, "rb") as file:
        file.seek(shards[1].begin)
        assert file.read(shards[1].end - shards[1].begin) == b"a/4.jpg\nb/0.jpg\nb/1.jpg\nb/2.jpg\n"


def test_a_changed_folder_is_an_error(output: Output, tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos", images_of(5))
    shards_of(output, photos)
    (photos / "0001.png").rename(photos / "9.png")
    with pytest.raises(UsageError, match=r"1 were added \(9.png\) and 1 are gone \(0001.png\)"):
        shards_of(output, photos)


def test_a_folder_of_archives(output: Output, tmp_path: Path) -> None:
    for name in ("b/1.tar", "0.tar.gz", "2.parquet"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"content")
    shards = shards_of(output, tmp_path / "data")
    assert parts(shards) == [("tar", "0.tar.gz", 0, 0), ("parquet", "2.parquet", 0, 0), ("tar", "1.tar", 0, 0)]
    # The same archives by a glob are the same shards.
    assert {shard.name for shard in shards_of(output, tmp_path / "data" / "**" / "*.tar*")} < {
        shard.name for shard in shards
    }
    (tmp_path / "data" / "preview.jpg").touch()
    with pytest.raises(UsageError, match=r"has images and also 0.tar.gz, 2.parquet ... \(3\). Name what you mean"):
        shards_of(output, tmp_path / "data")


def test_an_archive_of_another_size_is_another_shard(output: Output, tmp_path: Path) -> None:
    file = write_tar(tmp_path / "a.tar", images_of(1))
    (before,) = shards_of(output, file)
    file.write_bytes(file.read_bytes() + bytes(512))
    (after,) = shards_of(output, file)
    assert (before.source, before.part) == (after.source, after.part)
    assert before.name != after.name


def test_globs_and_ranges(output: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos", {"b/x.jpg": b"", "a/y.png": b"", "a/z.txt": b"", "a/.x.jpg": b""})
    for number in range(9, 12):
        write_tar(tmp_path / f"train-{number:03d}.tar", images_of(1))
    (shard,) = shards_of(output, "photos/**/*")
    assert shard.source == str(tmp_path / "photos" / "**" / "*")
    assert Path(shard.file).read_text() == "a/y.png\nb/x.jpg\n"
    assert shard.base == str(tmp_path / "photos")
    names = ["train-009.tar", "train-010.tar", "train-011.tar"]
    assert [Path(shard.source).name for shard in shards_of(output, "train-{009..011}.tar")] == names
    assert [Path(shard.source).name for shard in shards_of(output, "train-*.tar", names[1])] == names
    # A folder whose name looks like a glob is a folder.
    write_folder(tmp_path / "[1] {a,b}", images_of(1))
    (shard,) = shards_of(output, "[1] {a,b}")
    assert shard.source == str(tmp_path / "[1] {a,b}")


def test_a_list_is_divided_by_its_lines(output: Output, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"a.jpg\r\n\n  \nb b.jpg\n/c.jpg\ns3://d/e.jpg\n\xff.jpg")
    shards = shards_of(output, tmp_path / "list.txt", size=2)
    assert parts(shards) == [("list", "list.txt", 0, 0), ("list", "list.txt", 1, 2), ("list", "list.txt", 2, 4)]
    assert shards[-1].end == (tmp_path / "list.txt").stat().st_size
    assert {shard.base for shard in shards} == {str(tmp_path)}
    # One line more changes the last shard only.
    with (tmp_path / "list.txt").open("ab") as file:
        file.write(b"\nf.jpg\n")
    again = shards_of(output, tmp_path / "list.txt", size=2)
    assert [shard.name for shard in again][:2] == [shard.name for shard in shards][:2]
    assert again[2].name != shards[2].name


def test_large_parquet_files_are_divided_between_row_groups(
    output: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [image_bytes(number) for number in range(10)]
    file = write_parquet(tmp_path / "a.parquet", {"image": images}, row_group_size=3)
    (whole,) = shards_of(output, file)
    assert (whole.begin, whole.end, whole.first_row) == (0, -1, 0)
    group = ParquetFile(file).metadata.row_group(0).total_byte_size
    monkeypatch.setattr(sources, "LARGE", int(2.5 * group))
    shards = shards_of(output, file)
    assert [(shard.part, shard.begin, shard.end, shard.first_row) for shard in shards] == [(0, 0, 2, 0), (1, 2, 4, 6)]


def test_in_a_store(output: Output) -> None:
    store = fsspec.filesystem("memory")
    store.pipe({f"/sources/photos/{name}": content for name, content in images_of(5).items()})
    store.pipe({"/sources/0.tar": b"xx", "/sources/1.tar": b"xxx"})
    shards = shards_of(output, "memory://sources/photos", "memory://sources/{0..1}.tar")
    assert [(shard.kind, shard.part) for shard in shards] == [("list", 0), ("list", 1), ("tar", 0), ("tar", 0)]
    assert [shard.source for shard in shards[2:]] == [
        absolute("memory://sources/0.tar"),
        absolute("memory://sources/1.tar"),
    ]
    assert shards_of(output, "memory://sources/*.tar") == shards[2:]
    assert shards[0].base == absolute("memory://sources/photos")
    assert find_sources(["memory://sources/{1..2}.tar"])[1] == [absolute("memory://sources/2.tar")]


def test_what_is_missing_is_named_if_something_is_found(tmp_path: Path) -> None:
    write_tar(tmp_path / "1.tar", images_of(1))
    found, missing = find_sources([str(tmp_path / "{0..1}.tar"), str(tmp_path / "*.parquet"), str(tmp_path / "gone")])
    assert [source.place for source in found] == [str(tmp_path / "1.tar")]
    assert missing == [str(tmp_path / name) for name in ("0.tar", "*.parquet", "gone")]


def test_what_is_no_source_is_a_sentence(output: Output, tmp_path: Path) -> None:
    write_folder(
        tmp_path,
        {"a.jpg": b"", "b.zip": b"", "binary.txt": b"a\0b\n", "blank.txt": b"\n\n", "empty/x.csv": b""},
    )
    for name, message in {
        "gone": "nothing was found in '.*gone'; expected folders of images, archives",
        "a.jpg": "is an image. Name its folder, or give a glob in quotation marks",
        "b.zip": "is none of the kinds of files that are read; expected",
        "binary.txt": "is no list: expected a text file",
        "blank.txt": "has no line with a name",
        "empty": "has no image, no archive",
        "*.zip": "nothing was found",
    }.items():
        with pytest.raises(UsageError, match=message):
            shards_of(output, tmp_path / name)
