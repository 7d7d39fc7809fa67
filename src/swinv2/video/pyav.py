"""Decodes video files by PyAV, whose wheels contain FFmpeg.

In: the path of a file, and times. Out: what is known about it, and upright frames; see `reading.py`. Only files are
opened, of formats that contain videos: a playlist, which could name other files, is refused.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from swinv2.errors import UsageError
from swinv2.video.files import (
    EXPECTED,
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
    from av import Packet
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_FORMATS = "mov,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg,gif,mxf,rm,ivf,h264,hevc,m4v"
"""FFmpeg's names of the formats that are read."""

_OLDEST = (17, 1)
"""The oldest version of PyAV: earlier ones crash if an MPEG file is opened with options."""

_JUMP = 10.0
"""Seconds between two wanted times from which the frames between them are skipped instead of decoded."""

_LARGEST_CONTRADICTION = 0.1
"""How far the rate that follows from number of frames and duration may be from the rate that a file states."""

_LOST = 1.5
"""Frames from the beginning that a file states to the first one from which on frames are missing."""

_UNKNOWN_RATE = Fraction(25)
"""Frames per second, if a file states neither a rate nor times."""


def probe(path: Path) -> VideoInfo:
    """See `reading.probe`."""
    with _opened(path) as (container, stream):
        time, frame = next(_decoded(path, container, stream))
        transposed, _, _ = _orientation(frame)
        size = (frame.width, frame.height) if transposed else (frame.height, frame.width)
        frames = stream.frames
        seconds = float((stream.duration or 0) * (stream.time_base or 0))
        rate = float(stream.average_rate or 0)
        lost = time - float((stream.start_time or 0) * (stream.time_base or 0))
    if frames <= 0 or seconds <= 0 or (rate and abs(frames / seconds / rate - 1) > _LARGEST_CONTRADICTION):
        frames, seconds = _count(path)
    step = seconds / frames
    if lost > _LOST * step:
        # Frames at the beginning cannot be decoded.
        frames = max(frames - round(lost / step), 1)
        seconds = frames * step
    return VideoInfo(path, seconds, frames / seconds, frames, size, time)


def iterate_frames(path: Path, times: Sequence[float], info: VideoInfo) -> Iterator[tuple[np.ndarray, list[int]]]:
    """See `reading.iterate_frames`. Frames are decoded forward from the key frame before the first time; long gaps
    between times are skipped."""
    waiting = sorted(range(len(times)), key=lambda index: -times[index])
    may_jump, reached = True, -math.inf
    while waiting:
        shown: VideoFrame | None = None
        for time, frame in _frames_from(path, info, times[waiting[-1]]):
            if shown is None and time <= reached:
                # Skipping led back to frames that were decoded already: the next key frame is farther than `_JUMP`.
                may_jump = False
            due: list[int] = []
            while shown is not None and waiting and times[waiting[-1]] < time - TOLERANCE:
                due.append(waiting.pop())
            if due and shown is not None:
                yield _pixels(shown, info), due
            shown, reached = frame, time
            if not waiting or (may_jump and times[waiting[-1]] > time + _JUMP and due):
                break
        else:
            if shown is not None:
                yield _pixels(shown, info), waiting[::-1]
            return


def _frames_from(path: Path, info: VideoInfo, time: float) -> Iterator[tuple[float, VideoFrame]]:
    """The frames of a video with their times, from one that is shown at `time` or before.

    Raises:
        VideoError: No frame can be decoded.
    """
    from av import FFmpegError

    # In some files, frames are stored under the time at which their decoding begins, or the index is damaged.
    for earlier in (0.0, 2.0, None):
        is_start = earlier is None or time - earlier <= 0
        with _opened(path) as (container, stream):
            if not is_start:
                try:
                    container.seek(
                        math.floor((time - (earlier or 0) + info.start) / (stream.time_base or 1)), stream=stream
                    )
                except FFmpegError:
                    continue
            try:
                frames = _decoded(path, container, stream)
                first, frame = next(frames)
            except VideoError:
                if is_start:
                    raise
                continue
            if is_start or first - info.start <= time + TOLERANCE:
                yield first - info.start, frame
                for later, frame in frames:
                    yield later - info.start, frame
                return


