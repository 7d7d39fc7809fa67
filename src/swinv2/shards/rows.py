"""Reads the rows of a shard: for each image, its name and its bytes, or the place where it is.

In: a shard. Out: rows, one by one, in the order of the shard, which is always the same. Images are not decoded here.

A damaged archive gives the rows before the damage; `DamagedError` then says what is wrong. An error of the system or
the store, such as a lost connection, is no damage: it is raised as it is, and the shard can be read again later.
"""

import gzip
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from swinv2.errors import UsageError, first_sentence
from swinv2.images import BrokenImageError, is_image_name
from swinv2.shards.places import joined, last_part, open_binary, reaching
from swinv2.shards.shard import Shard

MOST_BYTES = 1 << 26
"""The file of an image may have this many bytes."""

MOST_HEADER = 1 << 20
"""The name of a member of an archive, and what else its headers say, may have this many bytes."""

MOST_PADDING = 1 << 20
"""An archive may have this many zeros behind its last member; one that was not downloaded to its end has more."""

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "bytes", "content")
_PATH_COLUMNS = ("path", "file", "filename", "file_name", "image_path", "filepath", "file_path", "image", "img", "url")

_DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, struct.error, ValueError, OverflowError)
"""What Python's tarfile and gzip raise for damaged files."""


class DamagedError(ValueError):
    """A shard is damaged from here on; the message says how, in a few words."""


class Row(NamedTuple):
    """An image of a shard.

    Attributes:
        number: Its number in the source, from 0.
        key: Its name: as in the list, in the archive, or in the column of names.
        image: The bytes of its file; the place of its file; or why there is none.
    """

    number: int
    key: str
    image: bytes | str | BrokenImageError


def read_rows(shard: Shard, image_column: str | None = None, key_column: str | None = None) -> Iterator[Row]:
    """Reads the rows of a shard.

    Args:
        shard: The shard.
        image_column: Of parquet: the column of images: bytes, structs with "bytes", or paths. None: see `find_columns`.
        key_column: Of parquet: the column of names. None: the path of an image that has one, else its number.

    Raises:
        DamagedError: The file is damaged; the rows before the damage were returned.
        UsageError: The file has no such column.
        OSError: The system or the store could not read the file.
    """
    if shard.kind == "tar":
        return _read_tar(shard)
    if shard.kind == "parquet":
        return _read_parquet(shard, image_column, key_column)
    return _read_list(shard)


def _read_list(shard: Shard) -> Iterator[Row]:
    """The images that the lines of a list name."""
    with open_binary(shard.file) as file:
        file.seek(shard.begin)
        number = shard.first_row
        for line in iter(file.readline, b""):
            name = line_as_name(line)
            if name:
                yield Row(number, name, joined(shard.base, name))
                number += 1
            if file.tell() >= shard.end:
                return


def line_as_name(line: bytes) -> str:
    """The name in a line of a list; "" if it is blank."""
    return line.decode("utf-8", "surrogateescape").strip("\r\n").strip(" \t")


_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)

_headers: Any = tarfile
"""The types of Python leave its errors about headers out."""


class _Member(tarfile.TarInfo):
    """A member of an archive. Behind the first member, tarfile takes a damaged or missing header for the end of the
    archive."""

    def _proc_member(self, archive: Any) -> Any:
        """Reads the content of a header that is not a member: a long name, for example."""
        is_header = self.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, *_EXTENDED)
        if is_header and self.size > MOST_HEADER:
            raise DamagedError(f"a header has {self.size:,} bytes; at most {MOST_HEADER:,} are read")
        return super()._proc_member(archive)  # type: ignore[misc]

    @classmethod
    def fromtarfile(cls, archive: Any) -> "_Member":
        """Reads the next member."""
        try:
            return super().fromtarfile(archive)
        except _headers.EmptyHeaderError as error:
            raise DamagedError("it has no end mark, so it is probably cut off") from error
        except (_headers.InvalidHeaderError, _headers.TruncatedHeaderError) as error:
            where = f"at byte {archive.offset:,}" if archive.offset else "so it is no tar archive"
            raise DamagedError(f"{error}, {where}") from error


def _read_tar(shard: Shard) -> Iterator[Row]:
    """The images in an archive. Other members, such as webdataset's labels, are passed over."""
    number = shard.first_row
    with open_binary(shard.file) as packed, _damage(_DAMAGE):
        file: Any = gzip.GzipFile(fileobj=packed) if shard.file.lower().endswith("gz") else packed
        with file, tarfile.open(fileobj=file, mode="r|", tarinfo=_Member) as opened:
            archive: Any = opened
            while (member := archive.next()) is not None:
                # It keeps all members that it has read.
                archive.members = []
                if member.isreg() and is_image_name(last_part(member.name)):
                    yield Row(number, member.name, _bytes_of(archive, member))
                    number += 1
            # To the end of the file, where gzip has a checksum.
            size = 0
            while rest := archive.fileobj.read(1 << 16):
                size += len(rest)
                if rest.strip(b"\0"):
                    raise DamagedError("there is more behind its end mark, which is not read")
                if size > MOST_PADDING:
                    raise DamagedError(f"more than {MOST_PADDING:,} zeros are at its end: probably it is incomplete")


