"""Log-spaced coordinates of every relative position in a window: the input of the position bias network.

In: the window and the pre-training window, as integers. Out: coordinates.

Source: Liu et al., Swin Transformer V2, section 3.3 ("Log-spaced coordinates"). The factors 8, 3 = log2(8) and
16 * sigmoid are from microsoft/Swin-Transformer, swin_transformer_v2.py.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from swinv2.lengths import Lengths

LARGEST_BIAS = 16
"""The position bias is this number times a sigmoid."""


def relative_coordinates(
    window: Lengths, pretrained_window: Lengths, device: torch.device | None = None
) -> Float[Tensor, "*table axes"]:
    """Log-spaced coordinates of every relative position in a window.

    A distance d along an axis becomes sign(d) log2(|8 d / (w - 1)| + 1) / log2(8), where w is the pre-training window
    on that axis. Inside that window, coordinates are at most 1.06 in absolute value; a larger window extrapolates.

    Args:
        window: Size of the windows: (height, width), or (frames, height, width).
        pretrained_window: Window in which the bias was learned; 0 on an axis means `window` itself.
        device: The device of the coordinates.

    Returns:
        fp32 coordinates, one for each axis; relative positions in increasing order.
    """
    axes = []
    for size, pretrained in zip(window, pretrained_window, strict=True):
        # In a window of one token every distance is 0; `max` avoids 0 / 0.
        distance = torch.arange(1 - size, size, device=device, dtype=torch.float32) / max((pretrained or size) - 1, 1)
        axes.append(torch.sign(distance) * torch.log2(8 * distance.abs() + 1) / math.log2(8))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
