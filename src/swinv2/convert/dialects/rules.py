"""Renames tensors by a dialect's table, in both directions.

In: a dialect's table, and tensors under the dialect's names or under ours. Out: the same tensors under the other names.
A name without a rule is returned as unknown, never dropped. This module knows no dialect, no file and no configuration.

A template is a name with placeholders: `{stage}` and `{block}` are numbers, `{merge}` is the number of a stage that
ends with a merging (any but the last), `{last}` is the number of the last stage, `{part}` is "weight" or "bias". If a
dialect counts differently, the template has `{stage+1}` or `{2*stage+1}`.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

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


@dataclass(frozen=True)
class Template:
    """A name with placeholders.

    Attributes:
        text: The template (see the module).
        last: Number of the last stage, for `{last}` and `{merge}`.
    """

    text: str
    last: int

    def match(self, name: str) -> Placeholders | None:
        """The values of the placeholders in a name; None if the name does not fit the template."""
        pattern, placeholders = self._compiled
        found = pattern.fullmatch(name)
        if found is None:
            return None
        values: Placeholders = {}
        for value, (factor, placeholder, offset) in zip(found.groups(), placeholders, strict=True):
            if placeholder != "part":
                number, rest = divmod(int(value) - offset, factor)
                if rest or number < 0 or (placeholder == "merge" and number >= self.last):
                    return None
                value = str(number)
            if values.setdefault(placeholder, value) != value:
                return None
        return values

    @cached_property
    def _compiled(self) -> tuple[re.Pattern[str], list[tuple[int, str, int]]]:
        return _compile(self.text.replace("{last}", str(self.last)))

    def fill(self, values: Placeholders) -> str:
        """The name with these values in place of the placeholders."""

        def value_of(found: re.Match[str]) -> str:
            value = values[found[2]]
            return value if found[2] == "part" else str(int(value) * int(found[1] or 1) + int(found[3] or 0))

        return _PLACEHOLDER.sub(value_of, self.text.replace("{last}", str(self.last)))


@cache
def _compile(text: str) -> tuple[re.Pattern[str], list[tuple[int, str, int]]]:
    pattern, placeholders, end = "", [], 0
    for found in _PLACEHOLDER.finditer(text):
        pattern += re.escape(text[end : found.start()])
        # At most four digits: no network has more blocks, and counting to a long number could take forever.
        pattern += "(weight|bias)" if found[2] == "part" else r"(0|[1-9]\d{0,3})"
        placeholders.append((int(found[1] or 1), found[2], int(found[3] or 0)))
        end = found.end()
    return re.compile(pattern + re.escape(text[end:])), placeholders


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


def _thirds(tensor: Tensor) -> tuple[Tensor, ...]:
    if tensor.ndim == 0 or tensor.shape[0] % 3:
        raise ValueError(f"{list(tensor.shape)} cannot be divided into three equal parts")
    return tensor.chunk(3)


def _without_keys(tensor: Tensor) -> tuple[Tensor, Tensor]:
    query, _, value = _thirds(tensor)
    return query, value


def _with_zero_keys(tensors: Sequence[Tensor]) -> Tensor:
    query, value = tensors
    return torch.cat([query, torch.zeros_like(query), value])


def _fold(tensor: Tensor) -> tuple[Tensor]:
    if tensor.ndim != 2 or tensor.shape[1] % 4:
        raise ValueError(f"{list(tensor.shape)} is not a matrix with a multiple of 4 columns")
    rows, columns = tensor.shape
    # The columns are ordered by channel, row, column of the neighbour in Unfold; by column, row, channel in ours.
    return (tensor.view(rows, columns // 4, 2, 2).permute(0, 3, 2, 1).reshape(rows, columns),)


def _unfold(tensors: Sequence[Tensor]) -> Tensor:
    rows, columns = tensors[0].shape
    return tensors[0].view(rows, 2, 2, columns // 4).permute(0, 3, 2, 1).reshape(rows, columns)


SAME = Change(lambda tensor: (tensor,), lambda tensors: tensors[0])
"""The tensor unchanged."""
JOINED = Change(_thirds, lambda tensors: torch.cat(list(tensors)))
"""One matrix for queries, keys and values; three of ours."""
QUERY_VALUE = Change(_without_keys, _with_zero_keys, lambda tensor: bool(_thirds(tensor)[1].any()))
"""One bias for queries, keys and values, whose part for the keys is set to zero before each use; two of ours."""
UNFOLDED = Change(_fold, _unfold)
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
        buffers: Stored tensors that are not learned: kind ("coordinates", "pairs", "regions", "key bias") and
            templates.
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
    buffers: tuple[tuple[str, tuple[str, ...]], ...] = ()
    flat_pairs: bool = False
    writes_buffers: bool = False
    takes_any_size: bool = False
    windows_by_stage: bool = False

    def count_stages(self, names: Sequence[str]) -> int:
        """Number of stages, counted in the names of blocks; 0 without blocks."""
        templates = [
            Template(text, 0) for rule in self.rules for text in (rule.theirs, *rule.read_as) if "{block}" in text
        ]
        matches = [template.match(name) or {} for name in names for template in templates]
        return max((int(match.get("stage", -1)) + 1 for match in matches), default=0)

    def rows(self, stages: int) -> list[tuple[Template, "Rule | str"]]:
        """The templates of all names that the dialect reads, with the rule of a learned tensor or a buffer's kind."""
        learned = [(Template(text, stages - 1), rule) for rule in self.rules for text in (rule.theirs, *rule.read_as)]
        return [*learned, *((Template(text, stages - 1), kind) for kind, texts in self.buffers for text in texts)]

    def count_known(self, names: Sequence[str]) -> int:
        """Number of names that the dialect knows; 0 without blocks."""
        stages = self.count_stages(names)
        rows = self.rows(stages) if stages else []
        return sum(_find(rows, name) is not None for name in names)


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


