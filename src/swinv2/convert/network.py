"""Finds the class and the sizes of a network in its learned tensors, and checks that the network is complete.

In: tensors under our names. Out: fields of a configuration, or an error that names every tensor that is missing,
unknown or of the wrong shape. This module knows no window and no table.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from swinv2.config import Swinv2Config
from swinv2.convert.dialects.rules import MODEL, Dialect, Reading, their_name
from swinv2.errors import UsageError
from swinv2.heads import Swinv2ForImageClassification, Swinv2ForMaskedImageModeling
from swinv2.model import Swinv2Model, Swinv2PreTrainedModel

_BLOCK = re.compile(rf"{re.escape(MODEL)}encoder\.layers\.(\d+)\.blocks\.(\d+)\.(.+)")
"""Our name of a tensor in a block: stage, block, and the rest of the name."""
_MOST_STAGES = 12
"""More stages than any network has, since channels double from stage to stage."""


def count_blocks(reading: Reading) -> list[int]:
    """Counts the blocks of each stage by their names, before memory is allocated for them.

    Raises:
        UsageError: The blocks are not numbered from 0 without a gap; the message names each tensor in other blocks.
    """
    names: dict[tuple[int, int], list[str]] = {}
    for name, theirs in reading.their_names.items():
        found = _BLOCK.fullmatch(name)
        if found is not None:
            names.setdefault((int(found[1]), int(found[2])), []).append(theirs)
    depths: list[int] = []
    while len(depths) < _MOST_STAGES and (len(depths), 0) in names:
        depths.append(next(block for block in itertools.count() if (len(depths), block) not in names))
    whole = {(stage, block) for stage, depth in enumerate(depths) for block in range(depth)}
    stray = [name for place, here in names.items() if place not in whole for name in here]
    stray += [buffer.name for buffer in reading.buffers if (buffer.stage, buffer.block) not in whole]
    if stray:
        raise UsageError(
            f"the blocks in the file are not numbered from 0 without a gap: {', '.join(dict.fromkeys(stray))} "
            f"{'belong' if len(set(stray)) > 1 else 'belongs'} to none of the {len(whole)} blocks before the gap. The "
            "file is damaged, or tensors were added to it."
        )
    return depths


def class_of(tensors: Mapping[str, Tensor]) -> type[Swinv2PreTrainedModel]:
    """The model class for these tensors, chosen by the head."""
    if any(name.startswith("decoder.") for name in tensors):
        return Swinv2ForMaskedImageModeling
    if any(name.startswith("classifier.") for name in tensors):
        return Swinv2ForImageClassification
    return Swinv2Model


def read_sizes(dialect: Dialect, reading: Reading, depths: Sequence[int]) -> dict[str, Any]:
    """Reads fields of a configuration from the shapes of tensors.

    Args:
        dialect: Dialect of the tensors, for the message.
        reading: The tensors.
        depths: Number of blocks of each stage.

    Raises:
        UsageError: A tensor that is needed for a field is missing, or has another rank.
    """
    tensors = reading.tensors

    def shape_of(pattern: str, rank: int) -> list[int]:
        matching = [name for name in tensors if re.fullmatch(pattern, name)]
        fitting = next((name for name in matching if tensors[name].ndim == rank), None)
        if fitting is None:
            # The tensor is missing or wrong, so the error names everything else that is missing too.
            misshapen = {
                reading.their_names[name]: f"{list(tensors[name].shape)}, expected {rank} lengths" for name in matching
            }
            raise _unfit(reading, _missing(dialect, reading, depths), misshapen)
        return list(tensors[fitting].shape)

    layers = rf"{re.escape(MODEL)}encoder\.layers\."
    embed_dim, channels, *patch = shape_of(rf"{re.escape(MODEL)}embeddings\.patch_embeddings\.projection\.weight", 4)
    scale = r"\.blocks\.\d+\.attention\.self\.logit_scale"
    hidden = shape_of(rf"{layers}0\.blocks\.\d+\.intermediate\.dense\.weight", 2)[0]
    fields: dict[str, Any] = {
        "embed_dim": embed_dim,
        "num_channels": channels,
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "depths": list(depths),
        "num_heads": [shape_of(rf"{layers}{index}{scale}", 3)[0] for index in range(len(depths))],
        "mlp_ratio": hidden / embed_dim if hidden % embed_dim else float(hidden // embed_dim),
        "qkv_bias": any(name.endswith("query.bias") for name in tensors),
        "use_absolute_embeddings": f"{MODEL}embeddings.position_embeddings" in tensors,
        "extra_norm_period": _extra_norm_period(tensors, depths),
    }
    if "classifier.weight" in tensors:
        fields["num_labels"] = shape_of(r"classifier\.weight", 2)[0]
    if "decoder.0.weight" in tensors:
        fields["encoder_stride"] = math.isqrt(shape_of(r"decoder\.0\.weight", 4)[0] // channels)
    return fields


def _extra_norm_period(names: Iterable[str], depths: Sequence[int]) -> int:
    found = [_BLOCK.fullmatch(name) for name in names]
    have = {(int(match[1]), int(match[2])) for match in found if match and match[3].startswith("layernorm_extra.")}
    if not have:
        return 0
    period = min(block for _, block in have) + 1
    expected = {(s, b) for s, depth in enumerate(depths) for b in range(depth) if (b + 1) % period == 0}
    if have != expected:
        raise UsageError(
            f"the extra norms on the main path are in the blocks {sorted(have)} (stage, block); expected them at a "
            "fixed period in every stage, or none."
        )
    return period


def _missing(dialect: Dialect, reading: Reading, depths: Sequence[int]) -> list[str]:
    """The dialect's names of missing tensors, if only the depths of the network are known."""
    tensors, stages = reading.tensors, len(depths)
    # Names do not depend on sizes: the smallest network with these depths has all names.
    config = Swinv2Config(
        image_size=4 << stages,
        embed_dim=1,
        depths=list(depths),
        num_heads=[1] * stages,
        window_size=1,
        pretrained_window_sizes=[0] * stages,
        qkv_bias=any(name.endswith("query.bias") for name in tensors),
        use_absolute_embeddings=f"{MODEL}embeddings.position_embeddings" in tensors,
    )
    names = _names_of(class_of(tensors), config)
    return list(dict.fromkeys(their_name(dialect, name, stages) for name in names if name not in tensors))


