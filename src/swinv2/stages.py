"""The sizes of a stage, as accounts of a model show them.

In: a `StageSpec`. Out: plain numbers under the names that people read; an account adds what is its own.
"""

from dataclasses import dataclass
from typing import Any

from swinv2.config import StageSpec
from swinv2.lengths import Pair


@dataclass(frozen=True)
class StageSizes:
    """One stage, for an image of the configured size.

    Attributes:
        name: "stage1" and so on.
        blocks: Number of blocks.
        channels: Channels of its map.
        heads: Attention heads.
        grid: Size (height, width) of its map in tokens.
        window: Size (height, width) of its windows in tokens.
        shift: Shift (height, width) of every second block in tokens.
    """

    name: str
    blocks: int
    channels: int
    heads: int
    grid: Pair
    window: Pair
    shift: Pair


def sizes_of(spec: StageSpec) -> dict[str, Any]:
    """The fields of `StageSizes` for a stage."""
    return {
        "name": f"stage{spec.index + 1}",
        "blocks": len(spec.drop_path_rates),
        "channels": spec.dim,
        "heads": spec.num_heads,
        "grid": spec.grid,
        "window": spec.window,
        "shift": spec.shift,
    }