@dataclass(frozen=True)
class Reading:
    """Tensors of a dialect under our names.

    Attributes:
        tensors: The learned tensors.
        their_names: The dialect's name for each of our names.
        buffers: The tensors that are not learned.
        unknown: Names without a rule.
        twice: Second names of tensors that the file has under two names.
        misshapen: Names of tensors that cannot be converted, with the reason.
        left_out: Names of tensors whose conversion left out numbers that are not zero.
        stages: Number of stages.
    """

    tensors: dict[str, Tensor]
    their_names: dict[str, str]
    buffers: list[Buffer]
    unknown: list[str]
    twice: list[str]
    misshapen: dict[str, str]
    left_out: list[str]
    stages: int


def read(dialect: Dialect, tensors: Mapping[str, Tensor]) -> Reading:
    """Gives a dialect's tensors, all those of a file, our names."""
    stages = dialect.count_stages(list(tensors))
    reading = Reading({}, {}, [], [], [], {}, [], stages)
    rows = dialect.rows(stages)
    for name, tensor in tensors.items():
        found = _find(rows, name)
        if found is None:
            reading.unknown.append(name)
            continue
        row, placeholders = found
        if isinstance(row, Rule):
            _take(reading, name, tensor, row, placeholders)
        else:
            reading.buffers.append(Buffer(name, row, int(placeholders["stage"]), int(placeholders["block"]), tensor))
    return reading


def _find(rows: Sequence[tuple[Template, Rule | str]], name: str) -> tuple[Rule | str, Placeholders] | None:
    """The first row whose template fits a name, and the values of the placeholders."""
    for template, row in rows:
        placeholders = template.match(name)
        if placeholders is not None:
            return row, placeholders
    return None


def _take(reading: Reading, name: str, tensor: Tensor, rule: Rule, placeholders: Placeholders) -> None:
    try:
        chunks = rule.change.apart(tensor)
        leaves_out = rule.change.leaves_out(tensor)
    except ValueError as error:
        reading.misshapen[name] = str(error)
        chunks, leaves_out = [tensor] * len(rule.ours), False
    if leaves_out:
        reading.left_out.append(name)
    for template, chunk in zip(rule.ours, chunks, strict=True):
        our_name = Template(template, reading.stages - 1).fill(placeholders)
        if our_name in reading.tensors:
            reading.twice.append(name)
        reading.tensors[our_name] = chunk
        reading.their_names[our_name] = name


def write(dialect: Dialect, tensors: Mapping[str, Tensor], stages: int) -> dict[str, Tensor]:
    """Gives our tensors a dialect's names.

    Args:
        dialect: The dialect.
        tensors: Our tensors, with `swinv2.` before the names of the network.
        stages: Number of stages.

    Returns:
        The dialect's learned tensors, in the order of ours.

    Raises:
        UsageError: The dialect has no name for a tensor; the message names each.
    """
    rules = [([Template(text, stages - 1) for text in rule.ours], rule) for rule in dialect.rules]
    written: dict[str, Tensor] = {}
    done: set[str] = set()
    for name in tensors:
        for templates, rule in rules:
            placeholders = templates[0].match(name)
            if placeholders is None:
                continue
            names = [template.fill(placeholders) for template in templates]
            if all(part in tensors for part in names):
                written[Template(rule.theirs, stages - 1).fill(placeholders)] = rule.change.together(
                    [tensors[part] for part in names]
                )
                done.update(names)
                break
    unknown = sorted(set(tensors) - done)
    if unknown:
        raise UsageError(f"{dialect.title} has no name for {len(unknown)} of the tensors: {', '.join(unknown)}.")
    return written


def their_name(dialect: Dialect, name: str, stages: int) -> str:
    """A dialect's name of one of our tensors; our name if the dialect has none."""
    for rule in dialect.rules:
        for template in rule.ours:
            placeholders = Template(template, stages - 1).match(name)
            if placeholders is not None:
                return Template(rule.theirs, stages - 1).fill(placeholders)
    return name
