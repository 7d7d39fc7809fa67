"""Views of a feature map for callers.

In: a map (B, H, W, C), or (B, frames, H, W, C) of videos. Out: three views, each made from the one before.
"""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Views(NamedTuple):
    """Three views of a map, each a view of the one before.

    The network continues with the last one. So the output has a gradient with respect to each of them.

    Attributes:
        tokens: (B, H * W, C), row by row and frame by frame.
        channels_first: (B, C, H, W), or (B, C, frames, H, W).
        feature_map: (B, H, W, C), or (B, frames, H, W, C), the input of the next layer.
    """

    tokens: Float[Tensor, "B patches C"]
    channels_first: Float[Tensor, "B C *grid"]
    feature_map: Float[Tensor, "B *grid C"]


def views_of(feature_map: Float[Tensor, "B *grid C"]) -> Views:
    """The views of a map."""
    tokens = feature_map.flatten(1, -2)
    batch, *grid, channels = feature_map.shape
    channels_first = tokens.transpose(1, 2).view(batch, channels, *grid)
    return Views(tokens, channels_first, channels_first.permute(0, *range(2, feature_map.ndim), 1))
