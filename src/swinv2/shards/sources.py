"""Finds the sources that a user names, and divides them into shards.

In: names of folders, lists, archives and parquet files; ranges and globs of them. Out: shards, always the same ones for
the same content. Images are not read here.

An archive is one shard. So is a parquet file; one of more than `LARGE` bytes is divided between row groups. The images
of a folder, of a glob and of a list are divided by their number, in the order of their names or lines.
"""

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from swinv2.errors import UsageError, few
from swinv2.images import is_hidden, is_image_name
from swinv2.shards.lists import store_list
from swinv2.shards.output import Output
from swinv2.shards.places import (
    absolute,
    described,
    expand_braces,
    folder_of,
    is_address,
    is_inside,
    joined,
    last_part,
    matching,
    open_binary,
    reaching,
    walk,
)
from swinv2.shards.rows import line_as_name
from swinv2.shards.shard import Shard, fingerprint

LARGE = 1 << 30
"""Bytes of a parquet file, or of the row groups of a shard, at most; a row group may have more."""

TARS, PARQUETS, LISTS = (".tar", ".tar.gz", ".tgz"), (".parquet",), (".txt", ".lst")

EXPECTED = (
    "expected folders of images, archives (.tar, .tar.gz, .tgz), .parquet files, or text files (.txt, .lst) with the "
    "name of an image on each line"
)

_LONGEST_LINE = 1 << 16

Kind = Literal["folder", "images", "list", "parquet", "tar"]


@dataclass(frozen=True)
class Source:
    """What a user named, or one of the files that match it.

    Attributes:
        kind: "folder"; "images" for those that match a glob; or the kind of a file.
        place: Its path or address; the glob of images.
        size: Bytes of a file.
        names: The images that match a glob, relative to `base`.
        base: The folder of the glob, without the parts that have wildcards.
    """

    kind: Kind
    place: str
    size: int = 0
    names: tuple[str, ...] = ()
    base: str = ""


def find_sources(named: Iterable[str]) -> tuple[list[Source], list[str]]:
    """Finds sources.

    Args:
        named: Paths and addresses, with ranges ({0000..0999}, {train,test}) and globs (*, ?, [abc], **).

    Returns:
        The sources, each once, in the order of their names; and the places that do not exist.

    Raises:
        UsageError: A source is of another kind, a place cannot be reached, or nothing was found.
    """
    named = list(named)
    found: dict[str, Source] = {}
    missing: list[str] = []
    for name in named:
        for source in _sources_of(name, missing):
            found.setdefault(source.place, source)
    if not found:
        raise UsageError(f"nothing was found in {', '.join(map(repr, named)) or 'no source'}; {EXPECTED}.")
    return list(found.values()), missing


def _sources_of(name: str, missing: list[str]) -> Iterator[Source]:
    """The sources that a name stands for; places that do not exist are added to `missing`."""
    exists = not is_address(name) and os.path.lexists(os.path.expanduser(name))
    expanded = [name] if exists else expand_braces(name)
    patterns = [] if exists else [pattern for pattern in expanded if glob.has_magic(pattern)]
    for pattern in patterns:
        matches = list(_matches(absolute(pattern)))
        if not matches:
            missing.append(pattern)
        yield from matches
    plain = [absolute(place) for place in expanded if place not in patterns]
    for place, about in described(plain).items():
        if about is None:
            missing.append(place)
        elif about["type"] == "directory":
            yield Source("folder", place)
        elif is_image_name(last_part(place)):
            raise UsageError(
                f"{place!r} is an image. Name its folder, or give a glob in quotation marks, such as 'photos/*.jpg'; "
                "for a few images there is swinv2 classify."
            )
        elif kind := kind_of_file(place):
            yield Source(kind, place, int(about["size"]))
        else:
            raise UsageError(f"{place!r} is none of the kinds of files that are read; {EXPECTED}.")


def kind_of_file(name: str) -> Literal["list", "parquet", "tar"] | None:
    """How a file stores images, by its suffix; None if it is of none of the kinds."""
    name = name.lower()
    if name.endswith(TARS):
        return "tar"
    if name.endswith(PARQUETS):
        return "parquet"
    return "list" if name.endswith(LISTS) else None


def _matches(pattern: str) -> Iterator[Source]:
    """The sources that match a glob. Text files are lists only if the pattern has their suffix."""
    base = folder_of(pattern)
    while glob.has_magic(base):
        base = folder_of(base)
    images: list[str] = []
    for place, about in matching(pattern).items():
        name = last_part(place)
        if is_hidden(name):
            continue
        if about["type"] == "directory":
            # "**" matches a folder and also its files.
            if "**" not in pattern:
                yield Source("folder", place)
        elif is_image_name(name):
            images.append(place[len(base) :].lstrip("/"))
        elif (kind := kind_of_file(name)) and (kind != "list" or pattern.lower().endswith(LISTS)):
            yield Source(kind, place, int(about["size"]))
    if images:
        yield Source("images", pattern, names=tuple(images), base=base)


