"""Writes small video files for tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

STEP = 20
"""The difference in brightness of the frames of `counted`: a decoder's error is smaller."""


def counted(number: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frames (number, height, width, 3) whose brightness is their index times `STEP`, from 10."""
    return np.broadcast_to(
        (np.arange(number) * STEP + 10).astype(np.uint8)[:, None, None, None], (number, height, width, 3)
    )


def indices_of(frames: np.ndarray) -> list[int]:
    """The indices of frames of `counted`."""
    return [round((float(frame.mean()) - 10) / STEP) for frame in frames]


def write_video(
    path: Path,
    frames: np.ndarray,
    rate: int = 10,
    codec: str = "mpeg4",
    ticks: Sequence[int] | None = None,
    key_frames: int = 12,
    rotation: float | None = None,
    flips: bool = False,
    options: dict[str, str] | None = None,
    format: str | None = None,
    bit_rate: int | None = None,
    matrix: int | None = None,
) -> Path:
    """Writes a video of frames (number, height, width, 3); returns its path.

    Args:
        path: The file; its suffix is the format.
        frames: Pixels of eight bits.
        rate: Frames per second.
        codec: FFmpeg's name of the encoder.
        ticks: The time of each frame in units of 1 / `rate` seconds; None for one after the other.
        key_frames: Frames from one key frame to the next.
        rotation: The angle of the display matrix in degrees, counter-clockwise; None for no matrix.
        flips: Whether the display matrix flips rows, too.
        options: Options of the format.
        format: FFmpeg's name of the format; None for that of the suffix.
        bit_rate: Bits per second; None for the encoder's.
        matrix: Number of the matrix of colours that the file states; None for none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format, options or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        if matrix is not None:
            stream.codec_context.colorspace = matrix
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "bgr0" if codec == "ffv1" else "yuv420p"
        stream.gop_size = key_frames
        if rotation is not None:
            stream.set_display_rotation(rotation, hflip=flips)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = index if ticks is None else ticks[index]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    """Writes a file with sound only; returns its path."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
