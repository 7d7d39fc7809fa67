"""The network in the form that exporters get: the same answers for images of one size, by fewer and larger operations.

In: a model of this package, or one with its backbone, and an image size. Out: a copy whose stages compute the same in
another way:

- The position bias is a constant with the mask inside it; the graph has no network for it.
- Padding, shift and windows are one operation between two blocks: tokens stay in the order of the windows, because only
  attention needs an order; norms, products and sums compute each token by itself.
- The cosine is the product of vectors that a root mean square norm has scaled, and attention is one operation: runtimes
  have fast kernels for both.

This module knows no format and no runtime.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2.errors import UsageError
from swinv2.heads import Swinv2Backbone
from swinv2.layers.attention import CosineWindowAttention
from swinv2.layers.block import SwinTransformerBlock
from swinv2.layers.patches import PatchEmbeddings, PatchMerging
from swinv2.layers.stage import Stage
from swinv2.layers.views import Views
from swinv2.lengths import Pair
from swinv2.model import Swinv2Model
from swinv2.ops import windows
from swinv2.ops.backends import EAGER
from swinv2.ops.precision import SMALLEST_NORM
from swinv2.ops.reference import expand_bias
from swinv2.ops.windows import WindowPlan

Model = TypeVar("Model", bound=nn.Module)

HIDDEN = -1000.0
"""The bias of two tokens that do not see each other. Other logits are between -100 and 116, so the weight is exactly
zero; minus infinity would leave no range for the other numbers of the constant in int8."""

MOST_BIASES = 2**22
"""Numbers in a block's constant, if it has a bias for every window. If they were more, windows with the same mask are
computed together, and the constant has a bias for each kind of window."""


def prepare(model: Model, image_size: Pair, fuses: bool = True) -> Model:
    """Copies a model in the form for export.

    Args:
        model: A model of this package, or one of another library around `Swinv2Backbone`.
        image_size: Size (height, width) in pixels of the images that the copy takes.
        fuses: Whether the runtime has a fast kernel for attention and for root mean square norms, and finds the norms;
            otherwise attention is two products and a softmax.

    Returns:
        The copy, in evaluation mode, on the CPU, in fp32 or, if the model is, in fp64.

    Raises:
        UsageError: A product is not a plain layer of torch, for instance because LoRA adapts it.
    """
    copied = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    if next(copied.parameters()).dtype != torch.float64:
        copied = copied.float()
    for name, module in list(copied.named_modules()):
        if not isinstance(module, (Swinv2Model, Swinv2Backbone)):
            continue
        _refuse_other_layers(module, name)
        embeddings: Any = module.embeddings
        embeddings.patch_embeddings = ExportedPatches(embeddings.patch_embeddings)
        layers = module.encoder.layers
        for index, grid in enumerate(module.config.map_sizes(image_size)):
            stage: Any = layers[index]
            layers[index] = ExportedStage(stage, grid, fuses)
    return copied


def _refuse_other_layers(network: nn.Module, place: str) -> None:
    """Raises an error unless the weights of attention can be read from plain layers."""
    for name, module in network.named_modules():
        if isinstance(module, CosineWindowAttention):
            for layer in ("query", "key", "value"):
                kind = type(getattr(module, layer))
                if kind is not nn.Linear:
                    path = ".".join(part for part in (place, name, layer) if part)
                    raise UsageError(
                        f"{path} is {kind.__module__}.{kind.__name__}, not torch.nn.Linear, and cannot be exported; "
                        "merge adapters first: model.merge_and_unload()."
                    )


class ExportedPatches(nn.Module):
    """`PatchEmbeddings` without the choice of a memory format, which is left to the runtime."""

    def __init__(self, patches: PatchEmbeddings) -> None:
        super().__init__()
        self.patches = patches

    def forward(self, pixel_values: Tensor, backend: str) -> Tensor:
        """See `PatchEmbeddings.forward`."""
        return self.patches.projection(self.patches.pad(pixel_values)).permute(0, 2, 3, 1)


class Order(nn.Module):
    """Puts the tokens of a map into another order.

    Args:
        wanted: For each place, the token of the map that comes there; -1 for a token of zeros.
        current: The order that the tokens have now, a permutation.
    """

    index: Tensor

    def __init__(self, wanted: Tensor, current: Tensor) -> None:
        super().__init__()
        place = torch.empty_like(current)
        place[current] = torch.arange(len(current))
        is_padding = wanted < 0
        index = torch.where(is_padding, len(current), place[wanted.clamp(min=0)])
        self.pads = bool(is_padding.any())
        self.moves = len(index) != len(current) or not torch.equal(index, torch.arange(len(index)))
        self.register_buffer("index", index)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, places, C) of tokens (B, L, C)."""
        if self.pads:
            tokens = F.pad(tokens, (0, 0, 0, 1))
        return tokens.index_select(1, self.index) if self.moves else tokens


