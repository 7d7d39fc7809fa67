"""Examples of videos: random clips to train on, and views to evaluate.

In: a segment of a video file. Out: pixels; an unreadable file is a `BrokenImageError`, which `data/examples.py` handles
as it does for images: in training the next video replaces it, in evaluation it does not count.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swinv2.images import BrokenImageError
from swinv2.train.data.videos.dataset import Segment, open_segment, read_segment
from swinv2.video.files import VideoError
from swinv2.video.sampling import Sampling
from swinv2.video.views import Views


def as_it_is(stored: Any, channels: int) -> Any:
    """What `SampleTransform` reads of a sample of videos: the segment, whose frames are chosen first."""
    return stored


@dataclass(frozen=True)
class TrainingClip:
    """Makes a random clip of a video.

    Attributes:
        sampling: The frames of the clip.
        augment: Makes pixels of the frames (frames, channels, height, width); see `augment.for_clips`.
    """

    sampling: Sampling
    augment: Callable[[Tensor], Tensor]

    def __call__(self, segment: Segment) -> Tensor:
        """Pixels (frames, channels, height, width), or a `BrokenImageError`."""
        opened = open_segment(segment)
        return self.augment(_as_clip(read_segment(segment, opened, self.sampling.random(opened.info))))


@dataclass(frozen=True)
class SegmentViews:
    """Makes the views of a video by which it is evaluated, always the same ones.

    Attributes:
        views: The views.
    """

    views: Views

    def __call__(self, segment: Segment | np.ndarray) -> Tensor:
        """Pixels (clips * crops, frames, channels, height, width), or a `BrokenImageError`. An image (H, W, channels)
        is a video whose frames are all equal."""
        if isinstance(segment, np.ndarray):
            return torch.stack(self.views.repeat(segment) * self.views.clips)
        opened = open_segment(segment)
        try:
            clips = [
                self.views.read(opened.file, [opened.start + time for time in times])
                for times in self.views.times(opened.info)
            ]
        except VideoError as error:
            raise BrokenImageError(error.reason) from error
        return torch.stack([view for clip in clips for view in clip])


def _as_clip(frames: np.ndarray) -> Tensor:
    """Frames (frames, height, width, channels) as a tensor (frames, channels, height, width)."""
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))


def logits_of_views(model: nn.Module, pixels: Tensor) -> Tensor:
    """The logarithm of the mean, over the views of a video, of the probabilities of the classes: (B, classes).

    Args:
        model: A classifier of videos.
        pixels: (B, views, frames, channels, height, width).
    """
    logits = model(pixel_values=pixels.flatten(0, 1)).logits.float()
    log_shares = logits.log_softmax(-1).unflatten(0, pixels.shape[:2])
    return log_shares.logsumexp(1) - np.log(pixels.shape[1])