def divide(source: Source, output: Output, shard_size: int) -> list[Shard]:
    """Divides a source into shards.

    Args:
        source: The source.
        output: Where lists of images are stored; see `store_list`.
        shard_size: Images of a shard, of folders, globs and lists.

    Returns:
        The shards. A folder without images gives those of its archives or parquet files. The output, which may be in
        the folder, is left out.

    Raises:
        UsageError: A list, or the list of a parquet file's row groups, cannot be read; a folder has images as well as
            archives or parquet files, or none of them; its images are not those of an earlier run into this output.
    """
    if source.kind == "folder":
        return _divide_folder(source, output, shard_size)
    if source.kind == "images":
        stored = store_list(output, source.place, source.names)
        return [] if stored is None else _divide_list(source.place, stored, source.base, shard_size)
    if source.kind == "list":
        return _divide_list(source.place, source.place, folder_of(source.place), shard_size)
    content = fingerprint(str(source.size))[:12]
    if source.kind == "parquet" and source.size > LARGE:
        return _divide_parquet(source, content)
    return [Shard(source.kind, source.place, 0, content, source.place, base=folder_of(source.place))]


def _divide_folder(source: Source, output: Output, shard_size: int) -> list[Shard]:
    """The shards of a folder."""
    others: list[str] = []

    def images() -> Iterator[str]:
        for name in walk(source.place):
            if is_inside(joined(source.place, name), output.place):
                continue
            if is_image_name(name.rpartition("/")[2]):
                yield name
            elif kind_of_file(name) in ("tar", "parquet"):
                others.append(name)

    stored = store_list(output, source.place, images())
    if stored is not None and others:
        raise UsageError(
            f"the folder {source.place!r} has images and also {few(sorted(others), 2)}. Name what you mean: for the "
            "images a glob in quotation marks, such as 'photos/**/*.jpg'; for the others 'photos/*.tar'."
        )
    if stored is not None:
        return _divide_list(source.place, stored, source.place, shard_size)
    if not others:
        raise UsageError(f"the folder {source.place!r} has no image, no archive (.tar) and no .parquet file.")
    shards: list[Shard] = []
    for place, about in described(joined(source.place, name) for name in sorted(others)).items():
        kind = kind_of_file(place)
        if about is not None and kind is not None:
            shards += divide(Source(kind, place, int(about["size"])), output, shard_size)
    return shards


def _divide_list(source: str, file: str, base: str, shard_size: int) -> list[Shard]:
    """The shards of the lines of a file."""
    shards: list[Shard] = []
    position = begin = row = first_row = 0
    content = fingerprint("")

    def end_shard() -> None:
        nonlocal begin, first_row, content
        shards.append(Shard("list", source, len(shards), content[:12], file, begin, position, first_row, base))
        begin, first_row, content = position, row, fingerprint("")

    with reaching(file), open_binary(file) as opened:
        for line in iter(lambda: opened.readline(_LONGEST_LINE), b""):
            if b"\0" in line or len(line) == _LONGEST_LINE:
                raise UsageError(f"{file!r} is no list: expected a text file with the name of an image on each line.")
            position += len(line)
            name = line_as_name(line)
            if name:
                content = fingerprint(content + name)
                row += 1
            if row - first_row == shard_size:
                end_shard()
    if row > first_row:
        end_shard()
    if not shards:
        raise UsageError(f"the list {file!r} has no line with a name.")
    return shards


def _divide_parquet(source: Source, content: str) -> list[Shard]:
    """The shards of a large parquet file: consecutive row groups."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    with reaching(source.place), open_binary(source.place) as opened:
        try:
            metadata: Any = ParquetFile(opened).metadata
        except pa.ArrowException:
            # Reading it says what is wrong, as for a small one.
            return [Shard("parquet", source.place, 0, content, source.place, base=folder_of(source.place))]
    shards: list[Shard] = []
    begin = size = rows = first_row = 0
    for group in range(metadata.num_row_groups):
        about = metadata.row_group(group)
        if group > begin and size + about.total_byte_size > LARGE:
            shards.append(_row_groups(source, content, len(shards), begin, group, first_row))
            begin, size, first_row = group, 0, rows
        size, rows = size + about.total_byte_size, rows + about.num_rows
    shards.append(_row_groups(source, content, len(shards), begin, metadata.num_row_groups, first_row))
    return shards


def _row_groups(source: Source, content: str, part: int, begin: int, end: int, first_row: int) -> Shard:
    """The shard of some row groups."""
    place = source.place
    return Shard("parquet", place, part, content, place, begin, end, first_row, folder_of(place))
