"""Small videos, drawn: a square that moves to the right, to the left, or not at all; and frames that fade."""

from pathlib import Path

import numpy as np

from video_files import write_video

DIRECTIONS = {"left": -1, "right": 1, "still": 0}
"""Classes, and how many pixels the square moves from frame to frame."""


def frames_of(step: int, start: int, frames: int = 12, side: int = 32) -> np.ndarray:
    """Frames (frames, side, side, 3) of a square of 8 pixels whose left edge begins at `start`."""
    found = np.full((frames, side, side, 3), 60, np.uint8)
    for index, frame in enumerate(found):
        left = (start + index * step * 2) % side
        columns = np.arange(left, left + 8) % side
        frame[12:20, columns] = (220, 40, 40)
    return found


def fade(becomes_brighter: bool, frames: int = 12, side: int = 32) -> np.ndarray:
    """Frames (frames, side, side, 3) that become brighter or darker: the same frames in another order."""
    shades = np.linspace(40, 200, frames).astype(np.uint8)[:: 1 if becomes_brighter else -1]
    return np.ones((frames, side, side, 3), np.uint8) * shades[:, None, None, None]


def write_clip(path: Path, frames: np.ndarray, rate: int = 12) -> Path:
    """Writes a video of frames (frames, height, width, 3) without loss that matters."""
    return write_video(path, frames, rate, bit_rate=4_000_000)


def write_directions(folder: Path, train: int = 4, evaluated: int = 2) -> Path:
    """A folder of splits and classes, the directions in which the square moves."""
    for split, count in {"train": train, "validation": evaluated}.items():
        for name, step in DIRECTIONS.items():
            for index in range(count):
                start = 5 * index + (split == "validation") * 3
                write_clip(folder / split / name / f"{index}.mp4", frames_of(step, start))
    return folder


def write_fades(folder: Path) -> Path:
    """A folder of splits and classes: the videos of the two classes have the same frames in another order."""
    for split in ("train", "validation"):
        for name in ("brighter", "darker"):
            for index in range(4):
                write_clip(folder / split / name / f"{index}.mp4", fade(name == "brighter", 8 + 2 * index))
    return folder
