"""Window attention as this package and as others compute it, and the sizes at which they are compared.

In: a map (B, H, W, C), the weight of one product for queries, keys and values, the bias table, the scale of each head
and a plan. Out: the attended map before the last product. So every form is given the product in the order in which its
library takes it: the peers roll and cut the map first. This module measures nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2.ops import reference, sdpa
from swinv2.ops.windows import WindowPlan, merge, partition, shift, unshift

HEAD_DIM = 32
SIZES = {"tiny": (96, 3), "base": (128, 4), "large": (192, 6), "giant-3b": (512, 16)}
"""Channels and heads of the first stage."""

IMAGES = ((256, 8), (256, 16), (384, 24), (640, 40), (1536, 32), (1536, 48))
"""Side of the image in pixels, and window."""

PATCH, STAGES = 4, 4


@dataclass(frozen=True)
class Shape:
    """One attention of a network.

    Attributes:
        size: Name of the network's size.
        image_size, window_size: As the network is asked for.
        stage: From 1.
        grid, window: Of the map and of its windows, a side in tokens.
        heads: Number of heads.
    """

    size: str
    image_size: int
    window_size: int
    stage: int
    grid: int
    window: int
    heads: int

    @property
    def name(self) -> str:
        """What it is called in the results."""
        return f"{self.size}-{self.image_size}-w{self.window_size}-stage{self.stage}"

    @property
    def channels(self) -> int:
        """Of the map."""
        return self.heads * HEAD_DIM

    @property
    def plan(self) -> WindowPlan:
        """Shifted, where there is more than one window."""
        by = self.window // 2 if self.grid > self.window else 0
        return WindowPlan((self.grid, self.grid), (self.window, self.window), (by, by))

    def batch(self, map_bytes: int, element_size: int) -> int:
        """How many images make a map of about so many bytes."""
        return max(1, map_bytes // (self.grid**2 * self.channels * element_size))

    def flops(self, batch: int) -> int:
        """Of the two products of a forward pass, without those of the layer before."""
        tokens = self.plan.padded_grid[0] ** 2
        return 4 * batch * tokens * self.window**2 * self.channels


def shapes() -> dict[str, Shape]:
    """Every attention of the sizes, each kind once, by name."""
    found: dict[tuple[int, ...], Shape] = {}
    for size, (_, heads) in SIZES.items():
        for image_size, window_size in IMAGES:
            for stage in range(STAGES):
                grid = image_size // PATCH >> stage
                window = min(window_size, grid)
                shape = Shape(size, image_size, window_size, stage + 1, grid, window, heads << stage)
                found.setdefault((grid, window, shape.heads), shape)
    return {shape.name: shape for shape in found.values()}


@dataclass(frozen=True)
class Inputs:
    """What every form is given.

    Attributes:
        feature_map: (B, H, W, C).
        weight: Of the product for queries, keys and values (3 C, C).
        bias_table: (heads, 2 Wh - 1, 2 Ww - 1), fp32.
        scale: (heads,), fp32.
        plan: The plan.
    """

    feature_map: Tensor
    weight: Tensor
    bias_table: Tensor
    scale: Tensor
    plan: WindowPlan

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What has a gradient; the first two are the product's."""
        return self.feature_map, self.weight, self.bias_table, self.scale

    @property
    def heads(self) -> int:
        """Number of heads."""
        return len(self.scale)


def draw(shape: Shape, batch: int, dtype: torch.dtype, device: str) -> Inputs:
    """Random inputs: a spread bias, scales around 10 and more."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(size, generator=generator, device=device).to(dtype)

    channels, table = shape.channels, 2 * shape.window - 1
    return Inputs(
        normal(batch, shape.grid, shape.grid, channels, dtype=dtype).requires_grad_(),
        (normal(3 * channels, channels) / channels**0.5).to(dtype).requires_grad_(),
        (16 * torch.sigmoid(normal(shape.heads, table, table))).requires_grad_(),
        (10 * normal(shape.heads).exp()).clamp(1, 100).requires_grad_(),
        shape.plan,
    )


def product_only(inputs: Inputs) -> Tensor:
    """The product alone, whose time is taken off."""
    return F.linear(inputs.feature_map, inputs.weight)


def _maps(inputs: Inputs) -> tuple[Tensor, ...]:
    """Queries, keys and values as maps (B, H, W, heads, head_dim)."""
    return product_only(inputs).unflatten(-1, (3, inputs.heads, -1)).unbind(3)


def plain_form(inputs: Inputs) -> Tensor:
    """This package's specification, which is what all others must answer."""
    return reference.window_attention(*_maps(inputs), inputs.bias_table, inputs.scale, inputs.plan)[0].flatten(-2)