class ExportedAttention(nn.Module):
    """`Attention` for tokens that are in the order of the windows.

    Args:
        block: The block.
        plan: The windows of its map.
        fuses: See `prepare`.
    """

    scale: Tensor

    def __init__(self, block: SwinTransformerBlock, plan: WindowPlan, fuses: bool) -> None:
        super().__init__()
        self.fuses = fuses
        attention = block.attention.self
        self.query, self.key, self.value = attention.query, attention.key, attention.value
        self.output = block.attention.output
        self.heads = attention.num_heads
        self.head_dim = attention.query.out_features // attention.num_heads
        self.tokens, self.windows = plan.tokens, math.prod(plan.counts)
        # The norm scales to the length sqrt(head_dim).
        self.register_buffer("scale", attention.scale().view(-1, 1, 1) / self.head_dim)
        device = self.scale.device
        bias = expand_bias(attention.bias_table(torch.zeros(1, device=device), EAGER), plan.window)
        masks = [None if kind.is_single_region else kind.hidden_pairs(device) for kind in plan.kinds]
        counts = [kind.count for kind in plan.kinds]
        self.is_masked = any(mask is not None for mask in masks)
        biases = [bias if mask is None else bias.masked_fill(mask, HIDDEN) for mask in masks]
        self.by_kind = self.is_masked and self.windows * bias.numel() > MOST_BIASES
        if self.is_masked and not self.by_kind:
            biases = [torch.cat([each.repeat(count, 1, 1) for each, count in zip(biases, counts, strict=True)])]
            counts = [self.windows]
        self.counts = counts if self.by_kind else [self.windows]
        for index in range(len(self.counts)):
            self.register_buffer(f"bias{index}", biases[index][None].contiguous())

    def forward(self, tokens: Tensor) -> Tensor:
        """Attends inside every window of tokens (B, windows * T, C)."""
        query, key, value = (self._split(layer(tokens)) for layer in (self.query, self.key, self.value))
        query = self._normalise(query).transpose(-3, -2) * self.scale
        key, value = self._normalise(key).transpose(-3, -2), value.transpose(-3, -2)
        if not self.is_masked:
            attended = self._attend(query, key, value, self._bias(0))
        elif not self.by_kind:
            # Every window has its own bias: as heads, they are an axis of the constant.
            query, key, value = (each.flatten(1, 2) for each in (query, key, value))
            attended = self._attend(query, key, value, self._bias(0))
            attended = attended.unflatten(1, (self.windows, self.heads))
        else:
            parts = zip(*(each.split(self.counts, 1) for each in (query, key, value)), strict=True)
            attended = torch.cat([self._attend_kind(index, *part) for index, part in enumerate(parts)], 1)
        attended = attended.transpose(-3, -2)
        return self.output(attended.reshape(-1, self.windows * self.tokens, self.heads * self.head_dim))

    def _bias(self, index: int) -> Tensor:
        """The bias of one kind of window, or of all windows."""
        return getattr(self, f"bias{index}")

    def _split(self, projected: Tensor) -> Tensor:
        """Projected tokens (B, windows * T, C) as windows (B, windows, T, heads, head_dim); without a mask, all windows
        of all images are alike, and stand on one axis."""
        windows = (-1, self.windows) if self.is_masked else (-1,)
        return projected.reshape(*windows, self.tokens, self.heads, self.head_dim)

    def _normalise(self, vectors: Tensor) -> Tensor:
        """Scales vectors along the last axis to the length sqrt(head_dim); a zero vector stays zero."""
        mean_square, smallest = vectors.square().mean(-1, keepdim=True), SMALLEST_NORM**2 / self.head_dim
        # A sum is what runtimes recognise as a norm. The optimiser of ONNX graphs takes so small a summand for zero and
        # removes it.
        at_least = mean_square + smallest if self.fuses else mean_square.clamp(min=smallest)
        return vectors * torch.rsqrt(at_least)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Attention of vectors (..., heads, T, head_dim)."""
        if self.fuses:
            return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        return (query @ key.transpose(-2, -1) + bias).softmax(-1) @ value

    def _attend_kind(self, index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention in the windows of one kind (B, windows, heads, T, head_dim)."""
        query, key, value = (each.flatten(0, 1) for each in (query, key, value))
        attended = self._attend(query, key, value, self._bias(index))
        return attended.unflatten(0, (-1, self.counts[index]))


