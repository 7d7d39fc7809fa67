"""Video files: which they are, what is known about one, and why one cannot be used.

In: names and paths. Out: `VideoInfo` and `VideoError`, which both decoders (`pyav.py`, `torchcodec.py`) share.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swinv2.errors import UsageError
from swinv2.lengths import Pair

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts"),
    *(".wmv", ".flv", ".3gp", ".ogv"),
)
"""Suffixes of the videos inside a folder. A file that the user names is read whatever its suffix; an animated GIF, too,
which a folder has as an image."""

MOST_PIXELS = 2**26
"""The largest number of pixels of a frame, as 8192 x 8192 has. A larger one is refused before it is decoded."""

TOLERANCE = 0.00051
"""Seconds by which a frame may begin after the time for which it is returned: Matroska rounds to milliseconds."""

EXPECTED = "expected a video file such as .mp4, .mkv, .webm, .avi or .mov"
"""What a message recommends."""


class VideoError(UsageError):
    """A video file that cannot be used.

    Args:
        path: The file.
        reason: What is wrong with it and what to do, in a few words, without a full stop.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"the video {str(path)!r} cannot be used: {reason}.")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        """For other processes, such as those of a data loader."""
        return VideoError, (self.path, self.reason)


@dataclass(frozen=True)
class VideoInfo:
    """What is known about a video before its frames are decoded.

    Attributes:
        path: The file.
        seconds: Its duration.
        rate: Mean number of frames per second: `frames / seconds`.
        frames: Number of frames, as the file states it (an AVI may state more than it has: those are shown longer), or
            as they were counted.
        size: Height and width of an upright frame, in pixels.
        start: The file's time of the first frame, in seconds, which is time 0 of `read_frames`.
    """

    path: Path
    seconds: float
    rate: float
    frames: int
    size: Pair
    start: float = 0.0


def is_video_name(name: str) -> bool:
    """Whether a file found in a folder has the suffix of a video and is not hidden."""
    return not name.startswith(".") and Path(name).suffix.lower() in VIDEO_SUFFIXES


def check_file(path: Path) -> None:
    """Refuses what no decoder can open.

    Raises:
        VideoError: There is no such file, it is a folder, empty, or may not be read.
    """
    if path.is_dir():
        raise VideoError(path, f"it is a folder; {EXPECTED}")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except FileNotFoundError as error:
        raise VideoError(path, "there is no such file") from error
    except OSError as error:
        raise VideoError(path, str(error.strerror).lower()) from error
    if empty:
        raise VideoError(path, "the file is empty")


# Reasons that both decoders find.


def not_a_video(path: Path) -> VideoError:
    """The error for a file that no decoder understands."""
    reason = "it is not a video in a format that is read here, or it is damaged or incomplete"
    hint = ", as an MP4 or MOV whose end is missing" if is_video_name(path.name) else f"; {EXPECTED}"
    return VideoError(path, reason + hint)


def too_large(path: Path, limit: int) -> VideoError:
    """The error for a video whose frames have more than `limit` pixels."""
    return VideoError(path, f"its frames have more than {limit:,} pixels, the limit, or no size; make them smaller")


def no_frame(path: Path, problem: str) -> VideoError:
    """The error for a video without a readable frame; `problem` is what the decoder says, if anything."""
    because = f": {problem.lower()}" if problem else ""
    return VideoError(path, f"no frame of it can be decoded{because}; the file is damaged or incomplete")
