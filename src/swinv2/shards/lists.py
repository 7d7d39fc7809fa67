"""Lists of the images of a folder: sorted by name, stored in the output, and compared with the list of an earlier run.

In: names, in any order. Out: the place of a text file with a name on each line. The memory does not grow with their
number. Workers read their part of the file, so that no process has a name for each image.
"""

import heapq
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from swinv2.errors import UsageError, few
from swinv2.shards.output import Output
from swinv2.shards.places import open_binary
from swinv2.shards.shard import fingerprint, source_id

FOLDER = "lists"

_SORTED_AT_ONCE, _MERGED_AT_ONCE = 50_000, 200
"""Names in memory, and files that are open, while names are sorted."""


def store_list(output: Output, source: str, names: Iterable[str]) -> str | None:
    """Stores the names of the images of a source.

    Args:
        output: The folder of the run.
        source: The place that the user named.
        names: Names relative to it, in any order.

    Returns:
        The place of the list; None if there are no names.

    Raises:
        UsageError: The output has another list of this source, or a name has a line break.
    """
    stored = sorted(name for name in output.names(FOLDER) if name.startswith(f"{source_id(source)}."))
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder, "list")
        content = _sort(names, new)
        if new.stat().st_size == 0:
            return None
        file = f"{FOLDER}/{source_id(source)}.{content[:12]}.txt"
        if stored and stored != [os.path.basename(file)]:
            raise UsageError(_difference(source, output.file(f"{FOLDER}/{stored[0]}"), str(new)))
        if not stored:
            with output.publish(file) as path, path.open("wb") as copy, new.open("rb") as read:
                copy.writelines(read)
    return output.file(file)


def _sort(names: Iterable[str], file: Path) -> str:
    """Writes names in order, a line for each, and returns their fingerprint."""
    runs: list[Path] = []
    following = iter(names)
    while chunk := list(itertools.islice(following, _SORTED_AT_ONCE)):
        lines = sorted(_line(name) for name in chunk)
        runs.append(file.with_name(f"run-{len(runs)}"))
        runs[-1].write_bytes(b"".join(lines))
    merged = 0
    while len(runs) > _MERGED_AT_ONCE:
        # Those at the end are shorter, or were not merged yet.
        part, runs = runs[:_MERGED_AT_ONCE], runs[_MERGED_AT_ONCE:]
        runs.append(file.with_name(f"merged-{merged}"))
        merged += 1
        _merge(part, runs[-1])
    return _merge(runs, file)


def _merge(runs: list[Path], file: Path) -> str:
    """Merges sorted files, deletes them, and returns the fingerprint of the lines."""
    content = fingerprint("")
    opened = [run.open("rb") for run in runs]
    try:
        with file.open("wb") as merged:
            lines = heapq.merge(*opened)
            while chunk := list(itertools.islice(lines, _SORTED_AT_ONCE)):
                merged.writelines(chunk)
                content = fingerprint(content.encode() + b"".join(chunk))
    finally:
        for each in opened:
            each.close()
    for run in runs:
        run.unlink()
    return content


def _line(name: str) -> bytes:
    """The line of a name."""
    if "\n" in name or "\r" in name or name.strip(" \t") != name:
        raise UsageError(
            f"the name {name!r} has a line break, or a space at its beginning or end, and does not fit into a list; "
            "rename the file."
        )
    return name.encode("utf-8", "surrogateescape") + b"\n"


def _difference(source: str, old: str, new: str) -> str:
    """A sentence that says how a source has changed since its list was stored."""
    added, gone, counts = list[str](), list[str](), [0, 0]
    with open_binary(old) as before, open_binary(new) as after:
        for line, sides in itertools.groupby(_sides(before, after), key=lambda each: each[0]):
            which = [side for _, side in sides]
            if len(which) == 2:
                continue
            counts[which[0]] += 1
            examples = (gone, added)[which[0]]
            if len(examples) < 3:
                examples.append(line.decode("utf-8", "replace").strip())
    changes = [
        f"{count:,} {verb} ({few(names, 3)})"
        for count, verb, names in ((counts[1], "were added", added), (counts[0], "are gone", gone))
        if count
    ]
    return (
        f"{source!r} has changed since the first run into this output: of its images, {' and '.join(changes)}. Its "
        "shards would be other ones. Give another --output; or put new images into another folder, and name that too."
    )


def _sides(before: Iterable[bytes], after: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    """The lines of two sorted lists in order, each with the number of its list."""
    return heapq.merge(((line, 0) for line in before), ((line, 1) for line in after))
