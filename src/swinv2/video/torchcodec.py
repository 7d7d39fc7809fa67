"""Decodes video files by torchcodec, which uses the FFmpeg of the system.

In: the path of a file, and times. Out: what is known about it, and upright frames; see `reading.py`.

torchcodec opens whatever FFmpeg opens: playlists, which name other files, and texts, which FFmpeg draws. And of some
formats it returns other frames than the wanted ones, or fewer. So only MP4 and MOV, Matroska and WebM are read, which
the first bytes of a file tell. What differs from PyAV is in `docs/guides/video.md`.
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
    not_a_video,
    too_large,
)

if TYPE_CHECKING:
    from torchcodec import Frame
    from torchcodec.decoders import VideoDecoder

_MATROSKA = b"\x1aE\xdf\xa3"
"""The first bytes of a Matroska or WebM file."""

_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
"""Names of the first box of an MP4 or MOV file; four bytes with its length come before."""

_AT_ONCE, _PIXELS_AT_ONCE = 8, 2**23
"""The largest number of frames that are decoded by one call, and of their pixels, unless one frame has more."""

_MOST_DAMAGED = 250
"""Frames at the beginning that are tried until one can be decoded."""

_NO_TIME = 1e9
"""Seconds beyond which a time is none: that of a song's cover, which is an image."""

_FAILURES = (RuntimeError, IndexError)
"""What torchcodec raises if a frame cannot be decoded; a decoder that has raised one may return wrong frames."""

_NO_VIDEO = "it has no video that FFmpeg decodes, or the file is damaged; convert it to H.264 or VP9"

_OTHER_FORMAT = (
    "it is not a video, or of a format that is not read by torchcodec here, which is MP4, MOV, Matroska and WebM; for "
    "other formats install PyAV: swinv2[video]"
)

_NO_FFMPEG = (
    "torchcodec finds no FFmpeg that it can use, or does not fit this version of torch; install FFmpeg's shared "
    "libraries and the newest torchcodec, or PyAV, which contains FFmpeg: swinv2[video]."
)


def decodes(path: Path) -> bool:
    """Whether a file has a format that is read here. A file that cannot be opened has; opening it will say why."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError:
        return True
    # A text may have a name at this place, but letters before it.
    is_text = all(32 <= byte < 127 for byte in start[:4])
    return start.startswith(_MATROSKA) or (start[4:] in _FIRST_BOXES and not is_text)


def probe(path: Path) -> VideoInfo:
    """See `reading.probe`."""
    decoder = _opened(path)
    about = decoder.metadata
    frames, begin, end = about.num_frames or 0, about.begin_stream_seconds or 0, about.end_stream_seconds or 0
    if frames < 1 or not abs(begin) < _NO_TIME:
        raise VideoError(path, _NO_VIDEO)
    index, first = _first_frame(path, decoder)
    if _is_matroska(path):
        end = _real_end(decoder, float(begin), float(end))
    frames, seconds = int(frames) - index, float(end) - first.pts_seconds
    if seconds <= 0:
        raise VideoError(path, "its frames last no time; the file is damaged")
    height, width, _ = first.data.shape
    return VideoInfo(path, seconds, frames / seconds, frames, (height, width), first.pts_seconds)


def iterate_frames(path: Path, times: Sequence[float], info: VideoInfo) -> Iterator[tuple[np.ndarray, list[int]]]:
    """See `reading.iterate_frames`."""
    wanted: dict[float, list[int]] = {}
    for index in sorted(range(len(times)), key=lambda index: times[index]):
        wanted.setdefault(max(info.start + times[index] + TOLERANCE, info.start), []).append(index)
    at_once = min(max(_PIXELS_AT_ONCE // math.prod(info.size), 1), _AT_ONCE)
    decoder: VideoDecoder | None = None
    shown: Frame | None = None
    due: list[int] = []
    moments = list(wanted)
    for start in range(0, len(moments), at_once):
        decoder = decoder or _opened(path)
        some = moments[start : start + at_once]
        try:
            frames = _frames_at(decoder, some)
        except _FAILURES:
            # One of them is damaged, or of another size.
            frames, decoder = [_last_intact(path, seconds, info) for seconds in some], None
        for seconds, frame in zip(some, frames, strict=True):
            if shown is not None and frame.pts_seconds != shown.pts_seconds:
                yield _pixels(shown, info), due
                due = []
            shown = frame
            due += wanted[seconds]
    if shown is not None:
        yield _pixels(shown, info), due


def _frames_at(decoder: VideoDecoder, moments: Sequence[float]) -> list[Frame]:
    """The frames that are shown at ascending times of the file; from the end on, the last one."""
    end = float(decoder.metadata.end_stream_seconds or 0)
    before = [seconds for seconds in moments if seconds < end]
    frames = list(decoder.get_frames_played_at(before)) if before else []
    if len(before) < len(moments):
        frames += [decoder.get_frame_at(len(decoder) - 1)] * (len(moments) - len(before))
    return frames


def _last_intact(path: Path, seconds: float, info: VideoInfo) -> Frame:
    """The frame that is shown at a time of the file, or the last one before it that can be decoded.

    Raises:
        VideoError: There is none.
    """
    while True:
        try:
            decoder = _opened(path)
            is_inside = seconds < float(decoder.metadata.end_stream_seconds or 0)
            # Not several at once: those have one size.
            frame = decoder.get_frame_played_at(seconds) if is_inside else decoder.get_frame_at(len(decoder) - 1)
            if frame.pts_seconds <= seconds:
                return frame
        except _FAILURES:
            if seconds <= info.start:
                raise no_frame(path, "") from None
        seconds = max(seconds - 1 / info.rate, info.start)


def _first_frame(path: Path, decoder: VideoDecoder) -> tuple[int, Frame]:
    """The first frame that can be decoded, and its index.

    Raises:
        VideoError: None of the first ones can be.
    """
    for index in range(min(len(decoder), _MOST_DAMAGED)):
        try:
            return index, (decoder if index == 0 else _opened(path)).get_frame_at(index)
        except _FAILURES:
            # A damaged frame; what follows may be intact.
            continue
    raise no_frame(path, "")


def _real_end(decoder: VideoDecoder, begin: float, end: float) -> float:
    """The end of a video. If the file does not say how long the last frame lasts, torchcodec's `end` is the beginning
    of that frame; it lasts as long as the others in the mean, or a twenty-fifth of a second."""
    frames = len(decoder)
    try:
        last = decoder.get_frame_at(frames - 1)
    except _FAILURES:
        return end
    if last.pts_seconds < end:
        return end
    return end + ((end - begin) / (frames - 1) if frames > 1 else 1 / 25)


def _is_matroska(path: Path) -> bool:
    """Whether a file is Matroska or WebM, which need not say how long a frame lasts."""
    with path.open("rb") as file:
        return file.read(4) == _MATROSKA


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
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise VideoError(path, "its name is no valid text (UTF-8), which torchcodec needs; rename it") from error
    if not decodes(path):
        raise VideoError(path, _OTHER_FORMAT)
    try:
        # A relative name such as "a:b.mp4" would be the address "b.mp4" of the protocol "a".
        decoder = VideoDecoder(path.absolute(), dimension_order="NHWC", device="cpu")
    except ValueError as error:
        raise VideoError(path, _NO_VIDEO) from error
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
