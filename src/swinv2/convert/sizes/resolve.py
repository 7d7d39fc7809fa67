"""For which image and which windows a network was trained: each size from where it is surest.

In: what shapes show, the tables in a file, and what the caller, a config.json and a name say. Out: a configuration, and
where each size is from. What cannot be known is asked for, never guessed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from swinv2.config import Swinv2Config
from swinv2.convert.dialects.rules import Buffer, Dialect
from swinv2.convert.dialects.squares import are_equivalent
from swinv2.convert.files import CONFIG
from swinv2.convert.sizes.buffers import Seen, examine
from swinv2.convert.sizes.metadata import SizeHints, read_name
from swinv2.convert.sizes.verify import check_fields, check_given, check_tables
from swinv2.errors import UsageError
from swinv2.lengths import Pair, Windows, as_pair, as_windows, in_words, plain_pair, plain_windows

_TABLES = "the file's own tables"
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
    given: SizeHints,
    beside: Swinv2Config | SizeHints,
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
    given = _settle(given, len(fields["depths"]))
    if isinstance(beside, SizeHints):
        return _plan(dialect, fields, buffers, given, beside, name)
    check_fields(beside, fields, CONFIG)
    check_tables(beside, examine(buffers, len(fields["depths"])), buffers, dialect, CONFIG)
    check_given(beside, given)
    beside.num_labels = fields.get("num_labels", beside.num_labels)
    return Plan(beside, dict.fromkeys(_IN_WORDS.values(), CONFIG), [])


def _settle(given: SizeHints, stages: int) -> SizeHints:
    """What the caller knows, its windows as the configuration has them."""
    if given.window_size is None:
        return given
    try:
        windows = as_windows("trained_window_size", given.window_size, stages)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return replace(given, window_size=plain_windows(windows))


def _plan(
    dialect: Dialect,
    fields: Mapping[str, Any],
    buffers: Sequence[Buffer],
    given: SizeHints,
    beside: SizeHints,
    name: str,
) -> Plan:
    """Takes each size from where it is surest."""
    seen = examine(buffers, len(fields["depths"]))
    named = read_name(name, len(seen))
    candidates = (
        (given, "given"),
        (_read_tables(seen, dialect, fields, given), _TABLES),
        (beside, CONFIG),
        (named, f"the name {name!r}"),
    )
    known, sources, notes = SizeHints(), dict.fromkeys(_IN_WORDS.values(), ""), list[str]()
    for field, words in _IN_WORDS.items():
        for candidate, source in candidates:
            if getattr(candidate, field) is not None:
                known, sources[words] = replace(known, **{field: getattr(candidate, field)}), source
                break
    config = _configure(dict(fields) | _complete(known, dialect, fields, sources, notes))
    check_tables(config, seen, buffers, dialect, " and ".join(dict.fromkeys(sources.values())))
    is_named = _agrees(named, config)
    if dialect.windows_by_stage and given.image_size is None and given.window_size is None and not is_named:
        _admit_clipping(seen, dialect, config, sources, notes)
    if named.image_size is not None and not is_named:
        notes.append(
            f"The name {name!r} speaks of windows of {named.window_size} at {in_words(named.image_size)} pixels; "
            f"the file does not agree, and it was believed."
        )
    return Plan(config, sources, notes)


def _agrees(named: SizeHints, config: Swinv2Config) -> bool:
    """Whether a name says the image size and the windows that were found."""
    is_same_size = named.image_size == as_pair("image_size", config.image_size)
    return is_same_size and named.window_size is not None and are_equivalent(config, named.window_size)


def _admit_clipping(
    seen: Sequence[Seen], dialect: Dialect, config: Swinv2Config, sources: dict[str, str], notes: list[str]
) -> None:
    """Says so where windows of several sizes were taken for one that small maps clip, and nothing else shows it."""
    windows = [stage.window[0] for stage in seen if stage.window is not None]
    size = as_pair("image_size", config.image_size)
    if sources["window"] != _TABLES or not isinstance(config.window_size, int) or len(set(windows)) == 1:
        return
    sources["image size"] = sources["window"] = f"{_TABLES}, taken for one clipped window"
    notes.append(
        f"{dialect.title} may have a window of its own in each stage. Windows {', '.join(map(str, windows))} are taken "
        f"for one window of {config.window_size}, clipped at {in_words(size)} pixels; if each "
        "stage has its own, give --trained-image-size."
    )


def _complete(
    known: SizeHints, dialect: Dialect, fields: Mapping[str, Any], sources: dict[str, str], notes: list[str]
) -> dict[str, Any]:
    """The fields of image and windows: what is known, and what follows from it or is everyone's; asks for the rest."""
    image_size, pretrained, stages = known.image_size, known.pretrained, len(fields["depths"])
    if known.window_size is None:
        raise UsageError(_ask(dialect, "the window", "--trained-window-size"))
    if image_size is None:
        if not dialect.takes_any_size:
            raise UsageError(_ask(dialect, "the image size", "--trained-image-size"))
        image_size = _smallest_image(known.window_size, fields)
        sources["image size"] = "its windows: the smallest at which none is clipped"
        notes.append(
            f"{dialect.title} stores no image size, since it decides shifts from each image. Windows are planned for "
            f"{in_words(image_size)} pixels, the smallest size at which no stage clips its windows."
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
        "image_size": plain_pair(image_size),
        "window_size": known.window_size,
        "pretrained_window_sizes": [plain_pair(as_pair("pretrained_window_sizes", one, 0)) for one in pretrained],
    }


