"""SimMIM's masks, targets and loss.

In: images (B, channels, height, width), masks of patches, random generators. Out: masks, targets, losses, distances.
Nothing here is learned or depends on the network.

Source: Xie et al., SimMIM (arXiv 2111.09886), sections 3.2 to 3.4; microsoft/SimMIM for the details of the mask;
microsoft/Swin-Transformer, simmim.py, for the local normalisation, with which the Swin V2 models were pre-trained.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from swinv2.lengths import Pair


def draw_mask(grid: Pair, block: Pair, ratio: float, generator: torch.Generator | None = None) -> Bool[Tensor, "H W"]:
    """Draws a random mask of the patches of an image: whole blocks of patches are masked.

    The grid is cut into blocks; those at the bottom and right edges may be incomplete. The share `ratio` of the blocks,
    rounded up, is masked.

    Args:
        grid: Size (height, width) of the image in patches.
        block: Size (height, width) of a block in patches. SimMIM's 32 pixels are 8 x 8 patches of 4 pixels.
        ratio: Share of blocks to mask, from 0 to 1.
        generator: The random generator; torch's own if None.

    Returns:
        True for masked patches.

    Raises:
        ValueError: `ratio` is not between 0 and 1, or a length is not positive.

    Example:

        >>> import torch
        >>> draw_mask((48, 48), (8, 8), ratio=0.6, generator=torch.Generator().manual_seed(0)).sum().item() // 64
        22
    """
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"the share of masked blocks is {ratio!r}; expected a number from 0 to 1.")
    if min(*grid, *block) < 1:
        raise ValueError(f"grid is {grid} and block {block}, in patches; expected lengths of at least 1.")
    rows, columns = (-(-length // side) for length, side in zip(grid, block, strict=True))
    mask = torch.zeros(rows * columns, dtype=torch.bool)
    # Without `round`, floating-point errors would mask a block too many: 0.6 * 5 is slightly more than 3.
    mask[torch.randperm(rows * columns, generator=generator)[: math.ceil(round(ratio * rows * columns, 6))]] = True
    blocks = mask.view(rows, columns)
    return blocks.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[: grid[0], : grid[1]].contiguous()


def patch_grid_of(image_size: Pair, patch_size: Pair) -> Pair:
    """Size (height, width) of an image, and of its mask, in patches; the last ones may extend beyond the image."""
    # No negative numbers: some converters of traced graphs round their quotients differently.
    height, width = patch_size
    return (image_size[0] + height - 1) // height, (image_size[1] + width - 1) // width


def mask_of_pixels(
    bool_masked_pos: Bool[Tensor, "B patches"], patch_size: Pair, image_size: Pair
) -> Bool[Tensor, "B 1 height width"]:
    """Converts a mask of patches, row by row, to a mask of pixels; True means masked.

    Args:
        bool_masked_pos: The mask of the patches.
        patch_size, image_size: (height, width) in pixels; the last patches may extend beyond the image.
    """
    mask = bool_masked_pos.bool().view(-1, 1, *patch_grid_of(image_size, patch_size))
    mask = mask.repeat_interleave(patch_size[0], 2).repeat_interleave(patch_size[1], 3)
    return mask[:, :, : image_size[0], : image_size[1]]


def masked_pixel_loss(
    targets: Float[Tensor, "B channels height width"],
    reconstruction: Float[Tensor, "B channels height width"],
    bool_masked_pos: Bool[Tensor, "B patches"],
    patch_size: Pair,
) -> Float[Tensor, ""]:
    """Mean absolute error over the pixels of masked patches.

    Source: SimMIM, section 3.4; transformers' `Swinv2ForMaskedImageModeling`.
    """
    mask = mask_of_pixels(bool_masked_pos, patch_size, (targets.shape[2], targets.shape[3]))
    error = F.l1_loss(reconstruction, targets, reduction="none")
    return (error * mask).sum() / (mask.sum() + 1e-5) / targets.shape[1]


def local_statistics(
    images: Float[Tensor, "B channels height width"], window: int
) -> tuple[Float[Tensor, "B channels height width"], Float[Tensor, "B channels height width"]]:
    """Mean and standard deviation of the square around each pixel, per channel, in fp32 at least.

    A square that extends beyond the image counts only the pixels of the image. The deviation is unbiased; 1e-6, the
    authors' epsilon, is added to the variance, so the deviation is at least 0.001.

    Raises:
        ValueError: `window`, the side of the square in pixels, is even or less than 3.
    """
    if window < 3 or window % 2 == 0:
        raise ValueError(f"the window of the local statistics is {window!r}; expected an odd number of at least 3.")
    images = images.to(torch.promote_types(images.dtype, torch.float32))

    def sums(values: Tensor) -> Tensor:
        """The sum of the square around each pixel, for the statistics of SimMIM's targets."""
        # One axis after the other: for a window of 47, 2 x 47 additions for each pixel instead of 47 x 47.
        down = F.avg_pool2d(values, (window, 1), 1, (window // 2, 0), divisor_override=1)
        return F.avg_pool2d(down, (1, window), 1, (0, window // 2), divisor_override=1)

    count = sums(torch.ones_like(images[:1, :1]))
    mean = sums(images) / count
    # An image of one pixel has no deviation.
    variance = (sums(images.square()) / count - mean.square()) * count / (count - 1).clamp_min(1)
    return mean, (variance.clamp_min(0.0) + 1e-6).sqrt()


def normalise_targets(
    images: Float[Tensor, "B channels height width"], window: int
) -> Float[Tensor, "B channels height width"]:
    """The targets of a model with `norm_targets`: (pixel - mean) / deviation, of the square around each pixel.

    Args:
        images: The images.
        window: Side of the square in pixels, odd; the authors' is 47.

    Raises:
        ValueError: `window` is even or less than 3.

    Source: microsoft/Swin-Transformer, models/simmim.py, norm_targets.
    """
    mean, deviation = local_statistics(images, window)
    return (images - mean) / deviation


def average_distance(mask: Bool[Tensor, "height width"]) -> float:
    """SimMIM's AvgDist: mean distance of masked pixels to the nearest visible pixel, in pixels.

    The larger it is, the harder the prediction; the paper finds 10 to 20 best for images of 192 pixels.

    In `mask`, True means masked. The distance is 0 if nothing is masked, and infinite if everything is.

    Source: SimMIM, section 4.1.2.
    """
    if not mask.any():
        return 0.0
    if mask.all():
        return math.inf
    # The exact distance transform: the squared distance along each column, then the minimum over the columns.
    rows, columns = (torch.arange(length, dtype=torch.float32) for length in mask.shape)
    far = torch.where(mask, torch.inf, 0.0)
    along = ((rows[:, None] - rows).square()[:, :, None] + far).amin(1)
    squared = (along[:, None, :] + (columns[:, None] - columns).square()).amin(2)
    return squared.sqrt()[mask].mean().item()
