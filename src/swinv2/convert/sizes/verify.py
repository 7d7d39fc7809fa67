"""Whether a configuration is that of the file: held to the tables in it, to its tensors and to what was given.

In: a configuration, and what it must agree with. Out: nothing, or a refusal that names both sides. This module finds no
size by itself.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from swinv2.config import StageSpec, Swinv2Config
from swinv2.convert.dialects.rules import Buffer, Dialect
from swinv2.convert.dialects.squares import are_equivalent
from swinv2.convert.sizes.buffers import Seen, odd, regions
from swinv2.convert.sizes.metadata import SizeHints
from swinv2.errors import UsageError
from swinv2.lengths import Pair, as_pair


def check_fields(config: Swinv2Config, fields: Mapping[str, Any], source: str) -> None:
    """Holds a configuration to the fields that shapes show.

    Args:
        config: The configuration.
        fields: What the tensors show.
        source: Where the configuration is from.

    Raises:
        UsageError: They differ; the message says in what.
    """
    differing: list[str] = []
    for name, value in fields.items():
        said: Any = getattr(config, name)
        if name in ("num_labels", "norm_targets") or said == value:
            continue
        if name == "patch_size" and as_pair(name, said) == as_pair(name, value):
            continue
        if name == "mlp_ratio" and int(said * config.embed_dim) == round(value * config.embed_dim):
            continue
        if name == "encoder_stride" and math.prod(as_pair(name, said)) == value**2:
            continue
        if name in ("depths", "num_heads") and list(said) == list(value):
            continue
        differing.append(f"{name} is {said!r} there and {value!r} in the tensors")
    if differing:
        raise UsageError(f"{source} and the weights do not belong together: {'; '.join(differing)}.")


def check_given(config: Swinv2Config, given: SizeHints) -> None:
    """Makes sure that what the caller says of the sizes is what config.json says.

    Raises:
        UsageError: It is something else.
    """
    claims = {
        "image_size": (given.image_size, as_pair("image_size", config.image_size)),
        "window_size": (
            # Another spelling of the same windows is no contradiction.
            None if given.window_size is None or are_equivalent(config, given.window_size) else given.window_size,
            config.window_size,
        ),
        "pretrained_window_sizes": (_as_pairs(given.pretrained), _as_pairs(config.pretrained_window_sizes)),
    }
    for name, (claim, said) in claims.items():
        if claim not in (None, said):
            raise UsageError(
                f"the model has a config.json, which says what it was trained with ({name} {said}); "
                f"{claim} was given. Leave it out; --image-size and --window-size change a model."
            )


def _as_pairs(windows: Sequence[int | Pair] | None) -> list[Pair] | None:
    return None if windows is None else [as_pair("pretrained_window_sizes", one, 0) for one in windows]


def check_tables(
    config: Swinv2Config, seen: Sequence[Seen], buffers: Sequence[Buffer], dialect: Dialect, source: str
) -> None:
    """Holds a configuration to what the tables of a file show, and every mask to what the configuration makes of it.

    Args:
        config: The configuration.
        seen: What the tables show, stage by stage.
        buffers: The tables themselves.
        dialect: Whose they are.
        source: Where image size and windows are from.

    Raises:
        UsageError: They do not agree.
    """
    for spec, stage in zip(config.stages(), seen, strict=False):
        where = f"stage {spec.index + 1}"
        if stage.window is not None and stage.window != spec.window:
            raise UsageError(
                f"the tables in the file are of windows of {stage.window[0]} x {stage.window[1]} in {where}; "
                f"image size and window from {source} make them {spec.window[0]} x {spec.window[1]}. One is wrong."
            )
        if stage.pretrained is not None and stage.pretrained != spec.learned_window:
            raise UsageError(
                f"the coordinates in the file are of a position bias learned in windows of {stage.pretrained[0]} x "
                f"{stage.pretrained[1]} in {where}; pre-training windows from {source} say {spec.learned_window[0]} x "
                f"{spec.learned_window[1]}. One of the two is wrong."
            )
        if stage.windows is not None:
            expected = math.prod(-(-spec.grid[axis] // spec.window[axis]) for axis in range(2))
            if not any(spec.shift) or stage.windows != expected:
                raise UsageError(
                    f"the mask in the file is of {stage.windows} windows in {where}; image size and window from "
                    f"{source} make {expected}, {'shifted' if any(spec.shift) else 'not shifted'}. One is wrong."
                )
    _check_masks(config, [buffer for buffer in buffers if buffer.kind == "regions"], dialect)


def _check_masks(config: Swinv2Config, masks: Sequence[Buffer], dialect: Dialect) -> None:
    """Every shifted block has its mask, number by number, and no other block has one; or the file has none at all."""
    stages = config.stages()
    for mask in masks:
        spec = stages[mask.stage]
        if not mask.block % 2:
            raise odd(mask, "a mask on a block that is not shifted")
        expected = regions(_filled(spec), spec.window, spec.shift)
        if mask.tensor.shape != expected.shape or not torch.equal(mask.tensor.to(expected.dtype), expected):
            raise odd(
                mask,
                f"not the mask of windows of {spec.window[0]} x {spec.window[1]} shifted by {spec.shift[0]} x "
                f"{spec.shift[1]}",
            )
    have = {(mask.stage, mask.block) for mask in masks}
    shifted = [
        (spec.index, block) for spec in stages if any(spec.shift) for block in range(1, len(spec.extra_norms), 2)
    ]
    without = [place for place in shifted if place not in have]
    if dialect.knows_regions and have and without:
        raise UsageError(
            f"the file has masks for some shifted blocks and not for others: none in "
            f"{', '.join(f'block {block} of stage {stage + 1}' for stage, block in without)}, counted from 0. "
            "It is damaged, or was put together from two."
        )


def _filled(spec: StageSpec) -> Pair:
    """Size of a map after it was filled up to whole windows."""
    down, across = (-(-length // side) * side for length, side in zip(spec.grid, spec.window, strict=True))
    return down, across
