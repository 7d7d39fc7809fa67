"""Log-spaced continuous position bias: from relative positions to a learned bias for each head.

In: a window and the window of pre-training, as integers. Out: the bias table (heads, 2 Wh - 1, 2 Ww - 1). A small
network learns the field; no table is stored, so any window can be asked for. This module does not know how the
table is used.

Source: Liu et al., Swin Transformer V2, section 3.3 ("Continuous relative position bias", "Log-spaced coordinates").
The factors 8, 3 = log2(8) and 16 * sigmoid are the authors' code's, microsoft/Swin-Transformer, swin_transformer_v2.py.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from swinv2.layers.fusion import fusible, remember_structure
from swinv2.ops.coordinates import LARGEST_BIAS, relative_coordinates
from swinv2.ops.precision import at_least_fp32
from swinv2.ops.windows import Pair

HIDDEN_FEATURES = 512


class PreciseLinear(nn.Linear):
    """A linear layer that computes in fp32 at least, whatever its weights are stored in, under autocast too.

    Neighbouring coordinates at the edge of a window of 24 differ by 0.019; bf16 rounds there to multiples of 0.008.
    """

    def forward(self, input: Tensor) -> Tensor:
        # The meta device has no autocast and refuses even to switch it off.
        with nullcontext() if input.is_meta else torch.autocast(input.device.type, enabled=False):
            weight = at_least_fp32(self.weight)
            bias = None if self.bias is None else at_least_fp32(self.bias)
            return F.linear(input.to(weight.dtype), weight, bias)


class ContinuousPositionBias(nn.Sequential):
    """The network that turns coordinates into a bias for each head.

    Args:
        num_heads: Number of heads.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__(
            PreciseLinear(2, HIDDEN_FEATURES), nn.ReLU(), PreciseLinear(HIDDEN_FEATURES, num_heads, bias=False)
        )
        remember_structure(self)

    @fusible
    def forward(
        self, x: Tensor, backend: str, window: Pair, pretrained_window: Pair
    ) -> Float[Tensor, "heads table_height table_width"]:
        """Evaluates the field on every relative position.

        Args:
            x: The map, or any tensor where it is: the weights may be offloaded and be nowhere.
            backend: Which backend of `ops.backends` runs.
            window: Size (height, width) of the windows.
            pretrained_window: Size in which the bias was learned; see `relative_coordinates`.

        Returns:
            Bias between 0 and 16, to be added to the logits, in fp32; in fp64 if the weights are.
        """
        field = super().forward(relative_coordinates(window, pretrained_window, x.device))
        return LARGEST_BIAS * torch.sigmoid(field).permute(2, 0, 1)
