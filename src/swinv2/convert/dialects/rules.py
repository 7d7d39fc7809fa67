"""Renames tensors by a dialect's table, in both directions.

In: a dialect's table, and tensors under the dialect's names or under ours. Out: the same tensors under the other names.
A name without a rule is returned as unknown, never dropped. This module knows no dialect, no file and no configuration.

A template is a name with placeholders: `{stage}` and `{block}` are numbers, `{merge}` is the number of a stage that
ends with a merging (any but the last), `{last}` is the number of the last stage, `{part}` is "weight" or "bias". If a
dialect counts differently, the template has `{stage+1}` or `{2*stage+1}`.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor

from swinv2.config import Swinv2Config
from swinv2.errors import UsageError

MODEL = "swinv2."
"""Prefix of our names of the network; the names of a head do not have it."""
BLOCK = "swinv2.encoder.layers.{stage}.blocks.{block}."
"""Prefix of our names of a block."""
MERGE = "swinv2.encoder.layers.{merge}.downsample."
"""Prefix of our names of a merging."""

Placeholders = dict[str, str]
"""The values of the placeholders of a template: decimal numbers, "weight" or "bias"."""

_PLACEHOLDER = re.compile(r"\{(?:(\d+)\*)?([a-z]+)(?:\+(\d+))?\}")


def match(template: str, name: str, last: int) -> Placeholders | None:
    """The values of a dialect's placeholders in the name of a tensor; None if the name does not fit the template.

    Args:
        template: The template (see the module).
        name: The name of a tensor.
        last: Number of the last stage, for `{last}` and `{merge}`.
    """
    pattern, placeholders = _compile_template(template)
    found = pattern.fullmatch(name)
    if found is None:
        return None
    values: Placeholders = {}
    for value, (factor, placeholder, offset) in zip(found.groups(), placeholders, strict=True):
        if placeholder != "part":
            number, rest = divmod(int(value) - offset, factor)
            is_in_network = {"merge": number < last, "last": number == last}.get(placeholder, True)
            if rest or number < 0 or not is_in_network:
                return None
            value = str(number)
        values[placeholder] = value
    return values


@cache
def _compile_template(template: str) -> tuple[re.Pattern[str], list[tuple[int, str, int]]]:
    """The regular expression for names that fit a template of a dialect, and the template's placeholders."""
    pattern, placeholders, end = "", [], 0
    for found in _PLACEHOLDER.finditer(template):
        pattern += re.escape(template[end : found.start()])
        # At most four digits: no network has more blocks, and counting to a long number could take forever.
        pattern += "(weight|bias)" if found[2] == "part" else r"(0|[1-9]\d{0,3})"
        placeholders.append((int(found[1] or 1), found[2], int(found[3] or 0)))
        end = found.end()
    return re.compile(pattern + re.escape(template[end:])), placeholders


def fill(template: str, values: Placeholders, last: int) -> str:
    """The tensor's name with these values in place of a template's placeholders; `last` is as in `match`."""

    def value_of_placeholder(found: re.Match[str]) -> str:
        value = str(last) if found[2] == "last" else values[found[2]]
        return value if found[2] == "part" else str(int(value) * int(found[1] or 1) + int(found[3] or 0))

    return _PLACEHOLDER.sub(value_of_placeholder, template)


@dataclass(frozen=True)
class Change:
    """A conversion between a dialect's tensor and ours, in both directions.

    Attributes:
        apart: Makes our tensors, one for each of our names, of a dialect's tensor.
        together: Makes a dialect's tensor of ours.
        leaves_out: Whether `apart` leaves out numbers that are not zero.
    """

    apart: Callable[[Tensor], Sequence[Tensor]]
    together: Callable[[Sequence[Tensor]], Tensor]
    leaves_out: Callable[[Tensor], bool] = lambda tensor: False


def _split_qkv(tensor: Tensor) -> tuple[Tensor, ...]:
    """Divides a dialect's joined tensor of queries, keys and values."""
    if tensor.ndim == 0 or tensor.shape[0] % 3:
        raise ValueError(f"{list(tensor.shape)} cannot be divided into three equal parts")
    return tensor.chunk(3)


