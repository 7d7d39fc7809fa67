"""Reads frames of video files.

In: the path of a file, and times in seconds. Out: for each time the upright frame that is shown then, RGB, eight bits.
This module knows no model: it neither resizes nor normalises.

Frames are found by their times, not by their numbers, so a video of variable frame rate needs no special case. Time 0
is the first frame that can be decoded. Pixels are taken as square, as in transformers and torchvision.

FFmpeg decodes: its copy in PyAV's wheels (`pyav.py`), or that of the system, by torchcodec (`torchcodec.py`). Of usual
videos both give the same pixels; `docs/guides/video.md` has the differences.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from swinv2.errors import UsageError
from swinv2.video import pyav, torchcodec
from swinv2.video.files import VideoInfo

DECODER_VARIABLE = "SWINV2_VIDEO_DECODER"
"""The environment variable that chooses a decoder: "pyav" or "torchcodec". Unset, PyAV decodes if it is installed."""

_DECODERS: dict[str, tuple[ModuleType, str]] = {"pyav": (pyav, "av"), "torchcodec": (torchcodec, "torchcodec")}
"""The decoders, best first: their modules, and the packages that they need."""


def probe(path: str | Path) -> VideoInfo:
    """Reads duration, number of frames and size of a video.

    One frame is decoded. If the file does not state duration and number of frames (Matroska, WebM and MPEG do not), or
    they contradict its frame rate, as in a truncated AVI, it is read to its end, without decoding; torchcodec always
    reads it so.

    Args:
        path: The file.

    Raises:
        VideoError: The file is missing, is not a video, is damaged so that no frame can be decoded, or its frames are
            larger than `files.MOST_PIXELS`.
        UsageError: Neither PyAV nor torchcodec is installed, or not the one that the environment names.
    """
    path = Path(path)
    decoder, _ = _DECODERS[decoder_of(path)]
    return decoder.probe(path)


def read_frames(path: str | Path, times: Sequence[float], info: VideoInfo | None = None) -> np.ndarray:
    """Reads the frames that are shown at some times.

    Of a truncated or damaged file, the frames that can be decoded are used: at the other times, the last one before is
    shown. Before the first frame, the first one is shown, and after the last one, the last one.

    Args:
        path: The file.
        times: Seconds since the first frame, in any order; a time may come several times.
        info: What `probe` says about the file; None to probe it.

    Returns:
        RGB frames (times, height, width, 3) of eight bits. Frames of another size than the first one, which some
        formats allow, are resized to it.

    Raises:
        VideoError: See `probe`.
        ValueError: A time is NaN or infinite.
    """
    info = probe(path) if info is None else info
    found = np.empty((len(times), *info.size, 3), np.uint8)
    for frame, indices in iterate_frames(path, times, info):
        found[indices] = frame
    return found


def iterate_frames(
    path: str | Path, times: Sequence[float], info: VideoInfo | None = None
) -> Iterator[tuple[np.ndarray, list[int]]]:
    """As `read_frames`, but one frame after the other, so that a caller can make each one smaller.

    Args:
        path, times, info: See `read_frames`.

    Returns:
        The frames (height, width, 3), earliest first, each with the indices of the times at which it is shown.

    Raises:
        VideoError, ValueError: See `read_frames`.
    """
    path = Path(path)
    if not all(map(math.isfinite, times)):
        raise ValueError(f"times are {list(times)}; expected finite numbers of seconds.")
    info = probe(path) if info is None else info
    decoder, _ = _DECODERS[decoder_of(path)]
    yield from decoder.iterate_frames(path, times, info)


def decoder_of(path: str | Path) -> str:
    """The decoder of a file, "pyav" or "torchcodec": the one that the environment names, or the first one that is
    installed. torchcodec leaves the formats that it does not read to PyAV, if that is installed.

    Args:
        path: The file.

    Raises:
        UsageError: There is no decoder, or not the one that the environment names.
    """
    installed = [name for name, (_, package) in _DECODERS.items() if importlib.util.find_spec(package)]
    wanted = os.environ.get(DECODER_VARIABLE, "")
    if wanted and wanted not in _DECODERS:
        raise UsageError(f"{DECODER_VARIABLE} is {wanted!r}; expected one of {', '.join(_DECODERS)}.")
    if wanted and wanted not in installed:
        missing = f"{DECODER_VARIABLE} is {wanted!r}, but the package {_DECODERS[wanted][1]!r} is not installed"
        raise UsageError(f"{missing}; install it or unset the variable.")
    if not installed:
        raise UsageError("videos are read with PyAV (av), or torchcodec; neither is installed; install swinv2[video].")
    chosen = wanted or installed[0]
    if chosen == "torchcodec" and "pyav" in installed and not torchcodec.decodes(Path(path)):
        chosen = "pyav"
    return chosen
