"""Where the position bias is evaluated: log-spaced coordinates of every relative position in a window.

In: a window and the window of pre-training, as integers. Out: coordinates. Nothing here is learned.

Source: Liu et al., Swin Transformer V2, section 3.3 ("Log-spaced coordinates"). The factors 8, 3 = log2(8) and
16 * sigmoid are the authors' code's, microsoft/Swin-Transformer, swin_transformer_v2.py.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from swinv2.ops.windows import Pair

LARGEST_BIAS = 16
"""What the sigmoid of the field is multiplied by."""


def relative_coordinates(
    window: Pair, pretrained_window: Pair, device: torch.device | None = None
) -> Float[Tensor, "table_height table_width 2"]:
    """Log-spaced coordinates of every relative position in a window.

    A distance d along an axis becomes sign(d) log2(|8 d / (w - 1)| + 1) / log2(8), where w is the pre-training window
    on that axis: inside that window the coordinates stay within 1.06, and a larger window extrapolates.

    Args:
        window: Size (height, width) of the windows.
        pretrained_window: Size in which the bias was learned; 0 on an axis means `window` itself.
        device: Where to put the coordinates.

    Returns:
        fp32 coordinates (down, across), relative positions in increasing order.
    """
    axes = []
    for size, pretrained in zip(window, pretrained_window, strict=True):
        # In a window of one token every distance is 0, whatever it is divided by.
        distance = torch.arange(1 - size, size, device=device, dtype=torch.float32) / max((pretrained or size) - 1, 1)
        axes.append(torch.sign(distance) * torch.log2(8 * distance.abs() + 1) / math.log2(8))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
