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
from torchvision.transforms.v2 import functional as F

from swinv2.errors import UsageError
from swinv2.train.data.augment import Pixels
from swinv2.train.data.videos.dataset import Segment, open_segment, read_segment
from swinv2.video.sampling import Sampling, crops


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
class Views:
    """Makes the views of a video by which it is evaluated, always the same ones.

    Attributes:
        sampling: The frames of a clip.
        pixels: Size and normalisation of the model's frames; height and width are equal.
        clips: Number of clips, spread evenly over the video.
        crops: Number of crops of each clip, spread evenly along the longer side; one is in the centre. Frames are
            resized before, so that their shorter side is that of the model.
    """

    sampling: Sampling
    pixels: Pixels
    clips: int = 1
    crops: int = 1

    def __post_init__(self) -> None:
        if self.clips < 1 or self.crops < 1:
            raise UsageError(f"the views are {self.clips} clips x {self.crops} crops; expected at least one of each.")
        self.sampling.check(self.clips)
        if self.pixels.size[0] != self.pixels.size[1]:
            raise UsageError(f"a model of videos takes square frames; this one takes {self.pixels.size}.")

    def __call__(self, segment: Segment | np.ndarray) -> Tensor:
        """Pixels (clips * crops, frames, channels, height, width), or a `BrokenImageError`. An image (H, W, channels)
        is a video whose frames are all equal."""
        if isinstance(segment, np.ndarray):
            clips = [np.repeat(segment[None], self.sampling.num_frames, 0)] * self.clips
        else:
            opened = open_segment(segment)
            # One pass over the file for all clips.
            times = self.sampling.views(opened.info, self.clips)
            frames = read_segment(segment, opened, [time for clip in times for time in clip])
            clips = np.split(frames, self.clips)
        return torch.stack([view for clip in clips for view in self._crop(clip)])

    def _crop(self, frames: np.ndarray) -> list[Tensor]:
        """The crops of a clip."""
        side = self.pixels.size[0]
        clip = F.resize(_as_clip(frames), [side], antialias=True)
        found: list[Tensor] = []
        for top, left, height, width in crops((clip.shape[-2], clip.shape[-1]), side, self.crops):
            part = F.to_dtype(clip[..., top : top + height, left : left + width], torch.float32, scale=True)
            found.append(F.normalize(part, list(self.pixels.mean), list(self.pixels.std)))
        return found


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
