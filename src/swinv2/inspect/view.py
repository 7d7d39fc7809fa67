"""Finds the pixels that a model sees of an image or a clip, and their positions in the image or frame.

In: an image and transformers' image processor; or a video, times, and its video processor. Out: pixels for the model,
the same as an image for people, and the position of each row and column in the original. The positions are not computed
from the processor's settings: the processor gets an image whose colours are the coordinates of its pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from swinv2.errors import UsageError
from swinv2.lengths import Pair
from swinv2.video.files import VideoInfo
from swinv2.video.views import Views, process_frame


@dataclass(frozen=True)
class View:
    """The image that the model sees, or the frames of a clip.

    Attributes:
        pixel_values: Input of the model, a batch of one.
        rgb: The same for people: eight bits, not normalised; grey has three equal channels.
        rows, columns: Position of each row's and column's centre, in pixels of the original image or frame.
        size: Height and width of the original image or frame.
        name: The image in words, for messages.
    """

    pixel_values: Float[Tensor, "1 *frames channels H W"]
    rgb: UInt8[np.ndarray, "*frames H W 3"]
    rows: Float[np.ndarray, "H"]
    columns: Float[np.ndarray, "W"]
    size: Pair
    name: str = "the image"

    def find(self, point: tuple[int, int] | None) -> Pair:
        """Finds the pixel of the model's input that shows a point of the original image.

        Args:
            point: Pixels from the left and from the top of the image; None for the centre.

        Returns:
            Row and column of the pixel in the model's input.

        Raises:
            UsageError: The point is not in the image, or the processor cuts it off.
        """
        if point is None:
            return len(self.rows) // 2, len(self.columns) // 2
        if not (0 <= point[0] < self.size[1] and 0 <= point[1] < self.size[0]):
            height, width = self.size
            raise UsageError(
                f"--token is {point[0]},{point[1]}, but {self.name} has {width} x {height} pixels; expected X from 0 "
                f"to {width - 1} and Y from 0 to {height - 1}, from its top left."
            )
        left, top, right, bottom = (round(edge) for edge in self.box)
        if not (left <= point[0] < right and top <= point[1] < bottom):
            raise UsageError(
                f"--token is {point[0]},{point[1]}, which the processor cuts off: of {self.size[1]} x "
                f"{self.size[0]} pixels the model sees X from {left} to {right - 1} and Y from {top} to "
                f"{bottom - 1}. Choose a point there."
            )
        x, y = point[0] + 0.5, point[1] + 0.5
        return int(np.abs(self.rows - y).argmin()), int(np.abs(self.columns - x).argmin())

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The part of the image that the model sees: left, top, right, bottom, in pixels of the image."""
        starts, stops = [], []
        for positions, length in ((self.columns, self.size[1]), (self.rows, self.size[0])):
            half = (positions[-1] - positions[0]) / max(len(positions) - 1, 1) / 2 or length / 2
            starts.append(max(float(positions[0] - half), 0.0))
            stops.append(min(float(positions[-1] + half), float(length)))
        return (*starts, *stops)


def look(image: Image.Image, processor: Any) -> View:
    """Runs an image processor on an image.

    Args:
        image: RGB or grey of eight bits, as `images.read_image` returns it.
        processor: transformers' image processor of the model.
    """

    def process(pixels: Any, **settings: Any) -> Tensor:
        return processor(images=pixels, return_tensors="pt", **settings)["pixel_values"][0]

    return _look_at_pixels(process(image), processor, (image.height, image.width), process)


def look_at_clip(info: VideoInfo, times: Sequence[float], views: Views) -> View:
    """Runs a video processor on frames of a video.

    Args:
        info: The video.
        times: The times of the frames, in seconds.
        views: The processor, with one crop.

    Returns:
        The view of the clip, whose pixels are (1, frames, channels, H, W).

    Raises:
        VideoError: The file cannot be used.
    """
    (pixels,) = views.read(info, times)
    processor = views.processor
    view = _look_at_pixels(pixels, processor, info.size, partial(process_frame, processor))
    return replace(view, name=f"a frame of {info.path.name}")


def _look_at_pixels(
    pixel_values: Float[Tensor, "*frames channels H W"], processor: Any, size: Pair, process: Callable[..., Tensor]
) -> View:
    """The view of an image or of frames of a size, of which `processor` made `pixel_values`; `process` is what it does
    to one, with other settings."""
    pixels = pixel_values.float()
    if getattr(processor, "do_normalize", False):
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (processor.image_mean, processor.image_std))
        pixels = pixels * std + mean
    scale = 1 / processor.rescale_factor if getattr(processor, "do_rescale", False) else 1.0
    channels_last = (pixels * scale).round().clamp(0, 255).to(torch.uint8).movedim(-3, -1)
    rgb = channels_last.expand(*channels_last.shape[:-1], 3).contiguous().numpy()

    down, across = (torch.arange(length) + 0.5 for length in size)
    coordinates = torch.stack([*torch.meshgrid(down, across, indexing="ij"), torch.zeros(size)])
    traced = process(coordinates, do_rescale=False, do_normalize=False)
    rows, columns = traced[0, :, traced.shape[2] // 2], traced[1, traced.shape[1] // 2]
    return View(pixel_values[None], rgb, _straight_positions(rows), _straight_positions(columns), size)


def _straight_positions(positions: Float[Tensor, "length"]) -> np.ndarray:
    """Extends the line through the middle positions: at the edges, resizing lacks neighbours and shifts positions."""
    found = positions.double().numpy()
    middle = len(found) // 2
    # Positions do not change in the padding of an image.
    steps = np.diff(found)[np.diff(found) != 0]
    step = float(np.median(steps)) if len(steps) else 0.0
    return found[middle] + (np.arange(len(found)) - middle) * step
