"""Scaled cosine attention in shifted windows: the modules with its parameters.

In and out: a map (B, *grid, C), where the grid is (H, W) for images and (frames, H, W) for videos. These modules
project to queries, keys and values, and back; `ops` does padding, shift, windows, mask, normalisation and softmax.

Source: Liu et al., Swin Transformer V2, section 3.3, equation 2; names of the parameters: transformers' swinv2.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from swinv2.layers.position import ContinuousPositionBias
from swinv2.lengths import Lengths
from swinv2.ops.backends import window_attention
from swinv2.ops.precision import at_least_fp32
from swinv2.ops.windows import WindowPlan

MAX_LOG_SCALE = math.log(100)
"""The temperature tau is at least 0.01, so the scale is at most 100."""


@dataclass(frozen=True)
class WindowGeometry:
    """The windows of one block.

    Attributes:
        window: Size in tokens along each axis: (height, width), or (frames, height, width).
        shift: Cyclic shift in tokens.
        pretrained_window: Window in which the position bias was learned; 0 means `window`.
        mask_padding: Whether padding tokens are hidden.
    """

    window: Lengths
    shift: Lengths
    pretrained_window: Lengths
    mask_padding: bool

    def plan(self, grid: Lengths) -> WindowPlan:
        """The plan of the block's windows for maps of a size."""
        return WindowPlan(grid, self.window, self.shift, self.mask_padding)


class CosineWindowAttention(nn.Module):
    """Cosine attention in windows, without the output projection; `attention.self` in transformers' names.

    Args:
        dim: Channels C.
        num_heads: Number of heads.
        geometry: Windows, shift and pre-training window.
        qkv_bias: Whether the query and value layers have a bias; the key layer never has one.
        dropout: Probability of dropping an attention weight in training.
    """

    def __init__(self, dim: int, num_heads: int, geometry: WindowGeometry, qkv_bias: bool, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.geometry = geometry
        self.dropout = dropout
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10)))
        self.continuous_position_bias_mlp = ContinuousPositionBias(num_heads, len(geometry.window))
        self.query = nn.Linear(dim, dim, bias=qkv_bias)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=qkv_bias)

    def bias_table(self, x: Tensor, backend: str) -> Float[Tensor, "heads *table"]:
        """The position bias of every relative position; the same for all images.

        Args:
            x: The map, or any tensor on its device.
            backend: A backend of `ops.backends`.
        """
        geometry = self.geometry
        return self.continuous_position_bias_mlp(x, backend, geometry.window, geometry.pretrained_window)

    def scale(self) -> Float[Tensor, " heads"]:
        """The factor of the cosine: 1 / tau."""
        return at_least_fp32(self.logit_scale).clamp(max=MAX_LOG_SCALE).exp().flatten()

    def forward(
        self, feature_map: Float[Tensor, "B *grid C"], backend: str, output_attentions: bool = False
    ) -> tuple[Tensor, ...]:
        """Attends inside every window.

        Args:
            feature_map: The map.
            backend: A backend of `ops.backends`.
            output_attentions: Whether to return the attention weights too; only the backend "eager" has them.

        Returns:
            The attended map (B, *grid, C) before the output projection, and the attention weights (N, heads, T, T) if
            `output_attentions`.
        """
        plan = self.geometry.plan(tuple(feature_map.shape[1:-1]))
        heads = (self.num_heads, -1)
        padded_query = padded_value = None
        if plan.padded_grid != plan.grid:
            # A padding token is a token of zeros; the modules project it, because they may be LoRA or quantised.
            padding = feature_map.new_zeros(*[1] * (feature_map.ndim - 1), feature_map.shape[-1])
            padded_query = self.query(padding).flatten().unflatten(-1, heads)
            padded_value = self.value(padding).flatten().unflatten(-1, heads)
        attended, weights = window_attention(
            self.query(feature_map).unflatten(-1, heads),
            self.key(feature_map).unflatten(-1, heads),
            self.value(feature_map).unflatten(-1, heads),
            self.bias_table(feature_map, backend),
            self.scale(),
            plan,
            padded_value,
            self.dropout if self.training else 0.0,
            backend,
            padded_query,
        )
        attended = attended.flatten(-2)
        return (attended, weights) if output_attentions and weights is not None else (attended,)


class Projection(nn.Module):
    """A linear layer and its dropout; a separate module because the checkpoints call it `output.dense`."""

    def __init__(self, in_features: int, out_features: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, out_features)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """The linear layer at the end of a branch's layers, then dropout."""
        return self.dropout(self.dense(features))


class Attention(nn.Module):
    """Cosine window attention and its output projection.

    Args:
        dim, num_heads, geometry, qkv_bias: See `CosineWindowAttention`.
        dropout: Dropout probability of the attention weights and, as in transformers, of the output projection.
    """

    def __init__(self, dim: int, num_heads: int, geometry: WindowGeometry, qkv_bias: bool, dropout: float) -> None:
        super().__init__()
        self.self = CosineWindowAttention(dim, num_heads, geometry, qkv_bias, dropout)
        self.output = Projection(dim, dim, dropout)

    def forward(
        self, feature_map: Float[Tensor, "B *grid C"], backend: str, output_attentions: bool = False
    ) -> tuple[Tensor, ...]:
        """See `CosineWindowAttention.forward`."""
        attended, *weights = self.self(feature_map, backend, output_attentions)
        return self.output(attended), *weights
