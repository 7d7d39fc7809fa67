"""Recognises the network of a set of tensors: dialect, class, sizes.

In: tensors under a library's names, data that is stored with them, and sizes that the caller gives. Out: the same
tensors under our names, and the configuration of the network; or an error that names every tensor that is missing,
unknown or of the wrong shape. Channels, blocks and heads are read from shapes here; `resolve.py` finds image size and
windows. This module knows no file.
"""

import itertools
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swinv2.config import Swinv2Config
from swinv2.convert.dialects.microsoft import MICROSOFT, SIMMIM
from swinv2.convert.dialects.mmpretrain import MMPRETRAIN
from swinv2.convert.dialects.rules import MODEL, Dialect, Reading, read, their_name
from swinv2.convert.dialects.timm import TIMM
from swinv2.convert.dialects.torchvision import TORCHVISION
from swinv2.convert.dialects.transformers import TRANSFORMERS
from swinv2.convert.files import Weights
from swinv2.convert.hints import SizeHints
from swinv2.convert.resolve import resolve_sizes
from swinv2.errors import UsageError
from swinv2.heads import Swinv2ForImageClassification, Swinv2ForMaskedImageModeling
from swinv2.model import Swinv2Model, Swinv2PreTrainedModel

DIALECTS: tuple[Dialect, ...] = (TRANSFORMERS, TIMM, MICROSOFT, SIMMIM, TORCHVISION, MMPRETRAIN)
"""All dialects that are read. If two know the same number of names, the first is used; their rules then agree."""

NORM_TARGETS = 47
"""Side of the square that the authors used to normalise the targets of their SimMIM models."""

_OTHERS = (
    (
        r"relative_position_bias_table",
        "they are of the first Swin Transformer (a table of position biases); this package is for Swin Transformer V2",
    ),
    (r"\.meta_mlp\.", "they are of timm's swinv2_cr, which is not the published Swin Transformer V2"),
)
_BLOCK = re.compile(rf"{re.escape(MODEL)}encoder\.layers\.(\d+)\.blocks\.(\d+)\.(.+)")
"""Our name of a tensor in a block: stage, block, and the rest of the name."""
_MOST_STAGES = 12
"""More stages than any network has, since channels double from stage to stage."""


@dataclass
class Recognised:
    """A recognised network.

    Attributes:
        reading: The tensors under our names, and the tensors that were left out because they follow from sizes.
        model_class: Model class for these tensors.
        config: The configuration.
        sources: The source of image size, window and pre-training windows.
        notes: What was left out of the file, assumptions and further notes, in sentences.
    """

    reading: Reading
    model_class: type[Swinv2PreTrainedModel]
    config: Swinv2Config
    sources: dict[str, str]
    notes: list[str]


def recognise(weights: Weights, given: SizeHints | None = None) -> Recognised:
    """Recognises a network.

    Args:
        weights: The tensors, and the data that is stored with them.
        given: Sizes of the training that the caller gives.

    Raises:
        UsageError: The network is not a Swin Transformer V2; a tensor is missing, unknown or of the wrong shape (the
            message names each); two sources of a size contradict each other; or no source shows a size.
    """
    reading = _read_names(weights.tensors)
    model_class = _model_class_of(reading.tensors)
    fields = _read_shapes(reading, model_class, _count_blocks(reading))
    config, sources, assumptions = resolve_sizes(weights, reading, fields, given or SizeHints())
    shapes = _shapes_of(model_class, config)
    for name, tensor in reading.tensors.items():
        if name in shapes and tensor.shape != shapes[name]:
            difference = f"{list(tensor.shape)}, expected {list(shapes[name])}"
            reading.misshapen.setdefault(reading.their_names[name], difference)
    reason = _why_unfit(reading, shapes)
    if reason:
        raise UsageError(reason)
    notes = [*weights.notes, *assumptions]
    if reading.left_out:
        notes.append(
            f"{reading.dialect.title} sets the key biases to zero before each use, so the key biases other than zero "
            f"in {', '.join(reading.left_out)} have no effect there; they were left out."
        )
    if reading.dialect is SIMMIM:
        notes.append(
            f"norm_targets is {NORM_TARGETS}, as in the authors' configuration of SimMIM for Swin V2. The tensors do "
            "not show it; it changes only the loss."
        )
    return Recognised(reading, model_class, config, sources, notes)


def _read_names(tensors: Mapping[str, Tensor]) -> Reading:
    """Gives the tensors our names, by the rules of the dialect that knows most of their names."""
    for pattern, reason in _OTHERS:
        telling = next((name for name in tensors if re.search(pattern, name)), None)
        if telling is not None:
            raise UsageError(f"these weights cannot be converted: {reason} ({telling}).")
    reading = min((read(dialect, tensors) for dialect in DIALECTS), key=lambda reading: len(reading.unknown))
    if 2 * len(reading.unknown) > len(tensors):
        examples = ", ".join(sorted(tensors)[:5])
        raise UsageError(
            f"these {len(tensors)} tensors are not a Swin Transformer V2 with the names of transformers, timm, "
            f"torchvision, mmpretrain or the authors ({examples}{' ...' * (len(tensors) > 5)})."
        )
    return reading


