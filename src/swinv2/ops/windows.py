"""Windows of a map: their positions and regions, partitioning and merging.

In: maps (B, H, W, ...) of images or (B, frames, H, W, ...) of videos, and integers. Out: windows (N, T, ...) of T
tokens, and maps. Everything here is a pure function of the integers of a plan, for any number of axes; the text speaks
of images.

The order is: pad the map to whole windows at its bottom and right, shift it cyclically up and left, cut it. After the
shift, a window can contain tokens that are not neighbours in the image, because the map's top edge follows its bottom
edge. A window is divided into regions of neighbours, and attention does not cross regions. The region of a token is the
pair (region of its row, region of its column).

Source: Liu et al., Swin Transformer (arXiv 2103.14030), section 3.2 and figure 4; for padding, transformers'
`Swinv2Layer.maybe_pad`; for videos, Liu et al., Video Swin Transformer (arXiv 2106.13230), section 3.2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2.lengths import Lengths

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

    Attributes:
        spans: The windows along each axis.
    """

    spans: tuple[Span, ...]

    @property
    def is_single_region(self) -> bool:
        """Whether every token of the window may attend to every other token."""
        return all(len(set(span.regions)) == 1 for span in self.spans)

    @property
    def place(self) -> tuple[slice, ...]:
        """Where the windows are among those of the map, along each axis."""
        return tuple(slice(span.start, span.stop) for span in self.spans)

    @property
    def count(self) -> int:
        """Number of windows."""
        return math.prod(span.stop - span.start for span in self.spans)

    def hidden_pairs(self, device: torch.device) -> Tensor:
        """The mask of one window.

        Returns:
            Boolean (T, T), True for pairs of tokens in different regions.
        """
        region = torch.zeros(1, dtype=torch.long, device=device)
        for span in self.spans:
            region = (region[:, None] * 3 + torch.tensor(span.regions, device=device)).flatten()
        return region[:, None] != region[None, :]