def _bytes_of(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | BrokenImageError:
    """The content of a member."""
    if member.issparse():
        return BrokenImageError("it is stored as a sparse file")
    if member.size > MOST_BYTES:
        return BrokenImageError(f"it has {member.size:,} bytes; at most {MOST_BYTES:,} are read")
    file = archive.extractfile(member)
    content = b"" if file is None else file.read()
    if len(content) < member.size:
        raise DamagedError(f"it ends inside {member.name!r}")
    return content


@contextmanager
def _damage(errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turns errors about the content of a file into `DamagedError`."""
    try:
        yield
    except (DamagedError, UsageError):
        raise
    except errors as error:
        raise DamagedError(first_sentence(error)) from error


def _read_parquet(shard: Shard, image_column: str | None, key_column: str | None) -> Iterator[Row]:
    """The images of row groups."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    damage = (pa.ArrowException, UnicodeDecodeError)
    with open_binary(shard.file) as file, _damage(damage), _damage_of_columns():
        # With a buffer, a column of a row group is read bit by bit.
        parquet = ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        image, key = find_columns(shard.file, parquet.schema_arrow, image_column, key_column)
        groups = range(shard.begin, parquet.num_row_groups if shard.end < 0 else shard.end)
        number = shard.first_row
        columns = [image] if key is None else [image, key]
        for group in groups:
            # One thread: the memory does not depend on the machine.
            for batch in parquet.iter_batches(16, row_groups=[group], columns=columns, use_threads=False):
                names = [None] * len(batch) if key is None else batch.column(key).to_pylist()
                for value, name in zip(batch.column(image).to_pylist(), names, strict=True):
                    yield _row_of_value(shard, number, value, name)
                    number += 1


def _row_of_value(shard: Shard, number: int, value: Any, name: Any) -> Row:
    """The row of a value of the column of images."""
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if content is None and path is not None:
        content = path
    key = name if name is not None else path if path is not None else content if isinstance(content, str) else number
    if content is None:
        return Row(number, str(key), BrokenImageError("there is no image in this row"))
    return Row(number, str(key), joined(shard.base, content) if isinstance(content, str) else bytes(content))


@contextmanager
def _damage_of_columns() -> Iterator[None]:
    """Turns pyarrow's errors about damaged columns into `DamagedError`: they are an `OSError` without a number, which
    errors of systems have."""
    try:
        yield
    except OSError as error:
        if type(error) is not OSError or error.errno is not None:
            raise
        raise DamagedError(first_sentence(error)) from error


def find_columns(
    file: str, schema: Any, image_column: str | None = None, key_column: str | None = None
) -> tuple[str, str | None]:
    """Finds the columns of a parquet file to read.

    Args:
        file: The file, for messages.
        schema: Its Arrow schema.
        image_column, key_column: The columns that the user named. Without the first one, it is the only column of bytes
            or structs with "bytes"; of several, the one with a usual name; or else a column of text whose name is usual
            for paths.

    Raises:
        UsageError: There is no such column, or its type is another one.
    """
    import pyarrow.types as types

    kinds = {field.name: field.type for field in schema}

    def is_binary(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    def has_bytes(kind: Any) -> bool:
        return is_binary(kind) or (types.is_struct(kind) and any(each.name == "bytes" for each in kind))

    def is_text(kind: Any) -> bool:
        return types.is_string(kind) or types.is_large_string(kind)

    listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    for option, name in (("--image-column", image_column), ("--key-column", key_column)):
        if name is not None and name not in kinds:
            raise UsageError(f"{option} is {name!r}; {file!r} has the columns {listed}.")
    if image_column is not None:
        if not (has_bytes(kinds[image_column]) or is_text(kinds[image_column])):
            raise UsageError(
                f"--image-column {image_column!r} of {file!r} is of type {kinds[image_column]}; expected bytes, a "
                "struct with bytes, or text that names files."
            )
        return image_column, key_column
    found = _usual(kinds, has_bytes, _IMAGE_COLUMNS) or _usual(kinds, is_text, _PATH_COLUMNS, alone=False)
    if found is None:
        raise UsageError(
            f"it is unclear which column of {file!r} has the images; give --image-column. It has {listed}."
        )
    return found, key_column


def _usual(
    kinds: dict[str, Any], fits: Callable[[Any], bool], names: tuple[str, ...], alone: bool = True
) -> str | None:
    """The column whose type fits and, unless it is the only one, whose name is the first of the usual names."""
    fitting = [name for name, kind in kinds.items() if fits(kind)]
    if alone and len(fitting) == 1:
        return fitting[0]
    lower = {name.lower(): name for name in reversed(fitting)}
    return next((lower[name] for name in names if name in lower), None)


def check_columns(file: str, image_column: str | None, key_column: str | None) -> None:
    """Checks the columns of a parquet file, see `find_columns`; a damaged file is no error here.

    Raises:
        UsageError: See `find_columns`; or the file cannot be reached.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    with reaching(file), open_binary(file) as opened:
        try:
            schema = ParquetFile(opened).schema_arrow
        except pa.ArrowException:
            return
        find_columns(file, schema, image_column, key_column)
