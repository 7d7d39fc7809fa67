"""A figure of the reconstructions of a pre-trained model, next to its inputs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from swinv2.drawing.paper import TILE, printable, save, tile_sheet
from swinv2.simmim import local_statistics
from swinv2.train.data.augment import Pixels

_GREY = 128


def reconstruction_rows(
    images: Float[Tensor, "B channels H W"],
    reconstruction: Float[Tensor, "B channels H W"],
    mask_of_pixels: Bool[Tensor, "B 1 H W"],
    pixels: Pixels,
    norm_targets: int = 0,
) -> UInt8[np.ndarray, "B 4 H W 3"]:
    """The four columns of a figure: the input, the input with grey masked pixels, the input with reconstructed masked
    pixels, and the whole reconstruction.

    Args:
        images: Normalised images.
        reconstruction: Output of the model. NaN becomes black.
        mask_of_pixels: True for masked pixels.
        pixels: Mean and deviation of the images' normalisation. Values beyond black and white are clipped.
        norm_targets: If not 0, the model reconstructs normalised pixels; see `simmim.normalise_targets`. Mean and
            deviation come from `images`, also for masked pixels; so brightness and contrast are those of the original,
            not of the model.

    Returns:
        Pixels of eight bits. Images of one or two channels become grey, from the first channel; of three or more, the
        first three are red, green and blue.

    Raises:
        ValueError: The shapes do not match.
    """
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != pixels.channels or 0 in shape:
        raise ValueError(f"images are {shape}; expected (B, {pixels.channels}, H, W), all above 0.")
    if tuple(reconstruction.shape) != shape:
        raise ValueError(f"the reconstruction is {tuple(reconstruction.shape)}; expected {shape}, as the images.")
    if tuple(mask_of_pixels.shape) != (shape[0], 1, *shape[2:]) or mask_of_pixels.dtype != torch.bool:
        raise ValueError(
            f"the mask is {tuple(mask_of_pixels.shape)} of {mask_of_pixels.dtype}; expected "
            f"{(shape[0], 1, *shape[2:])} of torch.bool."
        )
    images, drawing, mask = (tensor.detach().cpu() for tensor in (images, reconstruction, mask_of_pixels))
    images, drawing = images.float(), drawing.float()
    if norm_targets:
        mean, deviation = local_statistics(images, norm_targets)
        drawing = drawing * deviation + mean
    images, drawing = (_eight_bits(tensor, pixels) for tensor in (images, drawing))
    grey = torch.full_like(images, _GREY)
    columns = (images, torch.where(mask, grey, images), torch.where(mask, drawing, images), drawing)
    return torch.stack(columns, 1).permute(0, 1, 3, 4, 2).numpy()


def _eight_bits(images: Tensor, pixels: Pixels) -> Tensor:
    """Normalised images as eight-bit RGB, for the figure."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (pixels.mean, pixels.std))
    values = images * std + mean
    values = values[:, :3] if values.shape[1] >= 3 else values[:, :1].expand(-1, 3, -1, -1)
    return (values.nan_to_num(0.0, 1.0, 0.0).clamp(0.0, 1.0) * 255).round().to(torch.uint8)


def draw_reconstructions(
    images: Float[Tensor, "B channels H W"],
    reconstruction: Float[Tensor, "B channels H W"],
    mask_of_pixels: Bool[Tensor, "B 1 H W"],
    path: Path,
    pixels: Pixels,
    norm_targets: int = 0,
    names: Sequence[str] = (),
) -> None:
    """Draws a row for each image; see `reconstruction_rows`.

    Pixels are not resampled: images with a longer side below 192 pixels are enlarged by repeating pixels.

    Args:
        path: The PNG file; an existing file is replaced.
        names: Text below the first image of each row; empty for no text.

    Raises:
        ValueError: The shapes do not match, or the number of names is not the number of images.
    """
    rows = reconstruction_rows(images, reconstruction, mask_of_pixels, pixels, norm_targets)
    if names and len(names) != len(rows):
        raise ValueError(f"there are {len(names)} names for {len(rows)} images; give one for each image, or none.")
    factor = -(-TILE // max(rows.shape[2:4]))
    rows = rows.repeat(factor, 2).repeat(factor, 3)
    tiles = list(rows.reshape(-1, *rows.shape[2:]))
    # Only the first of the four images of a row has a caption.
    captions = [text for name in names for text in (printable(name, 60), "", "", "")] or [""] * len(tiles)
    save(tile_sheet(tiles, captions, 4, ("input", "masked", "drawn where masked", "drawn")), path)
