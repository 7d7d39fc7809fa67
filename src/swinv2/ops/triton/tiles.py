"""Functions that all kernels use: positions of a window's tokens in the map, and tiles of tokens.

In: pointers, strides and integers. Out: tiles in registers. A tile is consecutive tokens of one window and one head. It
is read from the unshifted map: index arithmetic computes the cyclic shift and the padding.

Arguments in capitals are compile-time constants; CONST is a `Constants`. `plan` is (height and width of the map, number
of windows down and across, shift down and across; and of the frames of a video the same three). `strides` are those of
images, rows, columns, heads and frames. What is about frames is compiled only for videos.
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from swinv2.ops import precision

LOG2_E = tl.constexpr(1.4426950408889634)
SMALLEST_SQUARE = tl.constexpr(precision.SMALLEST_NORM**2)

COUNTS = ("heads", "all_windows", "splits")
"""Arguments that Triton must not specialise: it would compile a kernel again for multiples of 16."""

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, on the CPU."""


@dataclass(frozen=True)
class Constants:
    """What a kernel of window attention is compiled for.

    Kernels use `tl.full` instead of `tl.zeros`, which does not take these attributes as a shape in Triton 3.6.

    Attributes:
        window_frames, window_height, window_width: Size of the windows.
        has_frames: Whether the map is that of a video.
        mask_padding: Whether padding tokens are hidden.
        has_regions: Whether a window has more than one region.
        padded: Whether the map is padded to whole windows.
        head_dim, block_dim: Channels of a head; the same, rounded up to a power of 2.
        block_queries, block_keys: Queries and keys of a tile.
        precise: dtype of sums.
        input_precision: Precision of products in fp32, see `tl.dot`.
        span: See `backward._add_to_table`.
    """

    window_frames: int
    window_height: int
    window_width: int
    has_frames: bool
    mask_padding: bool
    has_regions: bool
    padded: bool
    head_dim: int
    block_dim: int
    block_queries: int
    block_keys: int
    precise: tl.dtype
    input_precision: str
    span: int = 0

    @property
    def tokens(self) -> int:
        """Number of tokens in a window."""
        return self.window_frames * self.window_height * self.window_width

    @property
    def table(self) -> int:
        """Number of entries in the bias table of one head."""
        return (2 * self.window_frames - 1) * (2 * self.window_height - 1) * (2 * self.window_width - 1)

    @property
    def query_tiles(self) -> int:
        """Number of tiles of queries in a window."""
        return -(-self.tokens // self.block_queries)

    @property
    def key_tiles(self) -> int:
        """Number of tiles of keys in a window."""
        return -(-self.tokens // self.block_keys)

    @property
    def uneven(self) -> bool:
        """Whether tiles extend beyond a window."""
        return self.tokens % self.block_queries != 0 or self.tokens % self.block_keys != 0


@triton.jit
def find_task(heads, TILES: tl.constexpr):
    """Head, tile and window of this program, which computes one of TILES tiles."""
    program = tl.program_id(0)
    return program % heads, program // heads % TILES, program // (heads * TILES)


@triton.jit
def multiply(left, right, CONST: tl.constexpr):
    """left @ right, with sums in the dtype of sums."""
    if INTERPRETED:
        # The interpreter stores bf16 as integers and would multiply those.
        left, right = left.to(CONST.precise), right.to(CONST.precise)
    return tl.dot(left, right, input_precision=CONST.input_precision, out_dtype=CONST.precise)


@triton.jit
def rounded(numbers, DTYPE: tl.constexpr):
    """Rounds numbers to the nearest in a dtype."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        # The interpreter truncates.
        bits = numbers.to(tl.float32).to(tl.int32, bitcast=True)
        numbers = (bits + 0x7FFF + (bits >> 16 & 1)).to(tl.float32, bitcast=True)
    return numbers.to(DTYPE)


@triton.jit
def _locate_along(window, offset, windows, shift, WINDOW: tl.constexpr):
    """Positions of a window's tokens in the unshifted map, along one axis."""
    token = window * WINDOW + offset + shift
    return tl.where(token >= windows * WINDOW, token - windows * WINDOW, token)


@triton.jit
def locate(tokens, window, head, plan, CONST: tl.constexpr):
    """Positions of a window's tokens in the map.

    Args:
        tokens: Indices of the tokens in the window.
        window: Index of the window among those of all images.
        head: Index of the head.

    Returns:
        Image, head, rows, columns, whether a token is in the map (not padding), and frames.
    """
    HEIGHT: tl.constexpr = CONST.window_height
    down, across = plan[2], plan[3]
    lines, image = tokens // CONST.window_width, window // (down * across)
    own = tokens < CONST.tokens
    frames = lines * 0
    if CONST.has_frames:
        frames = _locate_along(image % plan[7], lines // HEIGHT, plan[7], plan[8], CONST.window_frames)
        own, lines, image = own & (frames < plan[6]), lines % HEIGHT, image // plan[7]
    rows = _locate_along(window // across % down, lines, down, plan[4], HEIGHT)
    columns = _locate_along(window % across, tokens % CONST.window_width, across, plan[5], CONST.window_width)
    own = own & (rows < plan[0]) & (columns < plan[1])
    return image, head, rows, columns, own, frames


@triton.jit
def _region_along(window, offset, size, windows, shift, WINDOW: tl.constexpr, MASK_PADDING: tl.constexpr):
    """Regions along one axis: 1 for tokens that the shift moved to the other end, 2 for hidden padding, otherwise 0."""
    shifted = window * WINDOW + offset
    region = tl.where(shifted >= windows * WINDOW - shift, 1, 0)
    if MASK_PADDING:
        region = tl.where(_locate_along(window, offset, windows, shift, WINDOW) >= size, 2, region)
    return region


@triton.jit
def _regions(tokens, window, plan, CONST: tl.constexpr):
    """Regions of a window's tokens."""
    HEIGHT: tl.constexpr = CONST.window_height
    WIDTH: tl.constexpr = CONST.window_width
    y, x, down, across = tokens // WIDTH, tokens % WIDTH, plan[2], plan[3]
    frame = y * 0
    if CONST.has_frames:
        layer = window // (down * across) % plan[7]
        # Padding frames are always hidden.
        frame = _region_along(layer, y // HEIGHT, plan[6], plan[7], plan[8], CONST.window_frames, True)
        y = y % HEIGHT
    row = _region_along(window // across % down, y, plan[0], down, plan[4], HEIGHT, CONST.mask_padding)
    column = _region_along(window % across, x, plan[1], across, plan[5], WIDTH, CONST.mask_padding)
    return (frame * 3 + row) * 3 + column


@triton.jit
def _may_be_mixed_along(window, size, windows, shift, WINDOW: tl.constexpr, MASK_PADDING: tl.constexpr):
    """Whether a window extends into another region, along one axis."""
    end = windows * WINDOW
    if MASK_PADDING:
        end = tl.minimum(end, size)
    return (window + 1) * WINDOW > end - shift


@triton.jit
def may_be_mixed(window, plan, CONST: tl.constexpr):
    """Whether a window may have more than one region; most windows have one."""
    MASK_PADDING: tl.constexpr = CONST.mask_padding
    down, across = plan[2], plan[3]
    row = window // across % down
    is_mixed = _may_be_mixed_along(row, plan[0], down, plan[4], CONST.window_height, MASK_PADDING)
    if CONST.has_frames:
        layer = window // (down * across) % plan[7]
        is_mixed = is_mixed | _may_be_mixed_along(layer, plan[6], plan[7], plan[8], CONST.window_frames, True)
    return is_mixed | _may_be_mixed_along(window % across, plan[1], across, plan[5], CONST.window_width, MASK_PADDING)


@triton.jit
def hide(logits, queries, keys, window, mixed, plan, CONST: tl.constexpr):
    """Sets logits to minus infinity for pairs in different regions and for keys beyond the window."""
    if CONST.uneven:
        logits = tl.where((keys < CONST.tokens)[None, :], logits, float("-inf"))
    if CONST.has_regions:  # noqa: SIM102 - known at compile time; `mixed` is known only at run time
        if mixed:
            of_queries, of_keys = _regions(queries, window, plan, CONST), _regions(keys, window, plan, CONST)
            logits = tl.where(of_queries[:, None] == of_keys[None, :], logits, float("-inf"))
    return logits


@triton.jit
def _point_to(feature_map, strides, locations, CONST: tl.constexpr):
    """Pointers to the vectors of tokens, and the mask of valid pointers."""
    image, head, rows, columns, own, frames = locations
    dims = tl.arange(0, CONST.block_dim)
    start = feature_map + image.to(tl.int64) * strides[0] + head * strides[3]
    offsets = rows * strides[1] + columns * strides[2]
    if CONST.has_frames:
        offsets += frames * strides[4]
    pointers = start + (offsets[:, None] + dims[None, :])
    return pointers, own[:, None] & (dims < CONST.head_dim)[None, :]


@triton.jit
def load(feature_map, strides, locations, CONST: tl.constexpr):
    """Loads vectors of tokens; zeros for padding tokens."""
    pointers, mask = _point_to(feature_map, strides, locations, CONST)
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def load_values(v, strides, padded_value, locations, CONST: tl.constexpr):
    """Loads values of tokens; `padded_value` (heads, head_dim) for padding tokens."""
    values = load(v, strides, locations, CONST)
    if CONST.padded:
        dims = tl.arange(0, CONST.block_dim)
        padding = tl.load(padded_value + locations[1] * CONST.head_dim + dims, mask=dims < CONST.head_dim, other=0.0)
        values = tl.where(locations[4][:, None], values, padding[None, :])
    return values


@triton.jit
def store(feature_map, strides, locations, vectors, CONST: tl.constexpr):
    """Writes vectors of tokens, without padding tokens."""
    pointers, mask = _point_to(feature_map, strides, locations, CONST)
    tl.store(pointers, rounded(vectors, feature_map.dtype.element_ty), mask=mask)


@triton.jit
def reciprocal_of_root(squares, DTYPE: tl.constexpr):
    """1 / sqrt(squares), rounded correctly for fp32 and approximate for 16 bits."""
    if tl.float32 == DTYPE:
        return tl.div_rn(1.0, tl.sqrt_rn(squares))
    if tl.float64 == DTYPE:
        return 1.0 / tl.sqrt(squares)
    return tl.rsqrt(squares)


@triton.jit
def reciprocal_norms(vectors, CONST: tl.constexpr):
    """Reciprocal norms of queries or keys; a smaller norm than SMALLEST_NORM is replaced by it."""
    precise = vectors.to(CONST.precise)
    return reciprocal_of_root(tl.maximum(tl.sum(precise * precise, 1), SMALLEST_SQUARE), vectors.dtype)


@triton.jit
def _entries_of(tokens, CONST: tl.constexpr):
    """The terms of tokens in the index of a bias table entry: the entry of a pair is MIDDLE + query term - key term.

    A term is a sum of two: the offset in a run of tokens, and the start of the run, which is the same for all threads.
    """
    # In Triton's layout of products, neighbouring columns of a thread are in one run.
    RUN: tl.constexpr = 8
    WINDOW_WIDTH: tl.constexpr = CONST.window_width
    # In a table of three axes, the rows of the next frame begin so many entries later than they would in one of two.
    gaps = tokens * 0
    if CONST.has_frames:
        TOKENS: tl.constexpr = CONST.window_height * CONST.window_width
        GAP: tl.constexpr = (CONST.window_height - 1) * (2 * CONST.window_width - 1)
        gaps = (tokens.to(tl.uint32) // TOKENS * GAP).to(tl.int32)
    if WINDOW_WIDTH % RUN == 0:
        # runs // RUNS * (2 * WINDOW_WIDTH - 1) + runs % RUNS * RUN, where RUNS = WINDOW_WIDTH // RUN; unsigned numbers
        # are divided faster.
        runs = tokens.to(tl.uint32) // RUN
        return tokens % RUN, (runs * RUN + runs // (WINDOW_WIDTH // RUN) * (WINDOW_WIDTH - 1)).to(tl.int32) + gaps
    return tokens % WINDOW_WIDTH, tokens // WINDOW_WIDTH * (2 * WINDOW_WIDTH - 1) + gaps


@triton.jit
def pair_entries(queries, keys, CONST: tl.constexpr):
    """Index of every pair's entry in the bias table of a head, and whether both tokens are inside the window."""
    own, shared = _entries_of(queries, CONST)
    key_own, key_shared = _entries_of(keys, CONST)
    entries = (own + shared + CONST.table // 2)[:, None] - (key_own + key_shared)[None, :]
    return entries, (queries < CONST.tokens)[:, None] & (keys < CONST.tokens)[None, :]


@triton.jit
def load_bias(bias_table, head, queries, keys, CONST: tl.constexpr):
    """Loads the bias of every pair of tokens, in the dtype of the table; undefined for tokens beyond the window."""
    if CONST.uneven:
        queries, keys = tl.minimum(queries, CONST.tokens - 1), tl.minimum(keys, CONST.tokens - 1)
    own, shared = _entries_of(queries, CONST)
    pointers = (bias_table + head * CONST.table + CONST.table // 2 + (own + shared))[:, None]
    own, shared = _entries_of(keys, CONST)
    pointers = pointers - own[None, :] - shared[None, :]
    if INTERPRETED:
        return tl.load(pointers)
    # Not tl.load: it has its own layout, and Triton would convert tensors between both layouts through shared memory.
    return tl.inline_asm_elementwise(
        "ld.global.nc.f32 $0, [$1];", "=f,l", [pointers.to(tl.int64)], dtype=tl.float32, is_pure=True, pack=1
    )
