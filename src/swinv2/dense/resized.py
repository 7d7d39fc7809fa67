"""A convolution of several maps that are resized to one size and concatenated, without the resized maps.

In: maps of several sizes, and a convolution of 3 x 3. Out: the same map as that of the resized and concatenated maps.

Resizing is linear, and acts on each axis alone. So a weight of the kernel may be applied to the small map, and the
result be resized: a map of half the side needs a quarter of the multiplications, and the large map of all channels is
never in memory. Resizing and the shift by the position in the kernel are one matrix for each axis.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SIDE = 3
"""Side of the kernel."""


def resize(x: Tensor, size: Sequence[int]) -> Float[Tensor, "B C height width"]:
    """Resizes a map (B, C, H, W) as UperNet does."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def convolve_resized(
    conv: nn.Conv2d, maps: Sequence[Float[Tensor, "B _ _ _"]]
) -> Float[Tensor, "B channels height width"]:
    """Computes `conv(torch.cat([each map, resized to the size of the first], 1))`.

    Args:
        conv: A convolution of 3 x 3 with padding 1, and neither stride, groups nor dilation.
        maps: The maps (B, C, H, W); the input channels of the convolution are theirs in this order.
    """
    size = maps[0].shape[2:]
    weights = conv.weight.split([each.shape[1] for each in maps], 1)
    # Those that are not worth it are resized and concatenated.
    saves = [_saves(each.shape[2:], size, conv.out_channels) for each in maps]
    plain = [index for index, saved in enumerate(saves) if not saved]
    joined, weight = maps[0], weights[0]
    if len(plain) > 1:
        joined = torch.cat([maps[0], *(resize(maps[index], size) for index in plain[1:])], 1)
        weight = torch.cat([weights[index] for index in plain], 1)
    out = F.conv2d(joined, weight, conv.bias, padding=SIDE // 2)
    for each, weight, saved in zip(maps, weights, saves, strict=True):
        if saved:
            out = out + _resize_products(each, weight, size)
    return out


def _saves(size: Sequence[int], wanted: Sequence[int], channels: int) -> bool:
    """Whether it takes fewer multiplications for each pixel and input channel to multiply the map first."""
    (height, width), (tall, wide) = size, wanted
    share = height * width / (tall * wide)
    # The matrices of rows, for each position in the kernel across, and of columns; a map has about as many channels.
    matrices = SIDE * (SIDE * height * width / wide + width) / channels
    return SIDE**2 * share + matrices < SIDE**2


def _resize_products(x: Tensor, weight: Tensor, size: Sequence[int]) -> Tensor:
    """The convolution of one resized map.

    Args:
        x: The map (B, in, H, W).
        weight: The kernel (out, in, 3, 3).
        size: Height and width to resize to.
    """
    batch, channels, height, width = x.shape
    out = len(weight)
    # The channels stay last in memory, as in the maps of a Swin Transformer.
    pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)
    products = pixels @ weight.permute(1, 3, 2, 0).reshape(channels, -1)
    products = products.view(batch, height, width, SIDE, SIDE, out).permute(0, 3, 4, 1, 2, 5)
    rows, columns = (_matrix(length, wanted, products) for length, wanted in zip((height, width), size, strict=True))
    tall = products.reshape(batch * SIDE, SIDE * height, width * out)
    tall = torch.bmm(rows.expand(tall.shape[0], -1, -1), tall)
    wide = tall.view(batch, SIDE, size[0], width, out).transpose(1, 2)
    wide = wide.reshape(batch * size[0], SIDE * width, out)
    wide = torch.bmm(columns.expand(wide.shape[0], -1, -1), wide)
    return wide.view(batch, size[0], size[1], out).permute(0, 3, 1, 2)


def _matrix(length: int, wanted: int, like: Tensor) -> Tensor:
    """The matrix (wanted, 3 * length) that resizes an axis and adds up the three positions of the kernel, shifted;
    beyond the border are zeros."""
    # Not in 16 bits, which would round the positions.
    identity = torch.eye(length, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    resized = F.interpolate(identity[None], wanted, mode="linear", align_corners=False)[0].T
    padded = F.pad(resized, (0, 0, 1, 1))
    return torch.cat([padded[position : position + wanted] for position in range(SIDE)], 1).to(like.dtype)
