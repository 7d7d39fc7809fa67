"""For which image and which windows a network was trained: each size from where it is surest.

In: what shapes show, the tables in a file, and what the caller, a config.json and a name say. Out: a configuration, and
where each size is from. What cannot be known is asked for, never guessed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from swinv2.config import Pair, Swinv2Config, as_pair
from swinv2.convert.beside import Known, read_name
from swinv2.convert.checks import check_fields, check_given, check_tables
from swinv2.convert.files import CONFIG
from swinv2.convert.geometry import Seen, examine
from swinv2.convert.rules import Buffer, Dialect
from swinv2.errors import UsageError

_IN_WORDS = {"image_size": "image size", "window_size": "window", "pretrained": "pre-training windows"}


@dataclass(frozen=True)
class Plan:
    """A configuration, and how its windows were found.

    Attributes:
        config: The configuration.
        sources: For image size, window and pre-training windows, where they come from.
        notes: What was taken for granted, in sentences.
    """

    config: Swinv2Config
    sources: dict[str, str]
    notes: list[str]


def make_plan(
    dialect: Dialect,
    fields: Mapping[str, Any],
    buffers: Sequence[Buffer],
    given: Known,
    beside: Swinv2Config | Known,
    name: str,
) -> Plan:
    """Finds image size, window and pre-training windows, and holds them to the file.

    Args:
        dialect: Whose names the tensors had.
        fields: What their shapes show.
        buffers: The tables in the file.
        given: What the caller knows.
        beside: What a config.json says. A whole configuration is taken as it is.
        name: Name of the file.

    Raises:
        UsageError: A size is nowhere to be found, or two places contradict each other.
    """
    if isinstance(beside, Known):
        return _plan(dialect, fields, buffers, given, beside, name)
    check_fields(beside, fields, CONFIG)
    check_tables(beside, examine(buffers, len(fields["depths"])), buffers, dialect, CONFIG)
    check_given(beside, given)
    beside.num_labels = fields.get("num_labels", beside.num_labels)
    return Plan(beside, dict.fromkeys(_IN_WORDS.values(), CONFIG), [])


def _plan(
    dialect: Dialect, fields: Mapping[str, Any], buffers: Sequence[Buffer], given: Known, beside: Known, name: str
) -> Plan:
    """Takes each size from where it is surest."""
    seen = examine(buffers, len(fields["depths"]))
    named = read_name(name, len(seen))
    candidates = (
        (given, "given"),
        (_read_tables(seen, dialect, fields), "the file's own tables"),
        (beside, CONFIG),
        (named, f"the name {name!r}"),
    )
    known, sources, notes = Known(), dict.fromkeys(_IN_WORDS.values(), ""), list[str]()
    for field, words in _IN_WORDS.items():
        for candidate, source in candidates:
            if getattr(candidate, field) is not None:
                known, sources[words] = replace(known, **{field: getattr(candidate, field)}), source
                break
    config = _configure(dict(fields) | _complete(known, dialect, fields, sources, notes))
    check_tables(config, seen, buffers, dialect, " and ".join(dict.fromkeys(sources.values())))
    planned = (config.window_size, as_pair("image_size", config.image_size))
    if named.image_size is not None and (named.window_size, named.image_size) != planned:
        notes.append(
            f"The name {name!r} speaks of windows of {named.window_size} at {_size(named.image_size)} pixels; "
            f"the file does not agree, and it was believed."
        )
    return Plan(config, sources, notes)


def _complete(
    known: Known, dialect: Dialect, fields: Mapping[str, Any], sources: dict[str, str], notes: list[str]
) -> dict[str, Any]:
    """The fields of image and windows: what is known, and what follows from it or is everyone's; asks for the rest."""
    image_size, pretrained, stages = known.image_size, known.pretrained, len(fields["depths"])
    if known.window_size is None:
        raise UsageError(_ask(dialect, "the window", "--trained-window-size"))
    if image_size is None:
        if not dialect.takes_any_size:
            raise UsageError(_ask(dialect, "the image size", "--trained-image-size"))
        patch = as_pair("patch_size", fields["patch_size"])
        tokens = known.window_size << stages - 1
        image_size = (tokens * patch[0], tokens * patch[1])
        sources["image size"] = "its windows: the smallest at which none is clipped"
        notes.append(
            f"{dialect.title} stores no image size, since it decides shifts from each image. Windows are planned for "
            f"{_size(image_size)} pixels, the smallest size at which no stage clips its windows."
        )
    if pretrained is None:
        pretrained = (0,) * stages
        sources["pre-training windows"] = "nothing"
        notes.append(
            "Nothing shows in which windows the position bias was learned. It is taken as learned in the windows of "
            "the image size and window above; if it was not, give --pretrained-window-sizes."
        )
    if len(pretrained) != stages:
        raise UsageError(
            f"{len(pretrained)} pre-training windows were given ({pretrained}); expected one for each of the {stages} "
            "stages."
        )
    return {
        "image_size": image_size[0] if image_size[0] == image_size[1] else list(image_size),
        "window_size": known.window_size,
        "pretrained_window_sizes": list(pretrained),
    }


def _configure(fields: Mapping[str, Any]) -> Swinv2Config:
    try:
        return Swinv2Config(**fields)
    except ValueError as error:
        raise UsageError(f"the tensors describe no possible model: {error}") from error


def _ask(dialect: Dialect, what: str, option: str) -> str:
    where = (
        "only the masks of shifted blocks show it, which are not in the file"
        if dialect.knows_regions and what == "the image size"
        else f"{dialect.title} does not store it"
    )
    return (
        f"{what} that these weights were trained with is not in them: {where}, no "
        "config.json beside them says it, and the file's name is not a published one. A wrong one gives wrong answers "
        f"without a sign, so it is not guessed: give {option}. (--image-size and --window-size are for what you want "
        "it to be.)"
    )


def _read_tables(seen: Sequence[Seen], dialect: Dialect, fields: Mapping[str, Any]) -> Known:
    """Sizes that the tables of a file show together."""
    windows = [stage.window for stage in seen]
    if not all(windows):
        return Known()
    sides = [window[0] for window in windows if window is not None]
    for index, window in enumerate(windows):
        if window is not None and window[0] != window[1]:
            raise UsageError(
                f"stage {index + 1} has windows of {window[0]} x {window[1]} tokens; the windows of this package are "
                "square, and rectangular only where a rectangular image clips them."
            )
    window_size = max(sides)
    pretrained = tuple(
        0 if stage.pretrained is None or stage.pretrained == stage.window else stage.pretrained[0] for stage in seen
    )
    patch = as_pair("patch_size", fields["patch_size"])
    has_masks = any(stage.windows is not None for stage in seen)
    grid = None
    for index, (stage, side) in enumerate(zip(seen, sides, strict=True)):
        if stage.windows is not None:
            across = math.isqrt(stage.windows)
            if across * across == stage.windows:
                grid = across * side << index
                break
        # A stage with a smaller window than others has clipped it to its map.
        is_clipped = side < window_size
        # The authors store a mask for every shifted block, so a stage of several blocks without one is a single window;
        # but a file without any mask may have lost them.
        is_whole = has_masks and dialect.knows_regions and fields["depths"][index] > 1 and stage.windows is None
        if is_clipped or is_whole:
            grid = side << index
            break
    image_size = None if grid is None else (grid * patch[0], grid * patch[1])
    has_tables = all(stage.pretrained is not None for stage in seen)
    return Known(image_size, window_size, pretrained if has_tables else None)


def _size(pair: Pair) -> str:
    return f"{pair[0]} x {pair[1]}"
