"""Decodes video files by torchcodec, which uses the FFmpeg of the system.

In: the path of a file, and times. Out: what is known about it, and upright frames; see `reading.py`.

torchcodec opens whatever FFmpeg opens: playlists, which name other files, and texts, which FFmpeg draws. And of some
formats it returns other frames than the wanted ones, or fewer. So only those are read whose frames it finds exactly:
MP4 and MOV, Matroska and WebM, which the first bytes of a file tell. It turns the frames of a file that says so, but
does not mirror them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from swinv2.errors import UsageError
from swinv2.video.files import (
    MOST_PIXELS,
    TOLERANCE,
    VideoError,
    VideoInfo,
    check_file,
    no_frame,
    no_video,
    not_a_video,
    too_large,
)

if TYPE_CHECKING:
    from torchcodec import Frame
    from torchcodec.decoders import VideoDecoder

_MATROSKA = b"\x1aE\xdf\xa3"
"""The first bytes of a Matroska or WebM file."""

_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
"""Names of the first box of an MP4 or MOV file; its length comes before."""

_AT_ONCE = 8
"""Frames that are decoded by one call."""

_MOST_DAMAGED = 250
"""Frames at the beginning that are tried until one can be decoded."""

_OTHER_FORMAT = (
    "it is not a video, or of a format that is not read by torchcodec here, which is MP4, MOV, Matroska and WebM; for "
    "other formats install PyAV: swinv2[video]"
)

_NO_FFMPEG = (
    "torchcodec finds no FFmpeg that it can use; install FFmpeg's shared libraries, or PyAV, which contains them: "
    "swinv2[video]."
)


def decodes(path: Path) -> bool:
    """Whether a file has a format that is read here. A file that cannot be opened has; opening it will say why."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError:
        return True
    return start.startswith(_MATROSKA) or start[4:] in _FIRST_BOXES


def probe(path: Path) -> VideoInfo:
    """See `reading.probe`."""
    decoder = _opened(path)
    about = decoder.metadata
    frames, end = int(about.num_frames or 0), float(about.end_stream_seconds or 0)
    if frames < 1 or not 0 < end - float(about.begin_stream_seconds or 0) < math.inf:
        # A cover of a song is an image without a duration.
        raise no_video(path, has_sound=False)
    first = _first_frame(path, decoder)
    seconds = end - first.pts_seconds
    height, width, _ = first.data.shape
    return VideoInfo(path, seconds, frames / seconds, frames, (height, width), first.pts_seconds)


def iterate_frames(path: Path, times: Sequence[float], info: VideoInfo) -> Iterator[tuple[np.ndarray, list[int]]]:
    """See `reading.iterate_frames`."""
    decoder = _opened(path)
    end = math.nextafter(float(decoder.metadata.end_stream_seconds or 0), -math.inf)
    order = sorted(range(len(times)), key=lambda index: times[index])
    shown: Frame | None = None
    due: list[int] = []
    for start in range(0, len(order), _AT_ONCE):
        some = order[start : start + _AT_ONCE]
        wanted = [max(min(info.start + times[index] + TOLERANCE, end), info.start) for index in some]
        for index, frame in zip(some, _frames_at(path, decoder, wanted, info), strict=True):
            if shown is not None and frame.pts_seconds != shown.pts_seconds:
                yield _pixels(shown, info), due
                due = []
            shown = frame
            due.append(index)
    if shown is not None:
        yield _pixels(shown, info), due


def _frames_at(path: Path, decoder: VideoDecoder, wanted: list[float], info: VideoInfo) -> list[Frame]:
    """The frames that are shown at some times of the file, in ascending order."""
    try:
        return list(decoder.get_frames_played_at(wanted))
    except RuntimeError:
        # One of them is damaged, or of another size.
        return [_frame_at(path, decoder, seconds, info) for seconds in wanted]


def _frame_at(path: Path, decoder: VideoDecoder, seconds: float, info: VideoInfo) -> Frame:
    """The frame that is shown at a time of the file, or the last one before it that can be decoded.

    Raises:
        VideoError: There is none.
    """
    while True:
        try:
            return decoder.get_frame_played_at(seconds)
        except RuntimeError as error:
            if seconds <= info.start:
                raise no_frame(path, "") from error
        seconds = max(seconds - 1 / info.rate, info.start)


def _first_frame(path: Path, decoder: VideoDecoder) -> Frame:
    """The first frame that can be decoded.

    Raises:
        VideoError: None of the first ones can be.
    """
    for index in range(min(int(decoder.metadata.num_frames or 0), _MOST_DAMAGED)):
        try:
            return decoder.get_frame_at(index)
        except RuntimeError:
            # A damaged frame; what follows may be intact.
            continue
    raise no_frame(path, "")


def _opened(path: Path) -> VideoDecoder:
    """Opens a file, and reads it to its end without decoding, for the times of its frames.

    Raises:
        VideoError: See `reading.probe`.
        UsageError: torchcodec finds no FFmpeg.
    """
    try:
        from torchcodec.decoders import VideoDecoder
    except RuntimeError as error:
        # Older versions look for FFmpeg here.
        raise UsageError(_NO_FFMPEG) from error
    check_file(path)
    if not decodes(path):
        raise VideoError(path, _OTHER_FORMAT)
    try:
        # A relative name such as "a:b.mp4" would be the address "b.mp4" of the protocol "a".
        decoder = VideoDecoder(path.absolute(), dimension_order="NHWC", device="cpu")
    except ValueError as error:
        raise no_video(path, has_sound=False) from error
    except RuntimeError as error:
        if "Could not load libtorchcodec" in str(error):
            raise UsageError(_NO_FFMPEG) from error
        raise not_a_video(path) from error
    height, width = decoder.metadata.height or 0, decoder.metadata.width or 0
    if not 0 < height * width <= MOST_PIXELS:
        raise too_large(path, MOST_PIXELS)
    return decoder


def _pixels(frame: Frame, info: VideoInfo) -> np.ndarray:
    """A frame as an image (height, width, 3). torchcodec returns it upright."""
    if tuple(frame.data.shape[:2]) == info.size:
        return frame.data.numpy()
    resized = F.resize(frame.data.permute(2, 0, 1), list(info.size), F.InterpolationMode.BICUBIC, antialias=True)
    return torch.permute(resized, (1, 2, 0)).numpy()
