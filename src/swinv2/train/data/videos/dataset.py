"""A stored data set of videos.

In: rows with the path of a file, a label and possibly the seconds of a part of the file. Out: samples, each a segment
of a file that is not yet opened; labels, shares and splits as for images.
"""

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from swinv2.errors import UsageError
from swinv2.images import BrokenImageError
from swinv2.train.data.dataset import ImageDataset, Sample, hash_name
from swinv2.video.files import VideoError, VideoInfo
from swinv2.video.reading import probe, read_frames


class Segment(NamedTuple):
    """A part of a video file.

    Attributes:
        path: The file.
        start: Where it begins, in seconds.
        end: Where it ends, in seconds; None for the end of the file.
    """

    path: str
    start: float = 0.0
    end: float | None = None


class OpenSegment(NamedTuple):
    """A segment whose file is readable.

    Attributes:
        file: Facts about the file.
        info: Facts about the segment, as if it were a file; its frames are at most those that the file has.
        start: Where the segment begins in the file, in seconds.
    """

    file: VideoInfo
    info: VideoInfo
    start: float


def open_segment(segment: Segment) -> OpenSegment:
    """Finds out how long a segment is, and how many frames it has.

    Raises:
        BrokenImageError: The file cannot be read, or ends before the segment begins.
    """
    try:
        file = _facts_of(segment.path)
    except VideoError as error:
        raise BrokenImageError(error.reason) from error
    end = file.seconds if segment.end is None else min(segment.end, file.seconds)
    if segment.start == 0.0 and end == file.seconds:
        return OpenSegment(file, file, 0.0)
    seconds = end - segment.start
    if seconds <= 0:
        raise BrokenImageError(f"has {file.seconds:.2f} seconds, and its segment begins at {segment.start:g}")
    frames = max(min(round(seconds * file.rate), file.frames), 1)
    return OpenSegment(file, replace(file, seconds=seconds, frames=frames), segment.start)


def _facts_of(path: str) -> VideoInfo:
    """`probe`, which opens a file only once in a process, unless it changes."""
    try:
        found = os.stat(path)
    except OSError:
        return probe(path)
    return _remembered_facts(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=2**16)
def _remembered_facts(path: str, size: int, changed: int) -> VideoInfo:
    return probe(path)


def read_segment(segment: Segment, opened: OpenSegment, times: list[float]) -> np.ndarray:
    """Reads frames of a segment.

    Args:
        segment: The segment.
        opened: What `open_segment` found.
        times: Seconds from the beginning of the segment.

    Returns:
        Pixels (times, height, width, 3) of eight bits.

    Raises:
        BrokenImageError: The file is damaged there.
    """
    try:
        return read_frames(segment.path, [opened.start + time for time in times], opened.file)
    except VideoError as error:
        raise BrokenImageError(error.reason) from error


@dataclass(frozen=True)
class VideoDataset(ImageDataset):
    """All samples of a split; see `ImageDataset`. Its rows have a column with the path of each file and, if the data
    are segments, the columns "start" and "end" in seconds, of which the end may be None."""

    things: ClassVar[str] = "videos"
    table_of_labels: ClassVar[str] = "train.csv with the columns path and label"

    def sample(self, row: dict[str, Any], index: int) -> Sample:
        """Makes a sample from a row of `rows`; no file is opened.

        Raises:
            UsageError: The label is no class.
        """
        path = row[self.image_column]
        segment = Segment(path, row.get("start") or 0.0, row.get("end"))
        label = None if self.label_column is None else self._class_of(row[self.label_column])
        if segment.start == 0.0 and segment.end is None:
            return Sample(segment, label, path)
        end = "the end" if segment.end is None else f"{segment.end:g} s"
        return Sample(segment, label, f"{path} ({segment.start:g} s to {end})")

    def set_aside(self, share: float) -> tuple[Self, Self]:
        """Divides the videos into the rest and a share that is set aside, as for images. Segments of one file stay
        together, because they are alike: of segments, it is a share of all, not of each class. A file with all segments
        of a class is not set aside.

        Raises:
            UsageError: No file can be set aside.
        """
        names = np.array(self._file_names())
        files, places, counts = np.unique(names, return_inverse=True, return_counts=True)
        if len(files) == len(names):
            return super().set_aside(share)
        labels, wanted = self.strata(), share * len(names)
        left, aside, taken = np.bincount(labels), list[int](), 0
        for file in np.argsort([hash_name(name) for name in files], kind="stable").tolist():
            of_file = np.bincount(labels[places == file], minlength=len(left))
            if taken < wanted and ((of_file < left) | (of_file == 0)).all():
                left, taken = left - of_file, taken + int(counts[file])
                aside.append(file)
        if not aside:
            raise UsageError(
                f"no file of {self.source} can be set aside to evaluate: each has all segments of a class, and "
                "segments of one file are too alike to evaluate with those that were trained. Give others with "
                "--eval-data, or use --eval-strategy no."
            )
        return self._part(~np.isin(places, aside))

    def pixels_of(self, index: int) -> np.ndarray:
        """The frame in the middle of a sample, for people, (height, width, 3) of eight bits.

        Raises:
            BrokenImageError: It cannot be read.
        """
        segment: Segment = self[index].image
        opened = open_segment(segment)
        return read_segment(segment, opened, [opened.info.seconds / 2])[0]
