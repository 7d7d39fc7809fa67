"""The rows of a shard, from each kind of file; damaged ones give what is before the damage."""

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from pyarrow.parquet import ParquetFile

from shard_files import images_of, write_folder, write_parquet, write_tar
from swinv2.errors import UsageError
from swinv2.images import BrokenImageError
from swinv2.shards import rows
from swinv2.shards.rows import DamagedError, Row, check_columns, find_columns, read_rows
from swinv2.shards.shard import Kind, Shard

IMAGES = images_of(5)


def shard_of(file: object, kind: Kind, **fields: Any) -> Shard:
    return Shard(kind, str(file), 0, "0" * 12, str(file), **fields)


def read_until_damage(shard: Shard) -> tuple[list[Row], str | None]:
    """The rows, and what is said about the damage."""
    found: list[Row] = []
    try:
        for row in read_rows(shard):
            found.append(row)
    except DamagedError as error:
        return found, str(error)
    return found, None


EXPECTED = [Row(number, name, content) for number, (name, content) in enumerate(IMAGES.items())]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz"])
def test_archives(tmp_path: Path, suffix: str) -> None:
    file = write_tar(tmp_path / f"a{suffix}", IMAGES, "w:gz" if "gz" in suffix else "w")
    assert read_until_damage(shard_of(file, "tar")) == (EXPECTED, None)
    fsspec.filesystem("memory").pipe(f"/rows/a{suffix}", file.read_bytes())
    assert read_until_damage(shard_of(f"memory://rows/a{suffix}", "tar")) == (EXPECTED, None)


def test_members_that_are_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (
            ("folder.jpg", tarfile.DIRTYPE),
            ("link.jpg", tarfile.SYMTYPE),
            ("pipe.jpg", tarfile.FIFOTYPE),
        ):
            about = tarfile.TarInfo(name)
            about.type, about.linkname = kind, "/etc/passwd"
            archive.addfile(about)
        for name, content in {"._a.jpg": b"x", "a.json": b"{}", "../../a.png": b"y", "large.png": b"x" * 99}.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    monkeypatch.setattr(rows, "MOST_BYTES", 98)
    (first, second), damage = read_until_damage(shard_of(tmp_path / "a.tar", "tar"))
    assert damage is None
    assert first == Row(0, "../../a.png", b"y")
    assert second.key == "large.png"
    assert isinstance(second.image, BrokenImageError)
    assert str(second.image) == "it has 99 bytes; at most 98 are read"


def test_the_memory_of_an_archive_is_constant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tarfile keeps what it has read, unless it is told not to."""
    file = write_tar(tmp_path / "a.tar", {f"{number}.jpg": b"" for number in range(100)})
    members: list[int] = []

    class Watched(rows._Member):
        @classmethod
        def fromtarfile(cls, archive: Any) -> Any:
            members.append(len(archive.members))
            return super().fromtarfile(archive)

    monkeypatch.setattr(rows, "_Member", Watched)
    assert len(list(read_rows(shard_of(file, "tar")))) == 100
    assert len(members) > 200
    assert max(members) <= 1


def blocks_of(number: int) -> int:
    """Bytes of the first members of an archive of `IMAGES`: for each image its header and content, and a label's."""
    sizes = [512 + -(-len(content) // 512) * 512 + 1024 for content in list(IMAGES.values())[:number]]
    return sum(sizes)


@pytest.mark.parametrize(
    ("damage", "whole", "message"),
    [
        (lambda data: data[: blocks_of(3) + 512 + 700], 3, "unexpected end of data"),
        (lambda data: data[: blocks_of(3) + 100], 3, "truncated header"),
        (lambda data: data[: blocks_of(3)], 3, "it has no end mark, so it is probably cut off"),
        (lambda data: data[: blocks_of(2)] + b"\x9c" * 512 + data[blocks_of(2) + 512 :], 2, "at byte"),
        (lambda data: b"PK\x03\x04" + data[4:], 0, "so it is no tar archive"),
        (lambda data: b"", 0, "it has no end mark"),
        (lambda data: data + data, 5, "there is more behind its end mark"),
        (lambda data: data[: blocks_of(3)] + bytes(2 << 20), 3, "zeros are at its end"),
    ],
    ids=["inside an image", "inside a header", "between images", "a header", "no archive", "empty", "two", "zeros"],
)
def test_damaged_archives(tmp_path: Path, damage: Callable[[bytes], bytes], whole: int, message: str) -> None:
    file = write_tar(tmp_path / "a.tar", IMAGES)
    file.write_bytes(damage(file.read_bytes()))
    found, said = read_until_damage(shard_of(file, "tar"))
    assert found == EXPECTED[:whole]
    assert said is not None
    assert message in said


def test_damaged_gzip(tmp_path: Path) -> None:
    plain = write_tar(tmp_path / "a.tar", IMAGES).read_bytes()
    packed = gzip.compress(plain, 0)
    file = tmp_path / "a.tar.gz"
    for data, most in (
        (packed[: blocks_of(3) + 800], 3),
        (packed[:-8] + b"\0" * 8, 5),
        (packed[: blocks_of(2)] + b"\xff" * 100 + packed[blocks_of(2) + 100 :], 5),
        (b"\0" * 100, 0),
    ):
        file.write_bytes(data)
        found, said = read_until_damage(shard_of(file, "tar"))
        assert said is not None
        assert len(found) <= most
        assert [row.key for row in found] == [row.key for row in EXPECTED[: len(found)]]


def test_lists(tmp_path: Path) -> None:
    write_folder(tmp_path, {"list.txt": b"a.jpg\n\nb/c.jpg\r\n/d.jpg\ns3://e/f.jpg\nlast.jpg"})
    size = (tmp_path / "list.txt").stat().st_size
    found = list(read_rows(shard_of(tmp_path / "list.txt", "list", end=size, base="/base")))
    assert [row.image for row in found] == ["/base/a.jpg", "/base/b/c.jpg", "/d.jpg", "s3://e/f.jpg", "/base/last.jpg"]
    assert [row.key for row in found] == ["a.jpg", "b/c.jpg", "/d.jpg", "s3://e/f.jpg", "last.jpg"]
    part = list(read_rows(shard_of(tmp_path / "list.txt", "list", begin=7, end=16, first_row=1, base="/base")))
    assert part == [Row(1, "b/c.jpg", "/base/b/c.jpg")]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"image": list(IMAGES.values()), "id": list("abcde")}, [str(number) for number in range(5)]),
        ({"whatever": pa.array(list(IMAGES.values()), pa.large_binary())}, [str(number) for number in range(5)]),
        ({"image": [{"bytes": content, "path": name} for name, content in IMAGES.items()]}, list(IMAGES)),
    ],
    ids=["bytes", "the only binary column", "as datasets stores images"],
)
def test_parquet_with_bytes(tmp_path: Path, columns: dict[str, Any], expected: list[str]) -> None:
    file = write_parquet(tmp_path / "a.parquet", columns, row_group_size=2)
    found = list(read_rows(shard_of(file, "parquet")))
    assert [row.image for row in found] == list(IMAGES.values())
    assert [row.key for row in found] == expected
    part = list(read_rows(shard_of(file, "parquet", begin=1, end=2, first_row=2)))
    assert part == found[2:4]