def _decoded(path: Path, container: InputContainer, stream: VideoStream) -> Iterator[tuple[float, VideoFrame]]:
    """The frames of an opened video that can be decoded, each with its time in the file.

    Raises:
        VideoError: There is none.
    """
    from av import FFmpegError

    time, problem = None, ""
    step = float(1 / (stream.average_rate or _UNKNOWN_RATE))
    for packet in _packets(container, stream):
        frames: list[VideoFrame] = []
        try:
            frames = stream.decode(packet)
        except FFmpegError as error:
            # A damaged packet; what follows may be intact.
            problem = problem or error.strerror or type(error).__name__
        for frame in frames:
            time = frame.time if frame.pts is not None else 0.0 if time is None else time + step
            yield time, frame
    if time is None:
        raise no_frame(path, problem)


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream] | None]:
    """The packets of a video, up to the first one that cannot be read. In its place comes None, for which the decoder
    gives the frames that it holds."""
    from av import FFmpegError

    try:
        yield from container.demux(stream)
    except FFmpegError:
        yield None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a file and finds its video.

    Raises:
        VideoError: See `probe`.
        UsageError: PyAV is too old.
    """
    import av
    from av.stream import Disposition

    if tuple(map(int, av.__version__.split(".")[:2])) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise UsageError(
            f"videos are read with PyAV {oldest} or later, but av {av.__version__} is installed; upgrade it."
        )
    check_file(path)
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file", "max_pixels": str(MOST_PIXELS)}
    try:
        # Without the prefix, a name such as "a:b.mp4" would be the address "b.mp4" of the protocol "a".
        container = av.open(f"file:{path}", "r", options=options, metadata_errors="replace")
    except av.FFmpegError as error:
        raise not_a_video(path) from error
    with container:
        streams = [each for each in container.streams.video if not each.disposition & Disposition.attached_pic]
        if not streams:
            sound = " but sound" * bool(container.streams.audio)
            raise VideoError(path, f"it has no video{sound}, or the file is damaged; {EXPECTED}")
        stream = streams[0]
        if stream.codec_context is None:
            raise VideoError(path, "FFmpeg has no decoder for it, or the file is damaged; convert it to H.264 or VP9")
        if not (stream.codec_context.width and stream.codec_context.height):
            raise too_large(path, MOST_PIXELS)
        # The frames may be larger than the header says. Decoders pad them.
        stream.codec_context.options = {"max_pixels": str(2 * MOST_PIXELS)}
        yield container, stream


def _count(path: Path) -> tuple[int, float]:
    """Counts the frames of a video, and measures its duration in seconds, without decoding."""
    from av import FFmpegError

    frames, start, end = 0, math.inf, -math.inf
    with _opened(path) as (container, stream):
        step = float(1 / (stream.average_rate or _UNKNOWN_RATE))
        base = float(stream.time_base or 0)
        # Of a truncated file, what could be read counts.
        with contextlib.suppress(FFmpegError):
            for packet in container.demux(stream):
                time = packet.dts if packet.pts is None else packet.pts
                if not packet.size or packet.is_discard:
                    continue
                frames += 1
                if time is not None:
                    start = min(start, time * base)
                    end = max(end, time * base + ((packet.duration or 0) * base or step))
    frames = max(frames, 1)
    return frames, end - start if end > start else frames * step


def _orientation(frame: VideoFrame) -> tuple[bool, int, int]:
    """How a frame becomes upright: whether rows and columns are exchanged, and then the steps, 1 or -1, in which rows
    and columns are read. Angles between quarter turns are rounded."""
    try:
        side_data: Any = frame.side_data
        found = side_data.get("DISPLAYMATRIX")
        matrix = None if found is None else np.frombuffer(found, np.int32).astype(np.int64)
    except ValueError:
        # PyAV does not know another entry; the angle alone it always gives.
        angle = math.radians(frame.rotation)
        matrix = np.array([math.cos(angle), -math.sin(angle), 0, math.sin(angle), math.cos(angle)])
    if matrix is None:
        return False, 1, 1
    a, b, _, c, d = matrix[:5]
    transposed = bool(abs(b) > abs(a))
    right, down = (c, b) if transposed else (a, d)
    return transposed, -1 if down < 0 else 1, -1 if right < 0 else 1


def _pixels(frame: VideoFrame, info: VideoInfo) -> np.ndarray:
    """A frame as an upright image (height, width, 3)."""
    from av import FFmpegError

    transposed, rows, columns = _orientation(frame)
    height, width = info.size[::-1] if transposed else info.size
    # With several threads, a frame keeps them, and a process that is forked later may crash when it frees the frame.
    settings: dict[str, Any] = {"format": "rgb24", "width": width, "height": height, "threads": 1}
    try:
        pixels = frame.to_ndarray(**settings)
    except FFmpegError:
        # Of a matrix that FFmpeg cannot convert, such as YCgCo.
        pixels = frame.to_ndarray(**settings, src_colorspace="ITU601")
    return (pixels.transpose(1, 0, 2) if transposed else pixels)[::rows, ::columns]