def ours_triton(inputs: Inputs) -> Tensor:
    """This package's kernels."""
    from swinv2.ops.triton import launch

    return launch.window_attention(*_maps(inputs), inputs.bias_table, inputs.scale, inputs.plan).flatten(-2)


def ours_sdpa(inputs: Inputs) -> Tensor:
    """This package's "sdpa"."""
    return sdpa.window_attention(*_maps(inputs), inputs.bias_table, inputs.scale, inputs.plan).flatten(-2)


@cache
def _mask(plan: WindowPlan, device: torch.device) -> Tensor | None:
    """Which pairs are hidden (windows, T, T); libraries keep it, so its making is not measured."""
    return plan.hidden_pairs(device)


@cache
def _index(plan: WindowPlan, device: torch.device) -> Tensor:
    """Entry of every pair of tokens in the flat bias table, which libraries keep too."""
    height, width = plan.window
    places = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).flatten(1)
    apart = places[:, :, None] - places[:, None, :]
    return ((apart[0] + height - 1) * (2 * width - 1) + apart[1] + width - 1).to(device)


def _windows(inputs: Inputs) -> tuple[Tensor, ...]:
    """Queries, keys and values (N, heads, T, head_dim) of the rolled and cut map."""
    windows = partition(shift(inputs.feature_map, inputs.plan), inputs.plan.window)
    return F.linear(windows, inputs.weight).unflatten(-1, (3, inputs.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def _bias(inputs: Inputs, dtype: torch.dtype) -> Tensor:
    """Bias of every pair (heads, T, T)."""
    return inputs.bias_table.flatten(1)[:, _index(inputs.plan, inputs.scale.device)].to(dtype)


def _back(attended: Tensor, inputs: Inputs) -> Tensor:
    windows = attended.transpose(1, 2).flatten(-2)
    return unshift(merge(windows, inputs.plan.window, inputs.plan.grid), inputs.plan)


@cache
def _additive_mask(plan: WindowPlan, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """-100 where a pair is hidden (windows, 1, T, T); libraries keep it too."""
    hidden = _mask(plan, device)
    if hidden is None:
        return None
    return torch.zeros_like(hidden, dtype=dtype).masked_fill(hidden, -100.0)[:, None]


def plain_sdpa(inputs: Inputs) -> Tensor:
    """torch's scaled_dot_product_attention as one would use it: windows beside heads, a mask for each, bias included,
    which serves all images."""
    query, key, value = _windows(inputs)
    query = F.normalize(query, dim=-1) * inputs.scale[:, None, None].to(query.dtype)
    added, hidden = _bias(inputs, query.dtype), _mask(inputs.plan, query.device)
    if hidden is None:
        return _back(
            F.scaled_dot_product_attention(query, F.normalize(key, dim=-1), value, added[None], scale=1.0), inputs
        )
    added = added.masked_fill(hidden[:, None], float("-inf")).flatten(0, 1)[None]
    maps = (each.unflatten(0, (-1, len(hidden))).flatten(1, 2) for each in (query, F.normalize(key, dim=-1), value))
    attended = F.scaled_dot_product_attention(*maps, attn_mask=added, scale=1.0)
    return _back(attended.unflatten(1, (len(hidden), -1)).flatten(0, 1), inputs)


def _as_a_library(inputs: Inputs, times_mask: int) -> Tensor:
    query, key, value = _windows(inputs)
    logits = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-2, -1)
    logits = logits * inputs.scale[:, None, None].to(query.dtype) + _bias(inputs, query.dtype)
    added = _additive_mask(inputs.plan, query.device, query.dtype)
    if added is not None:
        logits = logits.unflatten(0, (-1, len(added)))
        for _ in range(times_mask):
            logits = logits + added
        logits = logits.flatten(0, 1)
    return _back(logits.softmax(-1) @ value, inputs)


def as_timm(inputs: Inputs) -> Tensor:
    """The operations of timm 1.0, swin_transformer_v2.py, WindowAttention: the mask is added, as -100."""
    return _as_a_library(inputs, 1)


def as_transformers(inputs: Inputs) -> Tensor:
    """The operations of transformers 5.23, modeling_swinv2.py, Swinv2SelfAttention: the mask is added twice."""
    return _as_a_library(inputs, 2)


FORMS: dict[str, Callable[[Inputs], Tensor]] = {
    "triton": ours_triton,
    "sdpa": ours_sdpa,
    "plain-sdpa": plain_sdpa,
    "timm": as_timm,
    "transformers": as_transformers,
}
OURS = ("triton", "sdpa")
