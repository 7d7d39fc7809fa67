"""Which frames of a video a model sees: their times, and crops.

In: what is known about a video, and the number of frames of a clip. Out: times in seconds, and boxes in pixels. This
module opens no file.

The distance of frames (`stride`) is in frames of the video at its mean rate, as in the field's protocols. Each time is
in the middle of the interval in which such a frame is shown, so with a constant frame rate the times of a whole
`stride` stand for whole numbers of frames. A clip that is longer than the video begins again behind its end.

Source: Liu et al., Video Swin Transformer (arXiv 2106.13230), section 4.1: clips of 32 frames at a stride of 2, and for
evaluation 4 clips x 3 crops; mmaction2's `SampleFrames`, whose clips also begin again ("loop"), and `ThreeCrop`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch

from swinv2.errors import UsageError
from swinv2.lengths import as_length
from swinv2.video.config import Swinv2VideoConfig
from swinv2.video.files import VideoInfo


class Box(NamedTuple):
    """A part of a frame, in pixels.

    Attributes:
        top: First row.
        left: First column.
        height: Number of rows.
        width: Number of columns.
    """

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Sampling:
    """The frames of a clip.

    Attributes:
        num_frames: Number of frames.
        stride: Frames of the video from one frame of the clip to the next; 0 to spread the frames over the whole video.

    Raises:
        UsageError: The stride is negative, infinite or NaN.
    """

    num_frames: int
    stride: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.stride) and self.stride >= 0):
            raise UsageError(
                f"the distance of a clip's frames is {self.stride}; expected a number of frames of the video, or 0 to "
                "spread them over the whole video."
            )

    @classmethod
    def of_model(cls, config: Swinv2VideoConfig, num_frames: int | None = None, stride: float | None = None) -> Self:
        """The frames of a clip for a model; None for a number with which the model was trained."""
        return cls(
            config.num_frames if num_frames is None else num_frames,
            config.frame_stride if stride is None else stride,
        )

    def random(self, info: VideoInfo) -> list[float]:
        """The times of a random clip. If frames are spread, each is anywhere in its part of the video. The numbers come
        from torch's global generator."""
        if self.stride:
            return training_times(info, self.num_frames, self.stride, torch.default_generator)
        places = torch.arange(self.num_frames) + torch.rand(self.num_frames)
        return (info.seconds / self.num_frames * places).tolist()

    def views(self, info: VideoInfo, clips: int) -> list[list[float]]:
        """The times of clips to evaluate; see `view_times` and `uniform_times`.

        Raises:
            UsageError: See `check`.
        """
        self.check(clips)
        if self.stride:
            return view_times(info, self.num_frames, self.stride, clips)
        return [uniform_times(info, self.num_frames)]

    def around(self, info: VideoInfo, time: float) -> list[float]:
        """The times of a clip whose middle frame is shown at a time, in seconds, or as near to it as the video has
        frames. If frames are spread over the whole video, they do not depend on the time."""
        if not self.stride:
            return uniform_times(info, self.num_frames)
        room = _room(info, self.num_frames, self.stride)
        first = time * info.rate - 0.5 - self.num_frames // 2 * self.stride
        return _clip(info, min(max(first, 0.0), room), self.num_frames, self.stride)

    def check(self, clips: int) -> None:
        """Raises an error if so many clips would be equal.

        Raises:
            UsageError: Frames are spread over the whole video, and there is more than one clip.
        """
        if clips > 1 and not self.stride:
            raise UsageError(
                f"the frames of a clip are spread over the whole video (a stride of 0), so {clips} clips would be "
                "equal; give one clip, or another stride."
            )


def training_times(info: VideoInfo, num_frames: int, stride: float, generator: torch.Generator) -> list[float]:
    """The times of a random clip.

    Args:
        info: The video.
        num_frames: Frames of the clip.
        stride: Frames of the video from one frame of the clip to the next.
        generator: The source of the random position; each position is equally likely.

    Raises:
        ValueError: `num_frames` or `stride` is not positive.
    """
    room = _room(info, num_frames, stride)
    first = int(torch.randint(int(room) + 1, (), generator=generator))
    return _clip(info, first, num_frames, stride)


def view_times(info: VideoInfo, num_frames: int, stride: float, clips: int) -> list[list[float]]:
    """The times of clips that are spread evenly over the video.

    Args:
        info: The video.
        num_frames: Frames of a clip.
        stride: See `training_times`.
        clips: Number of clips. One is in the middle; of more, each is in the middle of its share of the positions.

    Raises:
        ValueError: A number is not positive.
    """
    as_length("clips", clips)
    room = _room(info, num_frames, stride)
    return [_clip(info, room * (index + 0.5) / clips, num_frames, stride) for index in range(clips)]


def uniform_times(info: VideoInfo, num_frames: int) -> list[float]:
    """The times of frames that are spread evenly over the whole video: the middle of each of `num_frames` parts.

    Args:
        info: The video.
        num_frames: Number of frames.

    Raises:
        ValueError: `num_frames` is not positive.
    """
    as_length("num_frames", num_frames)
    return [info.seconds * (index + 0.5) / num_frames for index in range(num_frames)]


def crops(size: Sequence[int], side: int, count: int) -> list[Box]:
    """Square parts of a frame.

    Args:
        size: Height and width of the frame, in pixels.
        side: Length of a part, at most the shorter side of the frame.
        count: Number of parts. One is in the centre; more are spread evenly along the longer side, from its beginning
            to its end, and centred along the shorter side.

    Raises:
        ValueError: A number is not positive, or `side` is too long.

    Example:

        >>> from swinv2.video.sampling import crops
        >>> [tuple(box) for box in crops((240, 320), 224, 3)]
        [(8, 0, 224, 224), (8, 48, 224, 224), (8, 96, 224, 224)]
    """
    as_length("side", side)
    as_length("count", count)
    height, width = size
    if side > min(height, width):
        raise ValueError(f"side is {side}; a frame of {height} x {width} pixels has at most {min(height, width)}.")
    boxes: list[Box] = []
    for index in range(count):
        share = 0.5 if count == 1 else index / (count - 1)
        down, right = (share, 0.5) if height > width else (0.5, share)
        boxes.append(Box(math.floor((height - side) * down), math.floor((width - side) * right), side, side))
    return boxes


def _room(info: VideoInfo, num_frames: int, stride: float) -> float:
    """The last position of a clip, in frames of the video; 0 if the clip is as long as the video or longer.

    Raises:
        ValueError: A number is not positive.
    """
    as_length("num_frames", num_frames)
    if not (stride > 0 and math.isfinite(stride)):
        raise ValueError(f"stride is {stride!r}; expected a positive number of frames.")
    return max(0.0, info.frames - 1 - (num_frames - 1) * stride)


def _clip(info: VideoInfo, first: float, num_frames: int, stride: float) -> list[float]:
    """The times of a clip that begins at the frame `first`."""
    positions = (first + index * stride + 0.5 for index in range(num_frames))
    return [math.fmod(position, info.frames) / info.rate for position in positions]
