"""Finds the image size and the windows of a network's training: each size from its most reliable source.

In: the fields that shapes show, the tables in a file, and the sizes from the caller, a config.json and a name. Out: a
configuration that agrees with all of them, and the source of each size. If no source shows a size, an error asks for
it: it is never guessed.
"""

import math
from collections.abc import Mapping
from typing import Any

from swinv2.config import Swinv2Config
from swinv2.convert.dialects.limits import are_equivalent, with_equivalent_square
from swinv2.convert.dialects.rules import Reading
from swinv2.convert.files import CONFIG, Weights
from swinv2.convert.hints import SizeHints, read_config, read_name
from swinv2.convert.tables import is_table_of, read_tables
from swinv2.errors import UsageError
from swinv2.lengths import as_pair, as_windows, in_words, plain_pair, plain_windows

_TABLES = "the file's own tables"
_IN_WORDS = {"image_size": "image size", "window_size": "window", "pretrained_window_sizes": "pre-training windows"}

Resolved = tuple[Swinv2Config, dict[str, str], list[str]]
"""A configuration; the source of its image size, its window and its pre-training windows; assumptions, in sentences."""


def resolve_sizes(weights: Weights, reading: Reading, fields: Mapping[str, Any], given: SizeHints) -> Resolved:
    """Finds image size, window and pre-training windows, and checks that the file agrees with them.

    Args:
        weights: The file's name and its config.json. A configuration of ours is used unchanged.
        reading: The dialect, and the tables in the file.
        fields: Fields that shapes show.
        given: Sizes from the caller.

    Raises:
        UsageError: No source shows a size, or two sources contradict each other.
    """
    try:
        given = given.checked(reading.stages, "trained_")
    except ValueError as error:
        raise UsageError(str(error)) from error
    stated = read_config(weights.config, reading.dialect, reading.stages)
    if isinstance(stated, SizeHints):
        resolved = _choose_sizes(reading, fields, given, stated, weights.name)
    else:
        _check_config(stated, fields, given)
        stated.num_labels = fields.get("num_labels", stated.num_labels)
        resolved = stated, dict.fromkeys(_IN_WORDS.values(), CONFIG), list[str]()
    _check_tables(reading, *resolved[:2])
    return resolved


def _choose_sizes(
    reading: Reading, fields: Mapping[str, Any], given: SizeHints, stated: SizeHints, name: str
) -> Resolved:
    """Takes each size from its most reliable source; raises an error that asks for a size without a source."""
    dialect, stages, notes = reading.dialect, reading.stages, list[str]()
    patch = as_pair("patch_size", fields["patch_size"])
    tables, named = read_tables(reading.buffers, stages, patch), read_name(name, stages)
    windows = None if tables.window_size is None else as_windows("window_size", tables.window_size, stages)
    in_tables, in_name = vars(tables), vars(named)
    if windows is not None:
        # A name is not used at all if its windows are not those of the tables.
        if named.image_size is not None:
            named_windows = tuple(spec.window for spec in _config_with_sizes(fields, in_name).stages())
            in_name = in_name if named_windows == windows else {}
        # One window for all stages; the maps of the last stages clip it.
        largest = max(window[0] for window in windows), max(window[1] for window in windows)
        in_tables = {**in_tables, "window_size": plain_windows(windows if dialect.windows_by_stage else [largest])}
    candidates = {"given": vars(given), _TABLES: in_tables, CONFIG: vars(stated), f"the name {name!r}": in_name}
    found, sources = dict[str, Any](), dict[str, str]()
    for field, words in _IN_WORDS.items():
        for source, sizes in candidates.items():
            if field not in found and sizes.get(field) is not None:
                found[field], sources[words] = sizes[field], source
    if "window_size" not in found:
        raise UsageError(_ask_for_size("window", "--trained-window-size"))
    if "image_size" not in found:
        if not dialect.takes_any_size:
            raise UsageError(_ask_for_size("image size", "--trained-image-size"))
        windows = windows or as_windows("window_size", found["window_size"], stages)
        height, width = (
            patch[axis] * max(window[axis] << index for index, window in enumerate(windows)) for axis in range(2)
        )
        found["image_size"] = plain_pair((height, width))
        sources["image size"] = "its windows: the smallest size that clips no window"
        notes.append(
            f"{dialect.title} stores no image size, since it chooses shifts for each image. The image size is set to "
            f"{in_words((height, width))} pixels, the smallest size at which no stage clips its windows."
        )
    if "pretrained_window_sizes" not in found:
        found["pretrained_window_sizes"] = [0] * stages
        sources["pre-training windows"] = "nothing"
        notes.append(
            "Nothing shows in which windows the position bias was learned. They are assumed to be the windows of the "
            "image size and window above; if that is wrong, give --pretrained-window-sizes."
        )
    config = _config_with_sizes(fields, found)
    if sources["window"] == _TABLES and dialect.windows_by_stage:
        config = with_equivalent_square(config)
    if named.image_size is not None and named.window_size is not None:
        is_same_size = named.image_size == plain_pair(as_pair("image_size", config.image_size))
        if not is_same_size or not are_equivalent(config, named.window_size):
            size = in_words(as_pair("image_size", named.image_size))
            notes.append(
                f"The name {name!r} says windows of {named.window_size} at {size} pixels. The file does not agree; its "
                "sizes are used."
            )
    return config, {words: sources[words] for words in _IN_WORDS.values()}, notes


