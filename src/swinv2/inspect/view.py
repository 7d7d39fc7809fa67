"""What a model sees of an image, and where each of its pixels comes from.

In: an image and transformers' image processor. Out: pixels for the model, the same as an image for people, and for
each row and column its position in the image. How the processor resizes and crops is not worked out from its settings:
it is given an image whose colours are its own coordinates.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from swinv2.errors import UsageError
from swinv2.ops.windows import Pair


@dataclass(frozen=True)
class View:
    """An image as the model sees it.

    Attributes:
        pixel_values: What enters the model, a batch of one.
        rgb: The same for people: eight bits, not normalised.
        rows, columns: Where the centre of each row and column that the model saw is in the original image, in its
            pixels.
        size: Height and width of the image.
    """

    pixel_values: Float[Tensor, "1 3 H W"]
    rgb: UInt8[np.ndarray, "H W 3"]
    rows: Float[np.ndarray, "H"]
    columns: Float[np.ndarray, "W"]
    size: Pair

    def find(self, point: tuple[int, int] | None) -> Pair:
        """Finds the pixel that shows the model a point of the original image.

        Args:
            point: Pixels from the left and from the top of the image; None for the centre.

        Returns:
            Its row and column in what the model saw.

        Raises:
            UsageError: The point is not in the image, or the processor cuts it off.
        """
        height, width = len(self.rows), len(self.columns)
        if point is None:
            return height // 2, width // 2
        if not (0 <= point[0] < self.size[1] and 0 <= point[1] < self.size[0]):
            raise UsageError(
                f"--token is {point[0]},{point[1]}, but the image has {self.size[1]} x {self.size[0]} pixels; expected "
                f"X from 0 to {self.size[1] - 1} and Y from 0 to {self.size[0] - 1}, counted from its top left."
            )
        found: list[int] = []
        for positions, wanted in ((self.rows, point[1] + 0.5), (self.columns, point[0] + 0.5)):
            nearest = int(np.abs(positions - wanted).argmin())
            step = abs(positions[-1] - positions[0]) / max(len(positions) - 1, 1)
            if len(positions) > 1 and abs(positions[nearest] - wanted) > max(step / 2, 0.5) + 1e-6:
                left, top, right, bottom = (round(edge) for edge in self.box)
                raise UsageError(
                    f"--token is {point[0]},{point[1]}, which the image processor cuts off: of {self.size[1]} x "
                    f"{self.size[0]} pixels the model sees X from {left} to {right - 1} and Y from {top} to "
                    f"{bottom - 1}. Choose a point there."
                )
            found.append(nearest)
        return found[0], found[1]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """What of the image the model sees: left, top, right, bottom, in pixels of the image."""
        edges: list[tuple[float, float]] = []
        for positions, length in ((self.columns, self.size[1]), (self.rows, self.size[0])):
            half = (positions[-1] - positions[0]) / max(len(positions) - 1, 1) / 2 or length / 2
            edges.append((max(float(positions[0] - half), 0.0), min(float(positions[-1] + half), float(length))))
        return edges[0][0], edges[1][0], edges[0][1], edges[1][1]


def look(image: Image.Image, processor: Any) -> View:
    """Shows an image to an image processor.

    Args:
        image: Eight-bit RGB, as `images.read_image` returns it.
        processor: transformers' image processor of the model.
    """
    pixel_values = processor(images=image, return_tensors="pt")["pixel_values"]
    pixels = pixel_values[0].float()
    if getattr(processor, "do_normalize", False):
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (processor.image_mean, processor.image_std))
        pixels = pixels * std + mean
    scale = 1 / processor.rescale_factor if getattr(processor, "do_rescale", False) else 1.0
    rgb = (pixels * scale).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()

    down, across = (torch.arange(length) + 0.5 for length in (image.height, image.width))
    coordinates = torch.stack([*torch.meshgrid(down, across, indexing="ij"), torch.zeros(image.height, image.width)])
    traced = processor(images=coordinates, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]
    rows, columns = traced[0, :, traced.shape[2] // 2], traced[1, traced.shape[1] // 2]
    return View(pixel_values, rgb, _straight(rows), _straight(columns), (image.height, image.width))


def _straight(positions: Float[Tensor, "length"]) -> np.ndarray:
    """Puts positions on the straight line through the middle ones: at the edges, resizing has no neighbours to mix."""
    found = positions.double().numpy()
    middle = len(found) // 2
    # Where an image is padded, positions do not change.
    steps = np.diff(found)[np.diff(found) != 0]
    step = float(np.median(steps)) if len(steps) else 0.0
    return found[middle] + (np.arange(len(found)) - middle) * step