class ExportedBlock(nn.Module):
    """`SwinTransformerBlock` for tokens that are in the order of its windows; if it has padding tokens, for tokens in
    the order of the map.

    Args:
        block: The block.
        grid: Size (height, width) of the map in tokens.
        fuses: See `prepare`.
    """

    def __init__(self, block: SwinTransformerBlock, grid: Pair, fuses: bool) -> None:
        super().__init__()
        plan = block.attention.self.geometry.plan(grid)
        by_rows = torch.arange(grid[0] * grid[1])
        in_windows = order_of_windows(plan)
        is_padded = plan.padded_grid != plan.grid
        self.order = by_rows if is_padded else in_windows
        self.to_windows, self.from_windows = (nn.Identity(), nn.Identity())
        if is_padded:
            self.to_windows = Order(in_windows, by_rows)
            places = torch.empty_like(by_rows)
            places[in_windows[in_windows >= 0]] = (in_windows >= 0).nonzero()[:, 0]
            self.from_windows = Order(places, torch.arange(len(in_windows)))
        self.attention = ExportedAttention(block, plan, fuses)
        self.layernorm_before, self.layernorm_after = block.layernorm_before, block.layernorm_after
        self.intermediate, self.output = block.intermediate, block.output
        self.layernorm_extra = block.layernorm_extra

    def forward(self, tokens: Tensor) -> Tensor:
        """Runs the block on tokens (B, L, C) in `order`."""
        attended = self.from_windows(self.attention(self.to_windows(tokens)))
        tokens = tokens + self.layernorm_before(attended)
        return self.layernorm_extra(tokens + self.layernorm_after(self.output(self.intermediate(tokens))))


def order_of_windows(plan: WindowPlan) -> Tensor:
    """The tokens of a map, numbered row by row, in the order of its windows, kind by kind; -1 for padding tokens."""
    height, width = plan.grid
    numbers = torch.arange(height * width).view(1, height, width, 1) + 1
    shifted = windows.shift(windows.pad(numbers, plan), plan) - 1
    tiles = windows.partition(shifted, plan.window).view(*plan.counts, plan.tokens)
    return torch.cat([tiles[kind.place].flatten() for kind in plan.kinds])


class ExportedStage(nn.Module):
    """`Stage` for maps of one size.

    Args:
        stage: The stage.
        grid: Size (height, width) of its map in tokens.
        fuses: See `prepare`.
    """

    def __init__(self, stage: Stage, grid: Pair, fuses: bool) -> None:
        super().__init__()
        self.grid = grid
        own: list[Any] = list(stage.blocks)
        blocks = [ExportedBlock(block, grid, fuses) for block in own]
        by_rows = torch.arange(grid[0] * grid[1])
        orders = [by_rows, *(block.order for block in blocks)]
        self.blocks = nn.ModuleList(blocks)
        self.moves = nn.ModuleList(Order(block.order, orders[index]) for index, block in enumerate(blocks))
        self.to_rows = Order(by_rows, orders[-1])
        merging = stage.downsample
        self.merging = None if merging is None else ExportedMerging(merging, grid, orders[-1])

    def forward(self, x: Tensor, backend: str, output_attentions: bool = False) -> tuple[Any, ...]:
        """See `Stage.forward`; there are no attention weights."""
        tokens = x.flatten(1, 2)
        for move, block in zip(self.moves, self.blocks, strict=True):
            tokens = block(move(tokens))
        before = after = views_of(self.to_rows(tokens), self.grid)
        if self.merging is not None:
            after = views_of(self.merging(tokens), self.merging.grid)
        return before, after


class ExportedMerging(nn.Module):
    """`PatchMerging` for tokens in any order.

    Args:
        merging: The merging.
        grid: Size (height, width) of the map in tokens.
        order: The order of the tokens.
    """

    def __init__(self, merging: PatchMerging, grid: Pair, order: Tensor) -> None:
        super().__init__()
        self.grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
        numbers = torch.arange(grid[0] * grid[1]).view(grid) + 1
        even = F.pad(numbers, (0, grid[1] % 2, 0, grid[0] % 2)) - 1
        # Down the columns first, then across, as `PatchMerging`.
        self.order = Order(even.unflatten(1, (-1, 2)).unflatten(0, (-1, 2)).permute(0, 2, 3, 1).flatten(), order)
        self.reduction, self.norm = merging.reduction, merging.norm

    def forward(self, tokens: Tensor) -> Tensor:
        """Merges tokens (B, L, C) to tokens (B, L / 4, 2 C), row by row."""
        quarters = self.order(tokens)
        return self.norm(self.reduction(quarters.reshape(-1, self.grid[0] * self.grid[1], 4 * tokens.shape[-1])))


def views_of(tokens: Tensor, grid: Sequence[int]) -> Views:
    """The views of a map for callers, each made from the tokens (B, H * W, C): no runtime follows gradients."""
    feature_map = tokens.unflatten(1, tuple(grid))
    return Views(tokens, feature_map.permute(0, 3, 1, 2), feature_map)
