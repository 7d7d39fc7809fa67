"""Views of a feature map for callers.

In: a map (B, H, W, C). Out: three views, each made from the one before.
"""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Views(NamedTuple):
    """Three views of a map, each a view of the one before.

    The network continues with the last one. So the output has a gradient with respect to each of them.

    Attributes:
        tokens: (B, H * W, C).
        channels_first: (B, C, H, W).
        feature_map: (B, H, W, C), the input of the next layer.
    """

    tokens: Float[Tensor, "B patches C"]
    channels_first: Float[Tensor, "B C H W"]
    feature_map: Float[Tensor, "B H W C"]


def views_of(feature_map: Float[Tensor, "B H W C"]) -> Views:
    """The views of a map."""
    tokens = feature_map.flatten(1, 2)
    batch, height, width, channels = feature_map.shape
    channels_first = tokens.transpose(1, 2).view(batch, channels, height, width)
    return Views(tokens, channels_first, channels_first.permute(0, 2, 3, 1))
