"""For which image and which windows a network was trained: each size from where it is surest.

In: what shapes show, the tables in a file, and what the caller, a config.json and a name say. Out: a configuration, and
where each size is from. What cannot be known is asked for, never guessed.
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
    """A configuration, and how its windows were found.

    Attributes:
        config: The configuration.
        sources: For image size, window and pre-training windows, where they come from.
        notes: What was assumed, in sentences.
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
    """Finds image size, window and pre-training windows, and holds them to the file.

    Args:
        dialect: Whose names the tensors had.
        fields: What their shapes show.
        buffers: The tables in the file.
        given: What the caller knows.
        stated: What a config.json says. A whole configuration is taken as it is.
        name: Name of the file.

    Raises:
        UsageError: A size is nowhere to be found, or two places contradict each other.
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
    """Takes each size from where it is surest, and asks for what is nowhere."""
    stages, notes = len(fields["depths"]), list[str]()
    windows = None if tables.window_size is None else as_windows("window_size", tables.window_size, stages)
    named = read_name(name, stages)
    fitting = named
    if windows is not None:
        if named.image_size is not None and [spec.window for spec in _configure(fields, named).stages()] != [*windows]:
            fitting = SizeHints()
        # One window for all stages, which the maps of the last ones clip.
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
        sources["image size"] = "its windows: the smallest at which none is clipped"
        notes.append(
            f"{dialect.title} stores no image size, since it decides shifts from each image. Windows are planned for "
            f"{in_words(size)} pixels, the smallest size at which no stage clips its windows."
        )
    if found.pretrained_window_sizes is None:
        found = replace(found, pretrained_window_sizes=[0] * stages)
        sources["pre-training windows"] = "nothing"
        notes.append(
            "Nothing shows in which windows the position bias was learned. It is taken as learned in the windows of "
            "the image size and window above; if it was not, give --pretrained-window-sizes."
        )
    config = _configure(fields, found)
    if sources["window"] == _TABLES and dialect.windows_by_stage:
        config = with_equivalent_square(config)
    if named.image_size is not None and not _agrees(named, config):
        notes.append(
            f"The name {name!r} speaks of windows of {named.window_size} at "
            f"{in_words(as_pair('image_size', named.image_size))} pixels. The tables in the file say something else, and "
            "they were taken."
        )
    return ResolvedSizes(config, {words: sources[words] for words in _IN_WORDS.values()}, notes)


def _agrees(named: SizeHints, config: Swinv2Config) -> bool:
    """Whether a name says the image size and the windows that were found."""
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
        raise UsageError(f"the tensors describe no possible model: {error}") from error


def _ask(size: str, option: str) -> str:
    return (
        f"the {size} that these weights were trained with is not known: no table in the file shows it, no config.json "
        "next to it says it, and its name is not a published one that fits it. A wrong size gives wrong answers "
        f"without an error, so it is not guessed: give {option}. (--image-size and --window-size set the size that you "
        "want.)"
    )