def _split_bias(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Our biases of queries and values, from a dialect's joined bias."""
    query, _, value = _split_qkv(tensor)
    return query, value


def _join_bias(tensors: Sequence[Tensor]) -> Tensor:
    """A dialect's joined bias from our biases of queries and values; the keys get zeros."""
    query, value = tensors
    return torch.cat([query, torch.zeros_like(query), value])


def _merging_from_unfold(tensor: Tensor) -> tuple[Tensor]:
    """The matrix of a merging, from the column order of torch's Unfold to ours."""
    if tensor.ndim != 2 or tensor.shape[1] % 4:
        raise ValueError(f"{list(tensor.shape)} is not a matrix with a multiple of 4 columns")
    rows, columns = tensor.shape
    # The columns are ordered by channel, row, column of the neighbour in Unfold; by column, row, channel in ours.
    return (tensor.view(rows, columns // 4, 2, 2).permute(0, 3, 2, 1).reshape(rows, columns),)


def _merging_to_unfold(tensors: Sequence[Tensor]) -> Tensor:
    """The matrix of a merging, from our column order to that of torch's Unfold."""
    rows, columns = tensors[0].shape
    return tensors[0].view(rows, 2, 2, columns // 4).permute(0, 3, 2, 1).reshape(rows, columns)


SAME = Change(lambda tensor: (tensor,), lambda tensors: tensors[0])
"""The tensor unchanged."""
JOINED = Change(_split_qkv, lambda tensors: torch.cat(list(tensors)))
"""One matrix for queries, keys and values; three of ours."""
QUERY_VALUE = Change(_split_bias, _join_bias, lambda tensor: bool(_split_qkv(tensor)[1].any()))
"""One bias for queries, keys and values, whose part for the keys is set to zero before each use; two of ours."""
UNFOLDED = Change(_merging_from_unfold, _merging_to_unfold)
"""The matrix of a merging with the four neighbours in the order of torch's Unfold."""


@dataclass(frozen=True)
class Rule:
    """One row of a dialect's table.

    Attributes:
        theirs: Template of the dialect's name.
        ours: Templates of our names, in the order of the change.
        change: The conversion of the tensor.
        read_as: Templates of further names that the dialect has; they are read but never written.
    """

    theirs: str
    ours: tuple[str, ...]
    change: Change = SAME
    read_as: tuple[str, ...] = ()

    def under(self, *prefixes: str) -> "Rule":
        """The same rule with a prefix before the dialect's name; names with further prefixes are read only."""
        first, *others = [prefix + name for prefix in prefixes for name in (self.theirs, *self.read_as)]
        return replace(self, theirs=first, read_as=tuple(others))


@dataclass(frozen=True)
class Dialect:
    """The names of a library's tensors.

    Attributes:
        name: Name of the dialect.
        title: Name of the library in sentences.
        rules: The learned tensors.
        buffers: Stored tensors that are not learned: kind ("coordinates", "pairs", "regions", "key bias") and template.
            All are read, and the first of each kind is written.
        flat_pairs: Whether the pair indices are a vector instead of a matrix.
        writes_buffers: Whether today's files of the library contain the buffers; if not, buffers are read only.
        takes_any_size: Whether the library chooses windows and shifts for each image, so the weights have no size.
        windows_by_stage: Whether each stage may have its own window size, apart from clipping.
        limits: Functions that return, as sentences, what the library cannot compute of a configuration. A model with
            such a limit is not written.
    """

    name: str
    title: str
    rules: tuple[Rule, ...]
    limits: tuple[Callable[[Swinv2Config], Iterable[str]], ...]
    buffers: tuple[tuple[str, str], ...]
    flat_pairs: bool = False
    writes_buffers: bool = False
    takes_any_size: bool = False
    windows_by_stage: bool = False


@dataclass(frozen=True)
class Buffer:
    """A tensor in a file that is not learned.

    Attributes:
        name: Name in the file.
        kind: "coordinates", "pairs", "regions" or "key bias".
        stage, block: Stage and block, counted from 0.
        tensor: The values.
    """

    name: str
    kind: str
    stage: int
    block: int
    tensor: Tensor


@dataclass
class Reading:
    """The tensors of a file under our names.

    Attributes:
        dialect: Dialect of the names in the file.
        stages: Number of stages.
        tensors: The learned tensors.
        their_names: The name in the file for each of our names.
        buffers: The tensors that are not learned.
        unknown: Names without a rule.
        twice: Second names of tensors that the file has under two names.
        misshapen: Names of tensors that cannot be converted, with the reason.
        left_out: Names of tensors whose conversion left out numbers that are not zero.
    """

    dialect: Dialect
    stages: int
    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    their_names: dict[str, str] = field(default_factory=dict[str, str])
    buffers: list[Buffer] = field(default_factory=list[Buffer])
    unknown: list[str] = field(default_factory=list[str])
    twice: list[str] = field(default_factory=list[str])
    misshapen: dict[str, str] = field(default_factory=dict[str, str])
    left_out: list[str] = field(default_factory=list[str])


def read(dialect: Dialect, tensors: Mapping[str, Tensor]) -> Reading:
    """Gives the tensors of a file our names, by the rules of a dialect. Without blocks, all names are unknown."""
    rows: list[tuple[str, Rule | str]] = [
        (text, rule) for rule in dialect.rules for text in (rule.theirs, *rule.read_as)
    ]
    rows += [(template, kind) for kind, template in dialect.buffers]
    in_blocks = (match(template, name, 0) for template, _ in rows if "{block}" in template for name in tensors)
    reading = Reading(dialect, max((int(values["stage"]) + 1 for values in in_blocks if values), default=0))
    last = reading.stages - 1
    for name, tensor in tensors.items():
        matches = ((row, match(template, name, last)) for template, row in rows if reading.stages)
        row, values = next(((row, values) for row, values in matches if values is not None), (None, {}))
        if row is None:
            reading.unknown.append(name)
        elif isinstance(row, str):
            reading.buffers.append(Buffer(name, row, int(values["stage"]), int(values["block"]), tensor))
        else:
            try:
                chunks = row.change.apart(tensor)
                if row.change.leaves_out(tensor):
                    reading.left_out.append(name)
            except ValueError as error:
                reading.misshapen[name] = str(error)
                chunks = [tensor] * len(row.ours)
            for template, chunk in zip(row.ours, chunks, strict=True):
                our_name = fill(template, values, last)
                if our_name in reading.tensors:
                    reading.twice.append(name)
                reading.tensors[our_name] = chunk
                reading.their_names[our_name] = name
    return reading


def write(dialect: Dialect, tensors: Mapping[str, Tensor], stages: int) -> dict[str, Tensor]:
    """Gives our tensors, which all have `swinv2.` before the names of the network, a dialect's names.

    Raises:
        UsageError: The dialect has no name for a tensor; the message names each.
    """
    written: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name in tensors:
        found = _rule_of(dialect, name, stages - 1)
        if found is None:
            unknown.append(name)
            continue
        rule, values = found
        theirs = fill(rule.theirs, values, stages - 1)
        if theirs not in written:
            ours = [tensors[fill(template, values, stages - 1)] for template in rule.ours]
            written[theirs] = rule.change.together(ours)
    if unknown:
        raise UsageError(
            f"{dialect.title} has no name for {len(unknown)} of the tensors: {', '.join(sorted(unknown))}."
        )
    return written


def their_name(dialect: Dialect, name: str, stages: int) -> str:
    """A dialect's name of one of our tensors; our name if the dialect has none."""
    found = _rule_of(dialect, name, stages - 1)
    return name if found is None else fill(found[0].theirs, found[1], stages - 1)


def _rule_of(dialect: Dialect, name: str, last: int) -> tuple[Rule, Placeholders] | None:
    """The rule that has one of our names, and the values of its placeholders."""
    for rule in dialect.rules:
        for template in rule.ours:
            values = match(template, name, last)
            if values is not None:
                return rule, values
    return None
