"""The views of a video by which a model answers: clips at different times, and crops of each.

In: a video file and the model's processor. Out: the pixels that enter the model. Commands, training and evaluation all
use these views, so an accuracy is what a user gets.

A frame is prepared as soon as it is decoded, so memory does not grow with the size of the file's frames.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swinv2.errors import UsageError
from swinv2.lengths import Pair
from swinv2.video.files import VideoInfo
from swinv2.video.processing import Swinv2VideoProcessor
from swinv2.video.reading import iterate_frames
from swinv2.video.sampling import Sampling, crops


def frame_size(processor: Swinv2VideoProcessor) -> Pair | None:
    """The size (height, width) of the frames that a processor makes; None if it depends on the video."""
    given: Any = processor.crop_size if processor.do_center_crop else processor.size
    height, width = (given or {}).get("height"), (given or {}).get("width")
    return None if height is None or width is None else (int(height), int(width))


def process_frame(processor: Swinv2VideoProcessor, pixels: Tensor, **settings: Any) -> Tensor:
    """What a processor makes of a frame (channels, height, width), with some settings other than its own: pixels
    (channels, height, width)."""
    settings |= {"return_tensors": "pt", "input_data_format": "channels_first", "do_sample_frames": False}
    return processor(videos=[pixels[None]], **settings)["pixel_values"][0, 0]


@dataclass(frozen=True)
class Views:
    """The parts of a video that a model sees; its answer is the mean of their probabilities.

    Attributes:
        processor: The model's processor.
        sampling: The frames of a clip.
        clips: Number of clips, spread evenly over the video.
        crops: Number of square crops of each clip. With one, each frame is what the processor makes of it. With more,
            the processor resizes the shorter side of the frames to the side of the model's input, without a crop of its
            own, and crops of this side are spread evenly along the longer side (Video Swin Transformer, section 4.1).

    Raises:
        UsageError: A number is less than one, clips would be equal, or the model's frames are not square and there are
            several crops.
    """

    processor: Swinv2VideoProcessor
    sampling: Sampling
    clips: int = 1
    crops: int = 1

    def __post_init__(self) -> None:
        if self.clips < 1 or self.crops < 1:
            raise UsageError(f"the views are {self.clips} clips x {self.crops} crops; expected at least one of each.")
        self.sampling.check(self.clips)
        if self.crops > 1:
            self._side()

    def _side(self) -> int:
        """The side of a crop."""
        size = frame_size(self.processor)
        if size is None or size[0] != size[1]:
            raise UsageError(
                f"{self.crops} crops need a model of square frames, and its processor makes "
                f"{'frames of any size' if size is None else f'{size[0]} x {size[1]}'}; leave out --crops."
            )
        return size[0]

    def times(self, info: VideoInfo) -> list[list[float]]:
        """The times of the frames of each clip, in seconds."""
        return self.sampling.views(info, self.clips)

    def read(self, file: VideoInfo, times: Sequence[float]) -> list[Tensor]:
        """Reads a clip.

        Args:
            file: The file.
            times: The times of its frames, in seconds.

        Returns:
            The pixels (frames, channels, height, width) of each crop.

        Raises:
            VideoError: The file cannot be used.
        """
        return self._collect(iterate_frames(file.path, times, file), len(times))

    def repeat(self, image: np.ndarray) -> list[Tensor]:
        """The crops of a clip whose frames are all one image (height, width, 3); see `read`."""
        frames = self.sampling.num_frames
        return self._collect(iter([(image, list(range(frames)))]), frames)

    def _collect(self, frames: Iterator[tuple[np.ndarray, list[int]]], count: int) -> list[Tensor]:
        """The crops of a clip of so many frames, which come one by one with their places."""
        views: list[Tensor] = []
        for frame, places in frames:
            prepared = self._prepare(frame)
            views = views or [pixels.new_empty((count, *pixels.shape)) for pixels in prepared]
            for view, pixels in zip(views, prepared, strict=True):
                view[places] = pixels
        return views

    def _prepare(self, frame: np.ndarray) -> list[Tensor]:
        """The pixels (channels, height, width) of each crop of a frame (height, width, 3)."""
        pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)
        if self.crops == 1:
            return [process_frame(self.processor, pixels)]
        side = self._side()
        whole: dict[str, Any] = {"do_resize": True, "size": {"shortest_edge": side}, "do_center_crop": False}
        pixels = process_frame(self.processor, pixels, **whole)
        boxes = crops((pixels.shape[-2], pixels.shape[-1]), side, self.crops)
        return [pixels[:, top : top + height, left : left + width] for top, left, height, width in boxes]
