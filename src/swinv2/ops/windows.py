"""Windows of a map: their positions and regions, partitioning and merging.

In: maps (B, H, W, ...) and integers. Out: windows (N, T, ...) of T tokens, and maps. Everything here is a pure function
of the integers of a plan.

The order is: pad the map to whole windows at its bottom and right, shift it cyclically up and left, cut it. After the
shift, a window can contain tokens that are not neighbours in the image, because the map's top edge follows its bottom
edge. A window is divided into regions of neighbours, and attention does not cross regions. The region of a token is the
pair (region of its row, region of its column).

Source: Liu et al., Swin Transformer (arXiv 2103.14030), section 3.2 and figure 4; for padding, transformers'
`Swinv2Layer.maybe_pad`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]

_MAIN, _WRAPPED, _PADDING = 0, 1, 2


@dataclass(frozen=True)
class Span:
    """Neighbouring windows along one axis that have the same regions.

    Attributes:
        start: First window.
        stop: One past the last window.
        regions: Region of each token of a window along the axis.
    """

    start: int
    stop: int
    regions: tuple[int, ...]


@dataclass(frozen=True)
class WindowKind:
    """A rectangle of windows that have the same pattern of regions.

    A shifted map has four kinds: inner windows, right edge, bottom edge, corner. Hidden padding can add one along each
    axis.
    """

    rows: Span
    columns: Span

    @property
    def is_single_region(self) -> bool:
        """Whether every token of the window may attend to every other token."""
        return len(set(self.rows.regions)) == 1 and len(set(self.columns.regions)) == 1

    def hidden_pairs(self, device: torch.device) -> Tensor:
        """The mask of one window.

        Returns:
            Boolean (T, T), True for pairs of tokens in different regions.
        """
        rows = torch.tensor(self.rows.regions, device=device)
        columns = torch.tensor(self.columns.regions, device=device)
        region = (rows[:, None] * 3 + columns[None, :]).flatten()
        return region[:, None] != region[None, :]


@dataclass(frozen=True)
class WindowPlan:
    """The windows of a map, as integers.

    Args:
        grid: Size (height, width) of the map in tokens.
        window: Size (height, width) of a window in tokens. It may be larger than the map.
        shift: Cyclic shift (height, width) in tokens, less than the window.
        mask_padding: Whether padding tokens are hidden from the tokens of the map.
    """

    grid: Pair
    window: Pair
    shift: Pair = (0, 0)
    mask_padding: bool = False

    def __post_init__(self) -> None:
        if any(not 0 <= shift < window for shift, window in zip(self.shift, self.window, strict=True)):
            raise ValueError(f"shift {self.shift} must be at least 0 and less than the window {self.window}.")

    @property
    def numbers(self) -> list[int]:
        """The plan as a list of integers; `of_numbers` is the inverse."""
        return [*self.grid, *self.window, *self.shift, int(self.mask_padding)]

    @classmethod
    def of_numbers(cls, numbers: Sequence[int]) -> "WindowPlan":
        """The plan with these `numbers`."""
        height, width, window_height, window_width, down, across, mask_padding = numbers
        return cls((height, width), (window_height, window_width), (down, across), bool(mask_padding))

    @property
    def kinds(self) -> tuple[WindowKind, ...]:
        """All kinds of window, row by row; together they contain every window once."""
        # Cached, because every attention needs them. (A cached_property has a lock, which torch.compile cannot trace.)
        if "_kinds" not in self.__dict__:
            kinds = tuple(WindowKind(rows, columns) for rows, columns in product(self.spans(0), self.spans(1)))
            object.__setattr__(self, "_kinds", kinds)
        return self.__dict__["_kinds"]

    @property
    def counts(self) -> Pair:
        """Number of windows (down, across)."""
        # No negative numbers: some converters of traced graphs round their quotients differently.
        height, width = self.window
        return (self.grid[0] + height - 1) // height, (self.grid[1] + width - 1) // width

    @property
    def padded_grid(self) -> Pair:
        """Size (height, width) of the map padded to whole windows."""
        return self.counts[0] * self.window[0], self.counts[1] * self.window[1]

    @property
    def tokens(self) -> int:
        """Number T of tokens in a window."""
        return self.window[0] * self.window[1]

    def spans(self, axis: int) -> list[Span]:
        """Groups the windows along an axis (0: rows, 1: columns) into spans of equal regions."""
        size, padded, window, shift = self.grid[axis], self.padded_grid[axis], self.window[axis], self.shift[axis]
        count = self.counts[axis]

        def region(position: int) -> int:
            """The region of a position of the shifted map, along the axis."""
            token = (position + shift) % padded
            if self.mask_padding and token >= size:
                return _PADDING
            return _WRAPPED if position >= padded - shift else _MAIN

        def regions_of_window(index: int) -> tuple[int, ...]:
            return tuple(region(index * window + offset) for offset in range(window))

        # Only the last two windows can differ: wrapped tokens fill less than one window, and padding tokens too.
        plain = max(count - 2, 0)
        spans = [Span(0, plain, (_MAIN,) * window)] if plain else []
        for index in range(plain, count):
            if spans and spans[-1].regions == regions_of_window(index):
                spans[-1] = Span(spans[-1].start, index + 1, regions_of_window(index))
            else:
                spans.append(Span(index, index + 1, regions_of_window(index)))
        return spans

    def hidden_pairs(self, device: torch.device) -> Tensor | None:
        """The masks of all windows.

        Returns:
            Boolean (windows, T, T), True for pairs of tokens in different regions; None if every window has a single
            region.
        """
        if all(kind.is_single_region for kind in self.kinds):
            return None
        hidden = torch.zeros(*self.counts, self.tokens, self.tokens, dtype=torch.bool, device=device)
        for kind in self.kinds:
            rows, columns = slice(kind.rows.start, kind.rows.stop), slice(kind.columns.start, kind.columns.stop)
            hidden[rows, columns] = kind.hidden_pairs(device)
        return hidden.flatten(0, 1)


def pad(feature_map: Tensor, plan: WindowPlan, value: Tensor | None = None) -> Tensor:
    """Pads a map (B, H, W, *rest) to whole windows, at its bottom and right.

    Args:
        feature_map: The map.
        plan: Its plan.
        value: The numbers of a padding token, of shape `rest`; zeros if None.
    """
    (height, width), (padded_height, padded_width) = plan.grid, plan.padded_grid
    if (height, width) == (padded_height, padded_width):
        return feature_map
    rest = feature_map.shape[3:]
    margins = [0, 0] * len(rest) + [0, padded_width - width, 0, padded_height - height]
    padded = F.pad(feature_map, margins)
    if value is None:
        return padded
    rows = torch.arange(padded_height, device=feature_map.device)[:, None] >= height
    columns = torch.arange(padded_width, device=feature_map.device)[None, :] >= width
    is_padding = (rows | columns).view(1, padded_height, padded_width, *[1] * len(rest))
    return torch.where(is_padding, value, padded)


def crop(feature_map: Tensor, plan: WindowPlan) -> Tensor:
    """Removes the padding of `pad`."""
    if plan.padded_grid == plan.grid:
        return feature_map
    return feature_map[:, : plan.grid[0], : plan.grid[1]]


def shift(feature_map: Tensor, plan: WindowPlan) -> Tensor:
    """Shifts a padded map cyclically up and left."""
    return torch.roll(feature_map, (-plan.shift[0], -plan.shift[1]), (1, 2)) if any(plan.shift) else feature_map


def unshift(feature_map: Tensor, plan: WindowPlan) -> Tensor:
    """Undoes `shift`."""
    return torch.roll(feature_map, plan.shift, (1, 2)) if any(plan.shift) else feature_map


def partition(feature_map: Tensor, window: Pair) -> Tensor:
    """Cuts a map of whole windows (B, H, W, *rest) into windows (B * windows, T, *rest), row by row."""
    batch, height, width, *rest = feature_map.shape
    tiles = feature_map.reshape(batch, height // window[0], window[0], width // window[1], window[1], *rest)
    return tiles.transpose(2, 3).reshape(-1, window[0] * window[1], *rest)


def merge(windows: Tensor, window: Pair, grid: Pair) -> Tensor:
    """Joins windows (B * windows, T, *rest) to maps (B, H, W, *rest) of size `grid`; undoes `partition`."""
    counts, rest = (grid[0] // window[0], grid[1] // window[1]), windows.shape[2:]
    tiles = windows.reshape(-1, *counts, *window, *rest)
    return tiles.transpose(2, 3).reshape(-1, *grid, *rest)