def test_parquet_with_paths_and_nulls(tmp_path: Path) -> None:
    columns = {"file_name": ["a.jpg", None, "/b.jpg", "s3://c/d.jpg"], "id": [7, 8, 9, 10], "label": list("wxyz")}
    file = write_parquet(tmp_path / "a.parquet", columns)
    found = list(read_rows(shard_of(file, "parquet", base="/base"), key_column="id"))
    assert [row.key for row in found] == ["7", "8", "9", "10"]
    assert [row.image for row in found[:1] + found[2:]] == ["/base/a.jpg", "/b.jpg", "s3://c/d.jpg"]
    assert str(found[1].image) == "there is no image in this row"
    assert [row.key for row in read_rows(shard_of(file, "parquet"))] == ["a.jpg", "1", "/b.jpg", "s3://c/d.jpg"]


def test_damaged_parquet(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", {"image": list(IMAGES.values())}, row_group_size=1)
    data, column = file.read_bytes(), ParquetFile(file).metadata.row_group(2).column(0)
    for damaged, most in ((data[:-9], 0), (data[: len(data) // 2], 0), (b"", 0)):
        file.write_bytes(damaged)
        found, said = read_until_damage(shard_of(file, "parquet"))
        assert len(found) <= most
        assert said is not None
    page = column.dictionary_page_offset or column.data_page_offset
    file.write_bytes(data[:page] + b"\xff" * 60 + data[page + 60 :])
    found, said = read_until_damage(shard_of(file, "parquet"))
    assert [row.key for row in found] == ["0", "1"]
    assert said is not None


def test_what_the_system_cannot_read_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be read at another time."""
    for kind in ("tar", "parquet", "list"):
        with pytest.raises(FileNotFoundError):
            list(read_rows(shard_of(tmp_path / "gone", kind)))

    class Lost(io.BytesIO):
        def read(self, *size: Any) -> bytes:
            raise ConnectionResetError(104, "connection reset")

    for kind in ("tar", "parquet"):
        monkeypatch.setattr(rows, "open_binary", lambda place: Lost(b"x" * 1_000))
        with pytest.raises(ConnectionResetError):
            list(read_rows(shard_of(tmp_path / "any", kind)))


class TestColumns:
    def test_columns_are_found(self) -> None:
        binary, text, other = pa.binary(), pa.string(), pa.int64()
        struct = pa.struct([("bytes", binary), ("path", text)])
        for fields, expected in (
            ([("x", binary), ("path", text)], "x"),
            ([("thumbnail", binary), ("Image", struct)], "Image"),
            ([("mask", binary), ("jpg", binary), ("png", binary)], "jpg"),
            ([("label", text), ("file", text)], "file"),
        ):
            assert find_columns("a", pa.schema(fields)) == (expected, None)
        schema = pa.schema([("x", binary), ("y", binary), ("n", other)])
        assert find_columns("a", schema, "y", "n") == ("y", "n")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, r"unclear which column .* Give --image-column|unclear which column"),
            (
                {"image_column": "z"},
                r"--image-column is 'z'; 'a' has the columns x \(binary\), y \(binary\), n \(int64\)",
            ),
            ({"image_column": "x", "key_column": "z"}, "--key-column is 'z'"),
            ({"image_column": "n"}, "is of type int64; expected bytes"),
        ],
    )
    def test_columns_that_are_none(self, options: dict[str, str], message: str) -> None:
        schema = pa.schema([("x", pa.binary()), ("y", pa.binary()), ("n", pa.int64())])
        with pytest.raises(UsageError, match=message):
            find_columns("a", schema, **options)

    def test_they_are_checked_before_all_else(self, tmp_path: Path) -> None:
        file = write_parquet(tmp_path / "a.parquet", {"x": [1]})
        with pytest.raises(UsageError, match="give --image-column"):
            check_columns(str(file), None, None)
        (tmp_path / "b.parquet").write_bytes(b"damaged")
        check_columns(str(tmp_path / "b.parquet"), None, None)
        with pytest.raises(UsageError, match="there is no"):
            check_columns(str(tmp_path / "gone.parquet"), None, None)
