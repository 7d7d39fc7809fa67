"""Finds the image size and the windows of a network's training: each size from its most reliable source.

In: the fields that shapes show, the tables in a file, and the sizes from the caller, a config.json and a name. Out: a
configuration, and the source of each size. If no source shows a size, an error asks for it: it is never guessed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from swinv2.config import Swinv2Config
from swinv2.convert.dialects.rules import Buffer, Dialect
from swinv2.convert.dialects.squares import are_equivalent, with_equivalent_square
from swinv2.convert.files import CONFIG
from swinv2.convert.sizes.buffers import read_tables
from swinv2.convert.sizes.metadata import SizeHints, read_name
from swinv2.convert.sizes.verify import check_buffers, check_fields, check_given
from swinv2.errors import UsageError
from swinv2.lengths import Pair, Windows, as_pair, as_windows, in_words, plain_pair, plain_windows

_TABLES = "the file's own tables"
_IN_WORDS = {"image_size": "image size", "window_size": "window", "pretrained_window_sizes": "pre-training windows"}


@dataclass(frozen=True)
class ResolvedSizes:
    """A configuration, and the sources of its sizes.

    Attributes:
        config: The configuration.
        sources: The source of image size, window and pre-training windows.
        notes: Assumptions, in sentences.
    """

    config: Swinv2Config
    sources: dict[str, str]
    notes: list[str]


def resolve_sizes(
    dialect: Dialect,
    fields: Mapping[str, Any],
    buffers: Sequence[Buffer],
    given: SizeHints,
    stated: Swinv2Config | SizeHints,
    name: str,
) -> ResolvedSizes:
    """Finds image size, window and pre-training windows, and checks that the file agrees with them.

    Args:
        dialect: Dialect of the tensors.
        fields: Fields that shapes show.
        buffers: The tables in the file.
        given: Sizes from the caller.
        stated: Sizes from a config.json. A complete configuration is used unchanged.
        name: Name of the file.

    Raises:
        UsageError: No source shows a size, or two sources contradict each other.
    """
    stages = len(fields["depths"])
    try:
        given = given.checked(stages, "trained_")
    except ValueError as error:
        raise UsageError(str(error)) from error
    if isinstance(stated, SizeHints):
        tables = read_tables(buffers, stages, as_pair("patch_size", fields["patch_size"]))
        resolved = _choose(dialect, fields, tables, given, stated, name)
    else:
        check_fields(stated, fields, CONFIG)
        check_given(stated, given)
        stated.num_labels = fields.get("num_labels", stated.num_labels)
        resolved = ResolvedSizes(stated, dict.fromkeys(_IN_WORDS.values(), CONFIG), [])
    check_buffers(resolved.config, buffers, resolved.sources)
    return resolved


def _choose(
    dialect: Dialect, fields: Mapping[str, Any], tables: SizeHints, given: SizeHints, stated: SizeHints, name: str
) -> ResolvedSizes:
    """Takes each size from its most reliable source; raises an error that asks for a size without a source."""
    stages, notes = len(fields["depths"]), list[str]()
    windows = None if tables.window_size is None else as_windows("window_size", tables.window_size, stages)
    named = read_name(name, stages)
    fitting = named
    if windows is not None:
        if named.image_size is not None and [spec.window for spec in _configure(fields, named).stages()] != [*windows]:
            fitting = SizeHints()
        # One window for all stages; the maps of the last stages clip it.
        largest = max(window[0] for window in windows), max(window[1] for window in windows)
        tables = replace(tables, window_size=plain_windows(windows if dialect.windows_by_stage else [largest]))
    candidates = ((given, "given"), (tables, _TABLES), (stated, CONFIG), (fitting, f"the name {name!r}"))
    found, sources = SizeHints(), dict[str, str]()
    for field, words in _IN_WORDS.items():
        for hints, source in candidates:
            if getattr(found, field) is None and getattr(hints, field) is not None:
                found, sources[words] = replace(found, **{field: getattr(hints, field)}), source
    if found.window_size is None:
        raise UsageError(_ask("window", "--trained-window-size"))
    if found.image_size is None:
        if not dialect.takes_any_size:
            raise UsageError(_ask("image size", "--trained-image-size"))
        size = _smallest_image(windows or found.window_size, fields)
        found = replace(found, image_size=plain_pair(size))
        sources["image size"] = "its windows: the smallest size that clips no window"
        notes.append(
            f"{dialect.title} stores no image size, since it chooses shifts for each image. The image size is set to "
            f"{in_words(size)} pixels, the smallest size at which no stage clips its windows."
        )
    if found.pretrained_window_sizes is None:
        found = replace(found, pretrained_window_sizes=[0] * stages)
        sources["pre-training windows"] = "nothing"
        notes.append(
            "Nothing shows in which windows the position bias was learned. They are assumed to be the windows of the "
            "image size and window above; if that is wrong, give --pretrained-window-sizes."
        )
    config = _configure(fields, found)
    if sources["window"] == _TABLES and dialect.windows_by_stage:
        config = with_equivalent_square(config)
    if named.image_size is not None and not _agrees(named, config):
        notes.append(
            f"The name {name!r} says windows of {named.window_size} at "
            f"{in_words(as_pair('image_size', named.image_size))} pixels. The file does not agree; its sizes are used."
        )
    return ResolvedSizes(config, {words: sources[words] for words in _IN_WORDS.values()}, notes)


def _agrees(named: SizeHints, config: Swinv2Config) -> bool:
    """Whether the sizes from a name are those of a configuration."""
    is_same_size = named.image_size == plain_pair(as_pair("image_size", config.image_size))
    return is_same_size and named.window_size is not None and are_equivalent(config, named.window_size)


def _smallest_image(window_size: Windows, fields: Mapping[str, Any]) -> Pair:
    """The smallest image size in pixels at which no stage clips its windows."""
    windows = as_windows("window_size", window_size, len(fields["depths"]))
    patch = as_pair("patch_size", fields["patch_size"])
    height, width = (max(window[axis] << index for index, window in enumerate(windows)) for axis in range(2))
    return height * patch[0], width * patch[1]


def _configure(fields: Mapping[str, Any], hints: SizeHints) -> Swinv2Config:
    known = {name: value for name, value in vars(hints).items() if value is not None}
    try:
        return Swinv2Config(**fields, **known).checked()
    except ValueError as error:
        raise UsageError(f"the model of these tensors is impossible: {error}") from error


def _ask(size: str, option: str) -> str:
    return (
        f"the {size} that these weights were trained with is not known: the file has no table that shows it, no "
        "config.json next to the file says it, and the file's name is not a published one that fits. A wrong size "
        f"would silently give wrong outputs, so it is not guessed: give {option}. (--image-size and --window-size are "
        "the sizes that the new model gets.)"
    )
