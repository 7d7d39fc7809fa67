"""Checks that a configuration agrees with the tensors and tables of a file, and with the sizes from the caller.

In: a configuration, and what it must agree with. Out: nothing, or an error that names both values. This module finds no
size by itself.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from swinv2.config import StageSpec, Swinv2Config
from swinv2.convert.dialects.rules import Buffer
from swinv2.convert.dialects.squares import are_equivalent
from swinv2.convert.sizes.buffers import make_table
from swinv2.convert.sizes.metadata import SizeHints
from swinv2.errors import UsageError
from swinv2.lengths import as_pair, in_words

_TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Absolute tolerance of stored coordinates, by type; 1e-5 for wider types."""


def check_fields(config: Swinv2Config, fields: Mapping[str, Any], source: str) -> None:
    """Checks that a configuration agrees with the fields that shapes show.

    Args:
        config: The configuration.
        fields: The fields that shapes show.
        source: Source of the configuration, for the message.

    Raises:
        UsageError: Fields differ; the message names them.
    """
    differing: list[str] = []
    for name, value in fields.items():
        stated: Any = getattr(config, name)
        if name in ("num_labels", "norm_targets") or stated == value:
            continue
        if name == "patch_size" and as_pair(name, stated) == as_pair(name, value):
            continue
        if name == "mlp_ratio" and int(stated * config.embed_dim) == round(value * config.embed_dim):
            continue
        if name == "encoder_stride" and math.prod(as_pair(name, stated)) == value**2:
            continue
        differing.append(f"{name} is {stated!r} there and {value!r} in the tensors")
    if differing:
        raise UsageError(f"{source} and the weights do not belong together: {'; '.join(differing)}.")


def check_given(config: Swinv2Config, given: SizeHints) -> None:
    """Checks that the sizes from the caller agree with the configuration from a config.json.

    Raises:
        UsageError: A size differs.
    """
    stated = SizeHints(config.image_size, config.window_size, config.pretrained_window_sizes).checked(
        len(config.depths)
    )
    for name, value in vars(given).items():
        # The same windows in another notation are no contradiction.
        is_spelled_otherwise = name == "window_size" and value is not None and are_equivalent(config, value)
        if value not in (None, getattr(stated, name)) and not is_spelled_otherwise:
            raise UsageError(
                f"the model's config.json says that it was trained with {name} {getattr(stated, name)}, but {value} "
                "was given. Leave the option out; to change the model, use --image-size and --window-size."
            )


def check_buffers(config: Swinv2Config, buffers: Sequence[Buffer], sources: Mapping[str, str]) -> None:
    """Checks every number of every table in a file against the table that the configuration gives.

    Args:
        config: The configuration.
        buffers: The tables.
        sources: Sources of image size, window and pre-training windows, for the message.

    Raises:
        UsageError: A table differs, or the block has no such table.
    """
    stages = config.stages()
    for buffer in buffers:
        spec = stages[buffer.stage]
        if buffer.kind == "key bias":
            if bool(buffer.tensor.any()):
                raise UsageError(
                    f"{buffer.name} is not zero, but keys have no bias in Swin Transformer V2. The file is damaged, or "
                    "of another network."
                )
        elif not _is_made_of(buffer, spec):
            shift = f"shifted by {in_words(spec.shift)}" if any(spec.shift) and buffer.block % 2 else "not shifted"
            raise UsageError(
                f"{buffer.name} is not the table for windows of {in_words(spec.window)}, {shift}, on a map of "
                f"{in_words(spec.grid)} tokens, and a position bias learned in {in_words(spec.learned_window)} "
                f"({'; '.join(f'{size}: {source}' for size, source in sources.items())}). One of these sizes is wrong, "
                "or the file is damaged or of another network."
            )


def _is_made_of(buffer: Buffer, spec: StageSpec) -> bool:
    """Whether a table of the file is the table of a stage."""
    found, tokens = buffer.tensor, math.prod(spec.window)
    windows = math.prod(-(-length // side) for length, side in zip(spec.grid, spec.window, strict=True))
    numbers = {
        "coordinates": 2 * math.prod(2 * side - 1 for side in spec.window),
        "pairs": tokens**2,
        "regions": windows * tokens**2,
    }
    # Checked before the table is computed: with nonsensical sizes it would not fit into memory.
    expected = make_table(buffer.kind, spec, buffer.block) if found.numel() == numbers[buffer.kind] else None
    if expected is None:
        return False
    values = found.double().flatten()
    if 1 in spec.window:
        # In a window of one token the authors' code divides zero by zero.
        values = values.nan_to_num(0.0)
    return torch.allclose(values, expected.double().flatten(), rtol=0, atol=_TOLERANCE.get(found.dtype, 1e-5))