@dataclass(frozen=True)
class WindowPlan:
    """The windows of a map, as integers.

    Args:
        grid: Size of the map in tokens along each axis: (height, width), or (frames, height, width).
        window: Size of a window in tokens. It may be larger than the map.
        shift: Cyclic shift in tokens, less than the window; () means none.
        mask_padding: Whether padding tokens are hidden from the tokens of the map. Padding frames always are: so a
            video of equal frames gives the answer of one frame, whatever its length.
    """

    grid: Lengths
    window: Lengths
    shift: Lengths = ()
    mask_padding: bool = False

    def __post_init__(self) -> None:
        if not self.shift:
            object.__setattr__(self, "shift", (0,) * len(self.window))
        if not len(self.grid) == len(self.window) == len(self.shift):
            raise ValueError(f"grid {self.grid}, window {self.window} and shift {self.shift} must have as many axes.")
        if any(not 0 <= shift < window for shift, window in zip(self.shift, self.window, strict=True)):
            raise ValueError(f"shift {self.shift} must be at least 0 and less than the window {self.window}.")

    @property
    def numbers(self) -> list[int]:
        """The plan as a list of integers; `of_numbers` is the inverse."""
        return [*self.grid, *self.window, *self.shift, int(self.mask_padding)]

    @classmethod
    def of_numbers(cls, numbers: Sequence[int]) -> "WindowPlan":
        """The plan with these `numbers`."""
        axes = len(numbers) // 3
        grid, window, shift = (tuple(numbers[start : start + axes]) for start in range(0, 3 * axes, axes))
        return cls(grid, window, shift, bool(numbers[-1]))

    @property
    def kinds(self) -> tuple[WindowKind, ...]:
        """All kinds of window, in the order of their windows; together they contain every window once."""
        # Cached, because every attention needs them. (A cached_property has a lock, which torch.compile cannot trace.)
        if "_kinds" not in self.__dict__:
            kinds = tuple(map(WindowKind, product(*map(self.spans, range(len(self.grid))))))
            object.__setattr__(self, "_kinds", kinds)
        return self.__dict__["_kinds"]

    @property
    def counts(self) -> Lengths:
        """Number of windows along each axis."""
        # No negative numbers: some converters of traced graphs round their quotients differently.
        return tuple((length + window - 1) // window for length, window in zip(self.grid, self.window, strict=True))

    @property
    def padded_grid(self) -> Lengths:
        """Size of the map padded to whole windows."""
        return tuple(count * window for count, window in zip(self.counts, self.window, strict=True))

    @property
    def tokens(self) -> int:
        """Number T of tokens in a window."""
        return math.prod(self.window)

    def hides_padding(self, axis: int) -> bool:
        """Whether padding along an axis is hidden; see `mask_padding`. Height and width are the last two axes."""
        return self.mask_padding or axis < len(self.grid) - 2

    def spans(self, axis: int) -> list[Span]:
        """Groups the windows along an axis into spans of equal regions."""
        size, padded, window, shift = self.grid[axis], self.padded_grid[axis], self.window[axis], self.shift[axis]
        count, hides_padding = self.counts[axis], self.hides_padding(axis)

        def region(position: int) -> int:
            """The region of a position of the shifted map, along the axis."""
            token = (position + shift) % padded
            if hides_padding and token >= size:
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
            hidden[kind.place] = kind.hidden_pairs(device)
        return hidden.flatten(0, -3)


def pad(feature_map: Tensor, plan: WindowPlan, value: Tensor | None = None) -> Tensor:
    """Pads a map (B, *grid, *rest) to whole windows, at its bottom and right (and its last frames).

    Args:
        feature_map: The map.
        plan: Its plan.
        value: The numbers of a padding token, of shape `rest`; zeros if None.
    """
    if plan.grid == plan.padded_grid:
        return feature_map
    axes = len(plan.grid)
    rest = feature_map.shape[1 + axes :]
    margins = [0, 0] * len(rest)
    for length, padded_length in zip(reversed(plan.grid), reversed(plan.padded_grid), strict=True):
        margins += [0, padded_length - length]
    padded = F.pad(feature_map, margins)
    if value is None:
        return padded
    is_padding = torch.zeros(1, *[1] * axes, *[1] * len(rest), dtype=torch.bool, device=feature_map.device)
    for axis, (length, padded_length) in enumerate(zip(plan.grid, plan.padded_grid, strict=True)):
        is_beyond = torch.arange(padded_length, device=feature_map.device) >= length
        is_padding = is_padding | is_beyond.view(-1, *[1] * (axes - 1 - axis), *[1] * len(rest))
    return torch.where(is_padding, value, padded)


def crop(feature_map: Tensor, plan: WindowPlan) -> Tensor:
    """Removes the padding of `pad`."""
    if plan.padded_grid == plan.grid:
        return feature_map
    return feature_map[(slice(None), *map(slice, plan.grid))]


def shift(feature_map: Tensor, plan: WindowPlan) -> Tensor:
    """Shifts a padded map cyclically up and left."""
    return _roll(feature_map, [-length for length in plan.shift])


def unshift(feature_map: Tensor, plan: WindowPlan) -> Tensor:
    """Undoes `shift`."""
    return _roll(feature_map, plan.shift)


def _roll(feature_map: Tensor, shift: Sequence[int]) -> Tensor:
    """Shifts a map cyclically down and right."""
    return torch.roll(feature_map, tuple(shift), tuple(range(1, 1 + len(shift)))) if any(shift) else feature_map


def partition(feature_map: Tensor, window: Lengths) -> Tensor:
    """Cuts a map of whole windows (B, *grid, *rest) into windows (B * windows, T, *rest), row by row."""
    axes = len(window)
    grid, rest = feature_map.shape[1 : 1 + axes], feature_map.shape[1 + axes :]
    sizes = [part for length, side in zip(grid, window, strict=True) for part in (length // side, side)]
    tiles = feature_map.reshape(feature_map.shape[0], *sizes, *rest)
    order = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), *range(1 + 2 * axes, tiles.ndim)]
    return tiles.permute(order).reshape(-1, math.prod(window), *rest)


def merge(windows: Tensor, window: Lengths, grid: Lengths) -> Tensor:
    """Joins windows (B * windows, T, *rest) to maps (B, *grid, *rest); undoes `partition`."""
    axes, rest = len(window), windows.shape[2:]
    tiles = windows.reshape(-1, *(length // side for length, side in zip(grid, window, strict=True)), *window, *rest)
    order = [
        0,
        *(axis for each in range(1, 1 + axes) for axis in (each, axes + each)),
        *range(1 + 2 * axes, tiles.ndim),
    ]
    return tiles.permute(order).reshape(-1, *grid, *rest)
