"""What network a set of tensors is: dialect, sizes, windows.

In: tensors under a library's names, what lies beside them, and what the caller knows. Out: the same tensors under our
names, and the configuration of the network they belong to. Sizes are read from shapes; windows from what the file
stores of them, from a configuration beside it, or from a published name. What cannot be known is asked for, never
guessed. This module knows no file.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from swinv2.config import Pair, StageSpec, Swinv2Config, as_pair
from swinv2.convert.files import Weights
from swinv2.convert.geometry import Seen, examine, odd, regions
from swinv2.convert.microsoft import MICROSOFT, SIMMIM
from swinv2.convert.mmpretrain import MMPRETRAIN
from swinv2.convert.rules import MODEL, Buffer, Dialect, Reading, read, their_name
from swinv2.convert.timm import TIMM
from swinv2.convert.torchvision import TORCHVISION
from swinv2.convert.transformers import TRANSFORMERS
from swinv2.errors import UsageError
from swinv2.heads import Swinv2ForImageClassification, Swinv2ForMaskedImageModeling
from swinv2.model import Swinv2Model, Swinv2PreTrainedModel

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

_BLOCK = re.compile(rf"{re.escape(MODEL)}encoder\.layers\.(\d+)\.blocks\.(\d+)\.(.+)")
"""Our name of something in a block: stage, block, and the rest."""
_MOST_STAGES = 12
"""Channels double from stage to stage, so no network has as many."""
_PUBLISHED = re.compile(
    r"(?:microsoft/|timm/)?swinv2_[a-z]+(?:_patch4)?_window(\d{1,3})(?:to(\d{1,3}))?_(\d{2,4})(?:to(\d{2,4}))?"
    r"(?:_22k|_22kto1k_ft|_22kft1k)?(?:\.\w+)?"
)
"""The authors', the hub's and timm's names with all that may be in them; more makes it somebody's own name."""
_MMPRETRAIN = re.compile(
    r"swinv2_[a-z]+_w(\d{1,3})(_in21k_pre)?(?:_3rdparty|_\d+xb\d+)?_in(?:1|21)k_(\d{2,4})px(?:_\d{8}_[0-9a-f]{8})?"
)
"""mmpretrain's names of configurations and files."""