def _names_of(model_class: type[Swinv2PreTrainedModel], config: Swinv2Config) -> dict[str, torch.Size]:
    """Our names of all tensors of a network, with their shapes."""
    with torch.device("meta"):
        network = model_class(config)
    prefix = MODEL if model_class is Swinv2Model else ""
    return {prefix + name: tensor.shape for name, tensor in network.state_dict().items()}


def check_whole(dialect: Dialect, reading: Reading, config: Swinv2Config) -> None:
    """Checks that names and shapes are those of the network that a configuration builds.

    Args:
        dialect: Dialect of the tensors, for the message.
        reading: The tensors.
        config: The configuration.

    Raises:
        UsageError: Tensors are missing, unknown, duplicate or of the wrong shape; the message names each.
    """
    expected = _names_of(class_of(reading.tensors), config)
    missing = [their_name(dialect, name, reading.stages) for name in expected if name not in reading.tensors]
    unknown = [reading.their_names[name] for name in reading.tensors if name not in expected]
    reading.unknown.extend(dict.fromkeys(unknown))
    misshapen = {
        reading.their_names[name]: f"{list(tensor.shape)}, expected {list(expected[name])}"
        for name, tensor in reading.tensors.items()
        if name in expected and tensor.shape != expected[name] and reading.their_names[name] not in reading.misshapen
    }
    if missing or reading.unknown or reading.twice or misshapen or reading.misshapen:
        raise _unfit(reading, list(dict.fromkeys(missing)), misshapen)


def _unfit(reading: Reading, missing: Sequence[str], misshapen: Mapping[str, str]) -> UsageError:
    """One error that names all tensors that do not fit."""
    parts: list[str] = []
    shapes = {**reading.misshapen, **misshapen}
    if missing:
        parts.append(f"missing: {', '.join(missing)}")
    if reading.unknown:
        parts.append(f"unknown: {', '.join(sorted(reading.unknown))}")
    if reading.twice:
        parts.append(f"under two names: {', '.join(reading.twice)}")
    if shapes:
        parts.append(f"of the wrong shape: {', '.join(f'{name} ({reason})' for name, reason in shapes.items())}")
    return UsageError(
        f"the weights are not those of one complete Swin Transformer V2; {'; '.join(parts)}. No tensor is ignored or "
        "replaced: repair the file, or use the file from which it was made."
    )
