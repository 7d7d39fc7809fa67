"""The ways in which callers see a feature map.

In: a map (B, H, W, C). Out: views of it, each on the way to what is computed from the last one.
"""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Views(NamedTuple):
    """A map in the three ways in which callers see it, each a view of the one before.

    Attributes:
        tokens: (B, H * W, C).
        channels_first: (B, C, H, W).
        feature_map: (B, H, W, C), with which the network goes on.
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
