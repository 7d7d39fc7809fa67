"""Log-spaced continuous position bias: from relative positions to a learned bias for each head.

In: a window and the window of pre-training, as integers. Out: the bias table (heads, 2 Wh - 1, 2 Ww - 1). A small
network learns the field; no table is stored, so any window can be asked for. This module does not know how the
table is used.

Source: Liu et al., Swin Transformer V2, section 3.3 ("Continuous relative position bias", "Log-spaced coordinates").
The factors 8, 3 = log2(8) and 16 * sigmoid are the authors' code's, microsoft/Swin-Transformer, swin_transformer_v2.py.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from swinv2.layers.fusion import is_unwatched
from swinv2.ops.cpu.position import bias_field
from swinv2.ops.execution import ORDINARY, Execution, execution
from swinv2.ops.precision import at_least_fp32
from swinv2.ops.windows import Pair

HIDDEN_FEATURES = 512


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


@dataclass(frozen=True)
class _Remembered:
    """A table, and what it was computed from."""

    geometry: tuple[Pair, Pair]
    weights: tuple[Tensor, ...]
    table: Tensor

    def is_of(self, geometry: tuple[Pair, Pair], weights: tuple[Tensor, ...]) -> bool:
        """Whether the same windows and weights would give it. The weights' numbers are compared: versions and addresses
        do not tell of writes through `.data`, as averaging of weights makes them."""
        pairs = zip(self.weights, weights, strict=True)
        return self.geometry == geometry and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


class ContinuousPositionBias(nn.Sequential):
    """The network that turns coordinates into a bias for each head.

    On a CPU, without gradients, the last table is remembered as long as the weights are the same. Elsewhere one cannot
    compare weights without waiting for the device, and a version does not tell of every change. The table and a copy of
    the weights, at window 24 with 32 heads 0.3 MB, stay there until the next one.

    Args:
        num_heads: Number of heads.
    """

    _remembered: _Remembered | None = None

    def __init__(self, num_heads: int) -> None:
        super().__init__(
            PreciseLinear(2, HIDDEN_FEATURES), nn.ReLU(), PreciseLinear(HIDDEN_FEATURES, num_heads, bias=False)
        )

    def forward(
        self, window: Pair, pretrained_window: Pair, device: torch.device, in_pieces: bool = True
    ) -> Float[Tensor, "heads table_height table_width"]:
        """Evaluates the field on every relative position.

        Args:
            window: Size (height, width) of the windows.
            pretrained_window: Size in which the bias was learned; see `relative_coordinates`.
            device: Where the map is; the weights may be offloaded and have none.
            in_pieces: Whether `ops.cpu.position` may do it, which has no gradient of the gradient, and the table be
                remembered.

        Returns:
            Bias between 0 and 16, to be added to the logits, in fp32; in fp64 if the weights are.
        """
        weights = self._plain_weights() if in_pieces else None
        if weights is None or device.type != "cpu":
            return self._table(super().forward, window, pretrained_window, device)

        w1, b1, w2 = weights

        def field(coordinates: Tensor) -> Tensor:
            return bias_field(coordinates, at_least_fp32(w1), at_least_fp32(b1), at_least_fp32(w2))

        if torch.is_grad_enabled() or execution(w1) is not Execution.EAGER:
            return self._table(field, window, pretrained_window, device)
        # Read once: another thread may put another table there.
        geometry, remembered = (window, pretrained_window), self._remembered
        if remembered is None or not remembered.is_of(geometry, weights):
            table = self._table(field, window, pretrained_window, device)
            remembered = _Remembered(geometry, tuple(weight.detach().clone() for weight in weights), table)
            self._remembered = remembered
        # A copy: whoever writes into it must not write into what is remembered.
        return remembered.table.clone()

    def _plain_weights(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Weight, bias, weight, if nobody can tell that the layers are not called."""
        layers = [layer for layer in self if type(layer) is PreciseLinear]
        as_built = len(self) == 3 and len(layers) == 2 and type(self[1]) is nn.ReLU and all(map(is_unwatched, self))
        if not as_built:
            return None
        weights = (layers[0].weight, layers[0].bias, layers[1].weight)
        return weights if all(w.device.type == "cpu" and execution(w) in ORDINARY for w in weights) else None

    @staticmethod
    def _table(
        field: Callable[[Tensor], Tensor], window: Pair, pretrained_window: Pair, device: torch.device
    ) -> Tensor:
        coordinates = relative_coordinates(window, pretrained_window, device)
        return 16 * torch.sigmoid(field(coordinates)).permute(2, 0, 1)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: all but what is remembered."""
        return {name: value for name, value in super().__getstate__().items() if name != "_remembered"}