_TIMM_SHOWN = (
    *("embed_dim", "depths", "num_heads", "patch_size", "mlp_ratio", "qkv_bias", "num_classes", "in_chans"),
    *("drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "strict_img_size"),
)
"""Arguments of timm's networks that shapes show, and those that change no answer."""
_TIMM_READ = ("img_size", "window_size", "pretrained_window_sizes")
_TIMM_FIXED = {
    "global_pool": "avg",
    "act_layer": "gelu",
    "always_partition": False,
    "dynamic_img_size": False,
    "dynamic_img_pad": False,
}
"""Arguments that change the computation, with the only value that this package computes."""


@dataclass(frozen=True)
class Known:
    """What is known of the sizes that shapes do not show; None for what is not.

    Attributes:
        image_size: Image size (height, width) in pixels.
        window_size: Window in tokens.
        pretrained: For each stage, the window in which its position bias was learned; 0 for its own.
    """

    image_size: Pair | None = None
    window_size: int | None = None
    pretrained: tuple[int, ...] | None = None


@dataclass
class Recognised:
    """A network, and how it was recognised.

    Attributes:
        dialect: Whose names the tensors had.
        config: The configuration.
        model_class: The class of this package that has these tensors.
        tensors: The learned tensors under our names, `swinv2.` before those of the network.
        their_names: What each was called.
        left_out: How many tensors were left out because they follow from sizes.
        sources: For image size, window and pre-training windows, where they come from.
        notes: What else is worth knowing, in sentences.
    """

    dialect: Dialect
    config: Swinv2Config
    model_class: type[Swinv2PreTrainedModel]
    tensors: dict[str, Tensor]
    their_names: dict[str, str]
    left_out: int
    sources: dict[str, str]
    notes: list[str] = field(default_factory=list[str])


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


def recognise(weights: Weights, given: Known | None = None) -> Recognised:
    """Recognises a network.

    Args:
        weights: The tensors, and what lies beside them.
        given: What the caller knows of the sizes it was trained with.

    Raises:
        UsageError: It is no Swin Transformer V2; a tensor is missing, unknown or of the wrong shape (the message names
            each); what the file shows contradicts itself or what was given; or a size is nowhere to be found.
    """
    dialect = choose_dialect(list(weights.tensors))
    reading = read(dialect, weights.tensors)
    _check_numbers(reading)
    model_class = _class_of(reading.tensors)
    fields = _sizes(dialect, reading)
    beside = _read_beside(weights, dialect, reading.stages)
    notes: list[str] = []
    if isinstance(beside, Swinv2Config):
        config = beside
        sources: dict[str, str] = dict.fromkeys(["image size", "window", "pre-training windows"], "config.json")
        _compare(config, fields, "config.json")
        _check_seen(config, examine(reading.buffers, reading.stages), reading.buffers, dialect, "config.json")
        _refuse_given(config, given)
        config.num_labels = fields.get("num_labels", config.num_labels)
    else:
        config, sources = _plan(weights, dialect, fields, reading.buffers, given or Known(), beside, notes)
    _check_tensors(dialect, reading, model_class, config)
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
    return Recognised(
        dialect,
        config,
        model_class,
        reading.tensors,
        reading.their_names,
        len(reading.buffers),
        sources,
        notes,
    )


def _check_numbers(reading: Reading) -> None:
    """Refuses blocks and stages that are not numbered from 0 on, before anything is built for those between."""
    names: dict[tuple[int, int], list[str]] = {}
    for name, theirs in reading.their_names.items():
        found = _BLOCK.fullmatch(name)
        if found is not None:
            names.setdefault((int(found[1]), int(found[2])), []).append(theirs)
    whole: set[tuple[int, int]] = set()
    for stage in range(min(reading.stages, _MOST_STAGES)):
        before = len(whole)
        while (stage, len(whole) - before) in names:
            whole.add((stage, len(whole) - before))
        if len(whole) == before:
            break
    stray = [name for place, here in names.items() if place not in whole for name in here]
    stray += [buffer.name for buffer in reading.buffers if (buffer.stage, buffer.block) not in whole]
    if stray:
        raise UsageError(
            f"the blocks in the file are not numbered from 0 on without a gap: {', '.join(dict.fromkeys(stray))} "
            f"{'belong' if len(set(stray)) > 1 else 'belongs'} to none of the {len(whole)} blocks that are. The file "
            "is damaged, or has been added to."
        )


def _class_of(tensors: Mapping[str, Tensor]) -> type[Swinv2PreTrainedModel]:
    if any(name.startswith("decoder.") for name in tensors):
        return Swinv2ForMaskedImageModeling
    if any(name.startswith("classifier.") for name in tensors):
        return Swinv2ForImageClassification
    return Swinv2Model


def _sizes(dialect: Dialect, reading: Reading) -> dict[str, Any]:
    """The fields of a configuration that shapes show."""
    tensors, stages = reading.tensors, reading.stages
    found = [_BLOCK.fullmatch(name) for name in tensors]
    blocks = [(int(match[1]), int(match[2]), match[3]) for match in found if match is not None]
    depths = [max((block for stage, block, _ in blocks if stage == index), default=-1) + 1 for index in range(stages)]

    def shape_of(pattern: str, rank: int) -> list[int]:
        matching = [name for name in tensors if re.fullmatch(pattern, name)]
        fitting = next((name for name in matching if tensors[name].ndim == rank), None)
        if fitting is None:
            # Only now is it sure that something is wrong; the rest is named with it.
            misshapen = {
                reading.their_names[name]: f"{list(tensors[name].shape)}, expected {rank} lengths" for name in matching
            }
            raise _unfit(reading, _missing(dialect, reading, depths), misshapen)
        return list(tensors[fitting].shape)

    layers = rf"{re.escape(MODEL)}encoder\.layers\."
    embed_dim, channels, *patch = shape_of(rf"{re.escape(MODEL)}embeddings\.patch_embeddings\.projection\.weight", 4)
    scale = r"\.blocks\.\d+\.attention\.self\.logit_scale"
    hidden = shape_of(rf"{layers}0\.blocks\.\d+\.intermediate\.dense\.weight", 2)[0]
    fields: dict[str, Any] = {
        "embed_dim": embed_dim,
        "num_channels": channels,
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "depths": depths,
        "num_heads": [shape_of(rf"{layers}{index}{scale}", 3)[0] for index in range(stages)],
        "mlp_ratio": hidden / embed_dim if hidden % embed_dim else float(hidden // embed_dim),
        "qkv_bias": any(name.endswith("query.bias") for name in tensors),
        "use_absolute_embeddings": f"{MODEL}embeddings.position_embeddings" in tensors,
        "extra_norm_period": _extra_norm_period(blocks, depths),
    }
    if "classifier.weight" in tensors:
        fields["num_labels"] = shape_of(r"classifier\.weight", 2)[0]
    if "decoder.0.weight" in tensors:
        side = math.isqrt(shape_of(r"decoder\.0\.weight", 4)[0] // channels)
        fields["encoder_stride"] = side
    if dialect is SIMMIM:
        fields["norm_targets"] = NORM_TARGETS
    return fields


def _missing(dialect: Dialect, reading: Reading, depths: Sequence[int]) -> list[str]:
    """What a network of as many blocks has and the file has not, where sizes are not known yet."""
    tensors, stages = reading.tensors, len(depths)
    # Names do not depend on sizes: the smallest network of these depths has all of them.
    config = Swinv2Config(
        image_size=4 << stages,
        embed_dim=1,
        depths=list(depths),
        num_heads=[1] * stages,
        window_size=1,
        pretrained_window_sizes=[0] * stages,
        qkv_bias=any(name.endswith("query.bias") for name in tensors),
        use_absolute_embeddings=f"{MODEL}embeddings.position_embeddings" in tensors,
    )
    names = _names_of(_class_of(tensors), config)
    return list(dict.fromkeys(their_name(dialect, name, stages) for name in names if name not in tensors))


def _names_of(model_class: type[Swinv2PreTrainedModel], config: Swinv2Config) -> dict[str, torch.Size]:
    """Our names of everything in a network, with their shapes."""
    with torch.device("meta"):
        network = model_class(config)
    prefix = MODEL if model_class is Swinv2Model else ""
    return {prefix + name: tensor.shape for name, tensor in network.state_dict().items()}


def _extra_norm_period(blocks: Sequence[tuple[int, int, str]], depths: Sequence[int]) -> int:
    have = {(stage, block) for stage, block, name in blocks if name.startswith("layernorm_extra.")}
    if not have:
        return 0
    period = min(block for _, block in have) + 1
    expected = {(s, b) for s, depth in enumerate(depths) for b in range(depth) if (b + 1) % period == 0}
    if have != expected:
        raise UsageError(
            f"the additional norms on the main branch are in the blocks {sorted(have)} (stage, block), which is not "
            "every so many blocks of each stage; this package has them so, or not at all."
        )
    return period


def _read_beside(weights: Weights, dialect: Dialect, stages: int) -> Swinv2Config | Known | None:
    """What a config.json beside the weights says."""
    config = weights.config
    if config is None:
        return None
    if config.get("model_type") == "swinv2":
        try:
            return Swinv2Config.from_dict(config)
        except (ValueError, TypeError) as error:
            raise UsageError(f"config.json beside the weights describes no possible model: {error}") from error
    if isinstance(config.get("architecture"), str):
        return _read_timm(config, stages)
    if dialect is TRANSFORMERS or "model_type" in config:
        raise UsageError(
            f"config.json beside the weights is of the model type {config.get('model_type')!r}; expected 'swinv2', or "
            "timm's own with its architecture. Give the file of weights itself to leave config.json aside."
        )
    return None


def _read_timm(config: Mapping[str, Any], stages: int) -> Known:
    named = read_name(config["architecture"], stages)
    arguments, pretrained_cfg = config.get("model_args") or {}, config.get("pretrained_cfg") or {}
    if not isinstance(arguments, dict) or not isinstance(pretrained_cfg, dict):
        raise UsageError("config.json beside the weights is timm's, but its model_args or pretrained_cfg is no object.")
    _refuse_arguments({"global_pool": config["global_pool"], **arguments} if "global_pool" in config else arguments)
    size = arguments.get("img_size") or (pretrained_cfg.get("input_size") or [None])[1:] or named.image_size
    window = arguments.get("window_size", named.window_size)
    learned = arguments.get("pretrained_window_sizes", named.pretrained)
    try:
        image_size = None if size is None else as_pair("img_size", size)
        sides = None if window is None else set(as_pair("window_size", window))
        pretrained = None if learned is None else tuple(as_pair("pretrained_window_sizes", one, 0) for one in learned)
    except (ValueError, TypeError) as error:
        raise UsageError(f"config.json beside the weights is timm's, but {error}") from error
    if sides is not None and len(sides) > 1:
        raise UsageError(f"config.json says windows of {window}; the windows of this package are square.")
    if pretrained is not None and any(one[0] != one[1] for one in pretrained):
        raise UsageError(f"config.json says pre-training windows of {learned}; expected square ones.")
    return Known(
        image_size,
        None if sides is None else sides.pop(),
        None if pretrained is None else tuple(one[0] for one in pretrained),
    )


def _refuse_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuses what would make timm compute something else than this package does."""
    odd = [
        f"{name!r} is {value!r}{f', expected {_TIMM_FIXED[name]!r}' if name in _TIMM_FIXED else ''}"
        for name, value in arguments.items()
        if name not in (*_TIMM_SHOWN, *_TIMM_READ) and not (name in _TIMM_FIXED and value == _TIMM_FIXED[name])
    ]
    if odd:
        raise UsageError(
            f"config.json beside the weights is timm's, with arguments that this package does not know to compute: "
            f"{'; '.join(odd)}. Give the file of weights itself to leave config.json aside."
        )


def read_name(name: str, stages: int) -> Known:
    """Reads sizes from a published name.

    Args:
        name: Such as "swinv2_base_patch4_window12to16_192to256_22kto1k_ft", "swinv2-tiny-patch4-window8-256",
            "swinv2_tiny_window8_256.ms_in1k", "swin_v2_t-b137f0e2" or "swinv2-tiny-w8_3rdparty_in1k-256px".
        stages: Number of stages.

    Returns:
        What it says; nothing if it is not a published name from its beginning to its end. timm's may end with any tag
        after a dot.

    Example:

        >>> read_name("swinv2_base_window12to16_192to256.ms_in22k_ft_in1k", 4)
        Known(image_size=(256, 256), window_size=16, pretrained=(12, 12, 12, 6))
    """
    text = name.lower().replace("-", "_")
    found = _PUBLISHED.fullmatch(text)
    if found is not None:
        window, size = int(found[2] or found[1]), int(found[4] or found[3])
        first, first_size = int(found[1]), int(found[3])
        pretrained = (0,) * stages
        if found[2] and found[4]:
            pretrained = tuple(max(1, min(first, first_size // 4 >> index)) for index in range(stages))
        return Known((size, size), window, pretrained)
    if re.fullmatch(r"swin_v2_[tsb](_[0-9a-f]{8})?", text):
        return Known((256, 256), 8, (0,) * stages)
    found = _MMPRETRAIN.fullmatch(text)
    if found is not None:
        size = int(found[3])
        return Known((size, size), int(found[1]), None if found[2] else (0,) * stages)
    return Known()


def _plan(
    weights: Weights,
    dialect: Dialect,
    fields: dict[str, Any],
    buffers: Sequence[Buffer],
    given: Known,
    beside: Known | None,
    notes: list[str],
) -> tuple[Swinv2Config, dict[str, str]]:
    """Finds image size, window and pre-training windows, each where it is surest, and holds them to the file."""
    seen = examine(buffers, len(fields["depths"]))
    shown = _read_seen(seen, dialect, fields)
    named = read_name(weights.name, len(seen))
    candidates = (
        (given, "given"),
        (shown, "the file's own tables"),
        (beside or Known(), "config.json"),
        (named, f"the name {weights.name!r}"),
    )
    sources: dict[str, str] = {}
    values: dict[str, Any] = {}
    labels = {"image_size": "image size", "window_size": "window", "pretrained": "pre-training windows"}
    for key, label in labels.items():
        value, source = next(
            ((value, source) for known, source in candidates if (value := getattr(known, key)) is not None), (None, "")
        )
        values[key], sources[label] = value, source
    if values["window_size"] is None:
        raise UsageError(_ask(dialect, "the window", "--trained-window-size"))
    if values["image_size"] is None:
        if not dialect.takes_any_size:
            raise UsageError(_ask(dialect, "the image size", "--trained-image-size"))
        patch = as_pair("patch_size", fields["patch_size"])
        tokens = values["window_size"] << len(seen) - 1
        values["image_size"] = (tokens * patch[0], tokens * patch[1])
        sources["image size"] = "its windows: the smallest at which none is clipped"
        notes.append(
            f"{dialect.title} stores no image size, since it decides shifts from each image. Windows are planned for "
            f"{_size(values['image_size'])} pixels, the smallest size at which no stage clips its windows."
        )
    if values["pretrained"] is None:
        values["pretrained"] = (0,) * len(seen)
        sources["pre-training windows"] = "nothing"
        notes.append(
            "Nothing shows in which windows the position bias was learned. It is taken as learned in the windows of "
            "the image size and window above; if it was not, give --pretrained-window-sizes."
        )
    if len(values["pretrained"]) != len(seen):
        raise UsageError(
            f"{len(values['pretrained'])} pre-training windows were given ({values['pretrained']}); expected one for "
            f"each of the {len(seen)} stages."
        )
    image_size = values["image_size"]
    try:
        config = Swinv2Config(
            **fields,
            image_size=image_size[0] if image_size[0] == image_size[1] else list(image_size),
            window_size=values["window_size"],
            pretrained_window_sizes=list(values["pretrained"]),
        )
    except ValueError as error:
        raise UsageError(f"the tensors describe no possible model: {error}") from error
    _check_seen(config, seen, buffers, dialect, " and ".join(dict.fromkeys(sources.values())))
    if named.window_size is not None and (named.window_size, named.image_size) != (
        values["window_size"],
        values["image_size"],
    ):
        notes.append(
            f"The name {weights.name!r} speaks of windows of {named.window_size} at {_size(named.image_size)} pixels; "
            f"the file does not agree, and it was believed."
        )
    return config, sources


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


def _size(size: Pair | None) -> str:
    return "unknown" if size is None else f"{size[0]} x {size[1]}"


def _read_seen(seen: Sequence[Seen], dialect: Dialect, fields: Mapping[str, Any]) -> Known:
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


def _check_seen(
    config: Swinv2Config, seen: Sequence[Seen], buffers: Sequence[Buffer], dialect: Dialect, source: str
) -> None:
    """Holds a configuration to what the tables of a file show, and every mask to what the configuration makes of it."""
    for spec, stage in zip(config.stages(), seen, strict=False):
        where = f"stage {spec.index + 1}"
        if stage.window is not None and stage.window != spec.window:
            raise UsageError(
                f"the tables in the file are of windows of {stage.window[0]} x {stage.window[1]} in {where}; "
                f"image size and window from {source} make them {spec.window[0]} x {spec.window[1]}. One is wrong."
            )
        if stage.pretrained is not None and stage.pretrained != spec.learned_window:
            raise UsageError(
                f"the coordinates in the file are of a position bias learned in windows of {stage.pretrained[0]} x "
                f"{stage.pretrained[1]} in {where}; pre-training windows from {source} say {spec.learned_window[0]} x "
                f"{spec.learned_window[1]}. One of the two is wrong."
            )
        if stage.windows is not None:
            expected = math.prod(-(-spec.grid[axis] // spec.window[axis]) for axis in range(2))
            if not any(spec.shift) or stage.windows != expected:
                raise UsageError(
                    f"the mask in the file is of {stage.windows} windows in {where}; image size and window from "
                    f"{source} make {expected}, {'shifted' if any(spec.shift) else 'not shifted'}. One is wrong."
                )
    _check_masks(config, [buffer for buffer in buffers if buffer.kind == "regions"], dialect)


def _check_masks(config: Swinv2Config, masks: Sequence[Buffer], dialect: Dialect) -> None:
    """Every shifted block has its mask, number by number, and no other block has one; or the file has none at all."""
    stages = config.stages()
    for mask in masks:
        spec = stages[mask.stage]
        if not mask.block % 2:
            raise odd(mask, "a mask on a block that is not shifted")
        expected = regions(_filled(spec), spec.window, spec.shift)
        if mask.tensor.shape != expected.shape or not torch.equal(mask.tensor.to(expected.dtype), expected):
            raise odd(mask, f"not the mask of windows of {_size(spec.window)} shifted by {_size(spec.shift)}")
    have = {(mask.stage, mask.block) for mask in masks}
    shifted = [
        (spec.index, block) for spec in stages if any(spec.shift) for block in range(1, len(spec.extra_norms), 2)
    ]
    without = [place for place in shifted if place not in have]
    if dialect.knows_regions and have and without:
        raise UsageError(
            f"the file has masks for some shifted blocks and not for others: none in "
            f"{', '.join(f'block {block} of stage {stage + 1}' for stage, block in without)}, counted from 0. "
            "It is damaged, or was put together from two."
        )


def _filled(spec: StageSpec) -> Pair:
    """Size of a map after it was filled up to whole windows."""
    down, across = (-(-length // side) * side for length, side in zip(spec.grid, spec.window, strict=True))
    return down, across


def _compare(config: Swinv2Config, fields: Mapping[str, Any], source: str) -> None:
    differing: list[str] = []
    for name, value in fields.items():
        said: Any = getattr(config, name)
        if name in ("num_labels", "norm_targets") or said == value:
            continue
        if name == "patch_size" and as_pair(name, said) == as_pair(name, value):
            continue
        if name == "mlp_ratio" and int(said * config.embed_dim) == round(value * config.embed_dim):
            continue
        if name == "encoder_stride" and math.prod(as_pair(name, said)) == value**2:
            continue
        if name in ("depths", "num_heads") and list(said) == list(value):
            continue
        differing.append(f"{name} is {said!r} there and {value!r} in the tensors")
    if differing:
        raise UsageError(f"{source} and the weights do not belong together: {'; '.join(differing)}.")


def _refuse_given(config: Swinv2Config, given: Known | None) -> None:
    if given is None or given == Known():
        return
    said = Known(
        as_pair("image_size", config.image_size),
        config.window_size,
        tuple(as_pair("pretrained_window_sizes", one, 0)[0] for one in config.pretrained_window_sizes),
    )
    for name in ("image_size", "window_size", "pretrained"):
        if getattr(given, name) not in (None, getattr(said, name)):
            raise UsageError(
                f"the model has a config.json, which says what it was trained with ({name} {getattr(said, name)}); "
                f"{getattr(given, name)} was given. Leave it out; --image-size and --window-size change a model."
            )


def _check_tensors(
    dialect: Dialect, reading: Reading, model_class: type[Swinv2PreTrainedModel], config: Swinv2Config
) -> None:
    """Holds names and shapes to those of the network that the configuration builds."""
    expected = _names_of(model_class, config)
    missing = [their_name(dialect, name, reading.stages) for name in expected if name not in reading.tensors]
    unknown = [reading.their_names[name] for name in reading.tensors if name not in expected]
    reading.unknown.extend(dict.fromkeys(unknown))
    misshapen = {
        reading.their_names[name]: f"{list(tensor.shape)}, expected {list(expected[name])}"
        for name, tensor in reading.tensors.items()
        if name in expected and tensor.shape != expected[name] and reading.their_names[name] not in reading.misshapen
    }
    if missing or reading.unknown or reading.twice or misshapen or reading.misshapen:
        raise _unfit(reading, list(dict.fromkeys(missing)), misshapen)


def _unfit(reading: Reading, missing: Sequence[str], misshapen: Mapping[str, str]) -> UsageError:
    """One error that names everything that does not fit."""
    parts: list[str] = []
    shapes = {**reading.misshapen, **misshapen}
    if missing:
        parts.append(f"missing: {', '.join(missing)}")
    if reading.unknown:
        parts.append(f"unknown: {', '.join(sorted(reading.unknown))}")
    if reading.twice:
        parts.append(f"under two names: {', '.join(reading.twice)}")
    if shapes:
        parts.append(f"of the wrong shape: {', '.join(f'{name} ({reason})' for name, reason in shapes.items())}")
    return UsageError(
        f"the weights are not those of one whole Swin Transformer V2; {'; '.join(parts)}. Nothing was left out or made "
        "up: mend the file, or take the one it was made of."
    )
