"""Log-spaced continuous position bias: from relative positions to a learned bias for each head.

In: the window and the pre-training window, as integers. Out: the bias table, (heads, 2 Wh - 1, 2 Ww - 1) for images. A
small network computes the table, so any window is possible.

Source: Liu et al., Swin Transformer V2, section 3.3 ("Continuous relative position bias", "Log-spaced coordinates").
The factors 8, 3 = log2(8) and 16 * sigmoid are from microsoft/Swin-Transformer, swin_transformer_v2.py.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from swinv2.layers.fusion import fusible, remember_structure
from swinv2.lengths import Lengths
from swinv2.ops.coordinates import LARGEST_BIAS, relative_coordinates
from swinv2.ops.precision import at_least_fp32

HIDDEN_FEATURES = 512


class PreciseLinear(nn.Linear):
    """A linear layer that computes in fp32 at least, for weights of any dtype and under autocast.

    At the edge of a window of 24, neighbouring coordinates differ by 0.019, and bf16 rounds to multiples of 0.008.
    """

    def forward(self, input: Tensor) -> Tensor:
        """A linear layer in fp32 at least, even if autocast is on."""
        # The meta device has no autocast: even torch.autocast(enabled=False) raises an error.
        with nullcontext() if input.is_meta else torch.autocast(input.device.type, enabled=False):
            weight = at_least_fp32(self.weight)
            bias = None if self.bias is None else at_least_fp32(self.bias)
            return F.linear(input.to(weight.dtype), weight, bias)


class ContinuousPositionBias(nn.Sequential):
    """The network that computes the bias of each head from coordinates.

    Args:
        num_heads: Number of heads.
        axes: Axes of the windows: 2 for images, 3 for videos.
    """

    def __init__(self, num_heads: int, axes: int = 2) -> None:
        super().__init__(
            PreciseLinear(axes, HIDDEN_FEATURES), nn.ReLU(), PreciseLinear(HIDDEN_FEATURES, num_heads, bias=False)
        )
        remember_structure(self)

    @fusible
    def forward(
        self, x: Tensor, backend: str, window: Lengths, pretrained_window: Lengths
    ) -> Float[Tensor, "heads *table"]:
        """The bias of every relative position.

        Args:
            x: The map, or any tensor on its device; the weights may be offloaded, so their device does not count.
            backend: A backend of `ops.backends`.
            window: Size of the windows: (height, width), or (frames, height, width).
            pretrained_window: Window in which the bias was learned; see `relative_coordinates`.

        Returns:
            The bias, between 0 and 16, which is added to the logits; in fp64 if the weights are, otherwise in fp32.
        """
        field = super().forward(relative_coordinates(window, pretrained_window, x.device))
        return LARGEST_BIAS * torch.sigmoid(field).movedim(-1, 0)
