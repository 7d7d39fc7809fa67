"""A shard: a part of the images of a source, whose answers are one file.

In: where images are. Out: the names of shards and of their files. A name has the source, the part of it and a
fingerprint of the content, so that listing the files of answers tells which shards are done, and whether a source has
changed since. This module reads no image.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

from swinv2.shards.places import last_part

Kind = Literal["list", "parquet", "tar"]

_ANSWERS = re.compile(
    r"(?P<shard>.+-(?P<source>[0-9a-f]{12})-(?P<part>[0-9]{6,})\.(?P<content>[0-9a-f]{12}))\.(?P<run>[0-9a-f]{16})\.parquet"
)

_LONGEST_STEM = 60


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of the images of a source.

    Attributes:
        kind: How its images are stored: "list" is lines of a text file that name images.
        source: The place that the user named: a folder, a glob or a file. With `row` it identifies an image.
        part: The number of this part among those of the source, from 0.
        content: A fingerprint of what the source has in this part: of the lines of a list; of the size of a file.
        file: The file to read. It is not the source if that is a folder, whose names are listed in a file.
        begin, end: The part of the file: bytes of a list, row groups of a parquet file (`end` -1: all); else 0.
        first_row: The number of its first image among those of the source.
        base: The place that relative names of images start from.
    """

    kind: Kind
    source: str
    part: int
    content: str
    file: str
    begin: int = 0
    end: int = -1
    first_row: int = 0
    base: str = ""

    @property
    def name(self) -> str:
        """Its name, which no other shard has."""
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", last_part(self.source))[:_LONGEST_STEM].lstrip("._-") or "images"
        return f"{stem}-{source_id(self.source)}-{self.part:06d}.{self.content}"

    def answers(self, run: str) -> str:
        """The name of its file of answers, in a run of this fingerprint."""
        return f"{self.name}.{run[:16]}.parquet"


@dataclass(frozen=True)
class AnswersName:
    """What the name of a file of answers says.

    Attributes:
        shard: The name of the shard.
        source: See `source_id`.
        part, content: See `Shard`.
        run: The first 16 digits of the fingerprint of the run.
    """

    shard: str
    source: str
    part: int
    content: str
    run: str

    @classmethod
    def read(cls, name: str) -> "AnswersName | None":
        """Reads the name of a file; None if it is no file of answers."""
        found = _ANSWERS.fullmatch(name)
        return found and cls(found["shard"], found["source"], int(found["part"]), found["content"], found["run"])


def source_id(source: str) -> str:
    """Twelve digits that stand for a source in names of files."""
    return fingerprint(source)[:12]


def fingerprint(text: str | bytes) -> str:
    """32 digits that stand for a text."""
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return hashlib.blake2b(data, digest_size=16).hexdigest()