def _config_with_sizes(fields: Mapping[str, Any], sizes: Mapping[str, Any]) -> Swinv2Config:
    """The configuration with the sizes that were found."""
    known = {name: value for name, value in sizes.items() if value is not None}
    try:
        return Swinv2Config(**fields, **known).checked()
    except ValueError as error:
        raise UsageError(f"the model of these tensors is impossible: {error}") from error


def _ask_for_size(size: str, option: str) -> str:
    """The message of the error that asks the user for a size that no source shows."""
    return (
        f"the {size} that these weights were trained with is not known: the file has no table that shows it, no "
        "config.json next to the file says it, and the file's name is not a published one that fits. A wrong size "
        f"would silently give wrong outputs, so it is not guessed: give {option}. (--image-size and --window-size are "
        "the sizes that the new model gets.)"
    )


def _check_config(config: Swinv2Config, fields: Mapping[str, Any], given: SizeHints) -> None:
    """Checks that the configuration of a config.json agrees with the shapes and with the sizes from the caller."""
    differing: list[str] = []
    for name, value in fields.items():
        stated: Any = getattr(config, name)
        if name in ("num_labels", "norm_targets") or stated == value:
            continue
        if name == "patch_size" and as_pair(name, stated) == as_pair(name, value):
            continue
        if name == "mlp_ratio" and int(stated * config.embed_dim) == round(value * config.embed_dim):
            continue
        if name == "encoder_stride" and math.prod(as_pair(name, stated)) == value**2:
            continue
        differing.append(f"{name} is {stated!r} there and {value!r} in the tensors")
    if differing:
        raise UsageError(f"{CONFIG} and the weights do not belong together: {'; '.join(differing)}.")
    sizes = SizeHints(config.image_size, config.window_size, config.pretrained_window_sizes)
    for name, stated in vars(sizes.checked(len(config.depths))).items():
        value = getattr(given, name)
        # The same windows in another notation are no contradiction.
        if value in (None, stated) or (name == "window_size" and are_equivalent(config, value)):
            continue
        raise UsageError(
            f"the model's config.json says that it was trained with {name} {stated}, but {value} was given. Leave the "
            "option out; to change the model, use --image-size and --window-size."
        )


def _check_tables(reading: Reading, config: Swinv2Config, sources: Mapping[str, str]) -> None:
    """Checks the resolved sizes: every number of every table in the file is that of the table of these sizes."""
    stages = config.stages()
    for buffer in reading.buffers:
        spec = stages[buffer.stage]
        if buffer.kind == "key bias":
            if bool(buffer.tensor.any()):
                raise UsageError(
                    f"{buffer.name} is not zero, but keys have no bias in Swin Transformer V2. The file is damaged, or "
                    "of another network."
                )
        elif not is_table_of(spec, buffer):
            shift = f"shifted by {in_words(spec.shift)}" if any(spec.shift) and buffer.block % 2 else "not shifted"
            raise UsageError(
                f"{buffer.name} is not the table for windows of {in_words(spec.window)}, {shift}, on a map of "
                f"{in_words(spec.grid)} tokens, and a position bias learned in {in_words(spec.learned_window)} "
                f"({'; '.join(f'{size}: {source}' for size, source in sources.items())}). One of these sizes is wrong, "
                "or the file is damaged or of another network."
            )
