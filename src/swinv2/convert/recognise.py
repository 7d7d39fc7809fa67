"""What network a set of tensors is: dialect, sizes, windows.

In: tensors under a library's names, what is stored with them, and what the caller knows. Out: the same tensors under
our names, and the configuration of the network they belong to. Sizes are read from shapes; windows from what the file
stores of them, from a configuration beside it, or from a published name. What cannot be known is asked for, never
guessed. This module knows no file.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from swinv2.convert.dialects.microsoft import MICROSOFT, SIMMIM
from swinv2.convert.dialects.mmpretrain import MMPRETRAIN
from swinv2.convert.dialects.rules import Dialect, Reading, read
from swinv2.convert.dialects.timm import TIMM
from swinv2.convert.dialects.torchvision import TORCHVISION
from swinv2.convert.dialects.transformers import TRANSFORMERS
from swinv2.convert.files import Weights
from swinv2.convert.network import check_whole, class_of, count_blocks, read_sizes
from swinv2.convert.sizes.metadata import SizeHints, read_config
from swinv2.convert.sizes.resolve import ResolvedSizes, resolve_sizes
from swinv2.errors import UsageError
from swinv2.model import Swinv2PreTrainedModel

DIALECTS: tuple[Dialect, ...] = (TRANSFORMERS, TIMM, MICROSOFT, SIMMIM, TORCHVISION, MMPRETRAIN)
"""Every dialect that is read. Of two that know equally many names the first is taken; their rules then agree."""

NORM_TARGETS = 47
"""Side of the square by which the authors normalised the targets of their SimMIM models."""

_OTHERS = (
    (
        r"relative_position_bias_table",
        "they are of Swin Transformer in its first version (a table of position biases); this package is of the second",
    ),
    (r"\.meta_mlp\.", "they are of timm's swinv2_cr, another network than Swin Transformer V2 as published"),
)


@dataclass
class Recognised:
    """A network, and how it was recognised.

    Attributes:
        dialect: Whose names the tensors had.
        model_class: The class of this package that has these tensors.
        reading: The tensors under our names, and what was left out since it follows from sizes.
        sizes: The configuration, and how its windows were found.
        notes: What else is worth knowing, in sentences.
    """

    dialect: Dialect
    model_class: type[Swinv2PreTrainedModel]
    reading: Reading
    sizes: ResolvedSizes
    notes: list[str]


def choose_dialect(names: Sequence[str]) -> Dialect:
    """Finds the dialect that knows most of the names.

    Raises:
        UsageError: None knows half of them, or they are of another network.
    """
    for pattern, reason in _OTHERS:
        telling = [name for name in names if re.search(pattern, name)]
        if telling:
            raise UsageError(f"these weights cannot be converted: {reason} ({telling[0]}).")
    known = {dialect.name: dialect.count_known(names) for dialect in DIALECTS}
    best = max(DIALECTS, key=lambda dialect: known[dialect.name])
    if 2 * known[best.name] < len(names) or not known[best.name]:
        some = ", ".join(sorted(names)[:5])
        raise UsageError(
            f"these {len(names)} tensors are no Swin Transformer V2 in the names of transformers, timm, torchvision, "
            f"mmpretrain or the authors ({some}{' ...' * (len(names) > 5)})."
        )
    return best


def recognise(weights: Weights, given: SizeHints | None = None) -> Recognised:
    """Recognises a network.

    Args:
        weights: The tensors, and what is stored with them.
        given: What the caller knows of the sizes it was trained with.

    Raises:
        UsageError: It is no Swin Transformer V2; a tensor is missing, unknown or of the wrong shape (the message names
            each); what the file shows contradicts itself or what was given; or a size is nowhere to be found.
    """
    dialect = choose_dialect(list(weights.tensors))
    reading = read(dialect, weights.tensors)
    fields = read_sizes(dialect, reading, count_blocks(reading))
    if dialect is SIMMIM:
        fields["norm_targets"] = NORM_TARGETS
    stated = read_config(weights.config, dialect, reading.stages)
    sizes = resolve_sizes(dialect, fields, reading.buffers, given or SizeHints(), stated, weights.name)
    check_whole(dialect, reading, sizes.config)
    return Recognised(dialect, class_of(reading.tensors), reading, sizes, sizes.notes + _remarks(dialect, reading))


def _remarks(dialect: Dialect, reading: Reading) -> list[str]:
    """Notes on the tensors, for the report."""
    notes: list[str] = []
    if reading.left_out:
        notes.append(
            f"{dialect.title} sets the key biases to zero before each use, so numbers other than zero in "
            f"{', '.join(reading.left_out)} have no effect there; they were left out."
        )
    if dialect is SIMMIM:
        notes.append(
            f"norm_targets is {NORM_TARGETS}, as in the authors' configuration of SimMIM for Swin V2; the tensors do "
            "not show it, and it matters for the loss only."
        )
    return notes