def _model_class_of(tensors: Mapping[str, Tensor]) -> type[Swinv2PreTrainedModel]:
    """The model class for these tensors, chosen by the head."""
    if any(name.startswith("decoder.") for name in tensors):
        return Swinv2ForMaskedImageModeling
    if any(name.startswith("classifier.") for name in tensors):
        return Swinv2ForImageClassification
    return Swinv2Model


def _count_blocks(reading: Reading) -> list[int]:
    """Counts the blocks of each stage by their names, before memory is allocated for them; they may have no gap."""
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


def _read_shapes(reading: Reading, model_class: type[Swinv2PreTrainedModel], depths: Sequence[int]) -> dict[str, Any]:
    """Reads fields of a configuration from the shapes of tensors."""
    tensors = reading.tensors
    fields: dict[str, Any] = {
        "depths": list(depths),
        "qkv_bias": any(name.endswith("query.bias") for name in tensors),
        "use_absolute_embeddings": f"{MODEL}embeddings.position_embeddings" in tensors,
        "extra_norm_period": _extra_norm_period(tensors, depths),
    }

    def shape_of(pattern: str, rank: int) -> list[int]:
        """The shape of a tensor with such a name; raises an error if there is none of this rank."""
        matching = [name for name in tensors if re.fullmatch(pattern, name)]
        for name in matching:
            if tensors[name].ndim == rank:
                return list(tensors[name].shape)
        for name in matching:
            reading.misshapen[reading.their_names[name]] = f"{list(tensors[name].shape)}, expected {rank} lengths"
        # The error names everything else that is missing too. Names do not depend on sizes: the smallest network with
        # these depths has all of them.
        stages = len(depths)
        smallest = Swinv2Config(image_size=4 << stages, embed_dim=1, num_heads=[1] * stages, window_size=1, **fields)
        raise UsageError(_why_unfit(reading, _shapes_of(model_class, smallest)))

    layers = rf"{re.escape(MODEL)}encoder\.layers\."
    embed_dim, channels, *patch = shape_of(rf"{re.escape(MODEL)}embeddings\.patch_embeddings\.projection\.weight", 4)
    scale = r"\.blocks\.\d+\.attention\.self\.logit_scale"
    heads = [shape_of(rf"{layers}{index}{scale}", 3)[0] for index in range(len(depths))]
    hidden = shape_of(rf"{layers}0\.blocks\.\d+\.intermediate\.dense\.weight", 2)[0]
    sizes: dict[str, Any] = {
        "embed_dim": embed_dim,
        "num_channels": channels,
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "num_heads": heads,
        "mlp_ratio": hidden / embed_dim if hidden % embed_dim else float(hidden // embed_dim),
    }
    if "classifier.weight" in tensors:
        sizes["num_labels"] = shape_of(r"classifier\.weight", 2)[0]
    if "decoder.0.weight" in tensors:
        sizes["encoder_stride"] = math.isqrt(shape_of(r"decoder\.0\.weight", 4)[0] // channels)
    if reading.dialect is SIMMIM:
        sizes["norm_targets"] = NORM_TARGETS
    return fields | sizes


def _extra_norm_period(names: Iterable[str], depths: Sequence[int]) -> int:
    """The period of the extra norms, read from the names of tensors; 0 if there are none."""
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


def _shapes_of(model_class: type[Swinv2PreTrainedModel], config: Swinv2Config) -> dict[str, torch.Size]:
    """To recognise a network: our names of all its tensors, with their shapes."""
    with torch.device("meta"):
        network = model_class(config)
    prefix = MODEL if model_class is Swinv2Model else ""
    return {prefix + name: tensor.shape for name, tensor in network.state_dict().items()}


def _why_unfit(reading: Reading, expected: Collection[str]) -> str:
    """One sentence on all tensors that do not fit a network with the expected names; empty if all fit."""
    missing = [their_name(reading.dialect, name, reading.stages) for name in expected if name not in reading.tensors]
    unknown = [*reading.unknown, *(theirs for ours, theirs in reading.their_names.items() if ours not in expected)]
    parts = {
        "missing": dict.fromkeys(missing),
        "unknown": sorted(set(unknown)),
        "under two names": reading.twice,
        "of the wrong shape": [f"{name} ({reason})" for name, reason in reading.misshapen.items()],
    }
    found = [f"{what}: {', '.join(names)}" for what, names in parts.items() if names]
    if not found:
        return ""
    return (
        f"the weights are not those of one complete Swin Transformer V2; {'; '.join(found)}. No tensor is ignored or "
        "replaced: repair the file, or use the file from which it was made."
    )
