"""Recognises the network of a set of tensors: dialect, sizes, windows.

In: tensors under a library's names, data that is stored with them, and sizes that the caller gives. Out: the same
tensors under our names, and the configuration of the network. Sizes are read from shapes; windows from tables in the
file, from a configuration beside it, or from a published name. If a size is not found, an error asks for it: it is
never guessed. This module knows no file.
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


@dataclass
class Recognised:
    """A recognised network.

    Attributes:
        dialect: Dialect of the tensors.
        model_class: Model class for these tensors.
        reading: The tensors under our names, and the tensors that were left out because they follow from sizes.
        sizes: The configuration, and the sources of its sizes.
        notes: Further notes, in sentences.
    """

    dialect: Dialect
    model_class: type[Swinv2PreTrainedModel]
    reading: Reading
    sizes: ResolvedSizes
    notes: list[str]


def choose_dialect(names: Sequence[str]) -> Dialect:
    """Finds the dialect that knows most of the names.

    Raises:
        UsageError: No dialect knows half of the names, or they are of another network.
    """
    for pattern, reason in _OTHERS:
        telling = [name for name in names if re.search(pattern, name)]
        if telling:
            raise UsageError(f"these weights cannot be converted: {reason} ({telling[0]}).")
    known = {dialect.name: dialect.count_known(names) for dialect in DIALECTS}
    best = max(DIALECTS, key=lambda dialect: known[dialect.name])
    if 2 * known[best.name] < len(names) or not known[best.name]:
        examples = ", ".join(sorted(names)[:5])
        raise UsageError(
            f"these {len(names)} tensors are not a Swin Transformer V2 with the names of transformers, timm, "
            f"torchvision, mmpretrain or the authors ({examples}{' ...' * (len(names) > 5)})."
        )
    return best


def recognise(weights: Weights, given: SizeHints | None = None) -> Recognised:
    """Recognises a network.

    Args:
        weights: The tensors, and the data that is stored with them.
        given: Sizes of the training that the caller gives.

    Raises:
        UsageError: The network is not a Swin Transformer V2; a tensor is missing, unknown or of the wrong shape (the
            message names each); two sources of a size contradict each other; or no source shows a size.
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
            f"{dialect.title} sets the key biases to zero before each use, so the key biases other than zero in "
            f"{', '.join(reading.left_out)} have no effect there; they were left out."
        )
    if dialect is SIMMIM:
        notes.append(
            f"norm_targets is {NORM_TARGETS}, as in the authors' configuration of SimMIM for Swin V2. The tensors do "
            "not show it; it changes only the loss."
        )
    return notes