def _smallest_image(window_size: Windows, fields: Mapping[str, Any]) -> Pair:
    """The smallest image size in pixels at which no stage clips its windows."""
    windows = as_windows("window_size", window_size, len(fields["depths"]))
    patch = as_pair("patch_size", fields["patch_size"])
    height, width = (max(window[axis] << index for index, window in enumerate(windows)) for axis in range(2))
    return height * patch[0], width * patch[1]


def _configure(fields: Mapping[str, Any]) -> Swinv2Config:
    try:
        return Swinv2Config(**fields).checked()
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


def _read_tables(seen: Sequence[Seen], dialect: Dialect, fields: Mapping[str, Any], given: SizeHints) -> SizeHints:
    """Sizes that the tables of a file show together, beside what is known better."""
    windows = [stage.window for stage in seen if stage.window is not None]
    if len(windows) < len(seen):
        return SizeHints()
    patch = as_pair("patch_size", fields["patch_size"])
    largest = max(height for height, _ in windows), max(width for _, width in windows)
    is_told = dialect.windows_by_stage and given.window_size is not None
    configured = as_windows("window_size", given.window_size if is_told else largest, len(windows))
    if given.image_size is not None:
        grid: Pair | None = (given.image_size[0] // patch[0], given.image_size[1] // patch[1])
    else:
        grid = _read_grid(seen, windows, configured, dialect, fields["depths"])
    # One window that small maps clip has tables like windows of several sizes.
    is_one = len(set(windows)) == 1 or (
        grid is not None and windows == [_clip(window, grid, index) for index, window in enumerate(configured)]
    )
    if dialect.windows_by_stage and not is_one:
        grid = None
    else:
        windows = [largest] * len(windows)
    pretrained = tuple(
        0 if stage.pretrained is None or stage.pretrained == stage.window else stage.pretrained for stage in seen
    )
    return SizeHints(
        None if grid is None else (grid[0] * patch[0], grid[1] * patch[1]),
        plain_windows(windows),
        pretrained if all(stage.pretrained is not None for stage in seen) else None,
    )


def _read_grid(
    seen: Sequence[Seen], windows: Sequence[Pair], configured: Sequence[Pair], dialect: Dialect, depths: Sequence[int]
) -> Pair | None:
    """The first map of a square image, as far as square windows that are clipped, or masks, show it."""
    if any(height != width for height, width in windows):
        return None
    has_masks = any(stage.windows is not None for stage in seen)
    for index, (stage, (side, _)) in enumerate(zip(seen, windows, strict=True)):
        if stage.windows is not None:
            across = math.isqrt(stage.windows)
            if across * across == stage.windows:
                return across * side << index, across * side << index
        # A stage with a smaller window than it was given has clipped it to its map.
        is_clipped = side < max(configured[index])
        # The authors store a mask for every shifted block, so a stage of several blocks without one is a single window;
        # but a file without any mask may have lost them.
        is_whole = has_masks and dialect.knows_regions and depths[index] > 1 and stage.windows is None
        if is_clipped or is_whole:
            return side << index, side << index
    return None


def _clip(window: Pair, grid: Pair, stage: int) -> Pair:
    """A window on the map of a stage."""
    height, width = (min(side, max(1, length >> stage)) for side, length in zip(window, grid, strict=True))
    return height, width
