"""The limits of other implementations, as sentences; and one square window instead of several.

In: a configuration. Out: a sentence for each of its settings with which a library's network would compute something
else; each dialect lists the limits that its library has. Also, in: a configuration. Out: the same with one square
window, for libraries with no other windows, if that is equivalent: the same clipped windows in every stage. This module
knows no tensor.
"""

import copy
from collections.abc import Iterator, Mapping

from swinv2.config import StageSpec, Swinv2Config
from swinv2.lengths import Windows, as_pair, as_windows, in_words, plain_windows


def extra_norms(config: Swinv2Config) -> Iterator[str]:
    """A limit of a library: the extra norms on the main path of the largest models."""
    if config.extra_norm_period:
        yield f"it has no extra norms on the main path (extra_norm_period is {config.extra_norm_period})"


def position_embeddings(config: Swinv2Config) -> Iterator[str]:
    """A limit of a library: absolute position embeddings."""
    if config.use_absolute_embeddings:
        yield "its absolute position embeddings do not work, if it has any"


def hidden_padding(config: Swinv2Config) -> Iterator[str]:
    """A limit of a library: padding tokens that are hidden."""
    if config.mask_padding:
        yield "it cannot hide padding tokens (mask_padding is True)"


def other_operations(config: Swinv2Config) -> Iterator[str]:
    """A limit of a library: an epsilon of the norms other than the usual one, and an activation other than GELU."""
    if config.layer_norm_eps != 1e-5:
        yield f"the epsilon of its norms is 1e-05 (layer_norm_eps is {config.layer_norm_eps:g})"
    if config.hidden_act != "gelu":
        yield f"its activation is gelu (hidden_act is {config.hidden_act!r})"


def rectangles(config: Swinv2Config) -> Iterator[str]:
    """A limit of a library: rectangular sizes: implementations choose different windows for them."""
    for name, size in {"image_size": config.image_size, "patch_size": config.patch_size}.items():
        if len(set(as_pair(name, size))) > 1:
            yield f"it chooses other windows for a rectangular {name} ({size})"


def rectangular_pretraining(config: Swinv2Config) -> Iterator[str]:
    """A limit of a library: pre-training windows that are not square."""
    odd = {spec: in_words(spec.pretrained_window) for spec in config.stages() if len(set(spec.pretrained_window)) > 1}
    yield from _of_stages("its pre-training windows are square", odd)


def pretraining(config: Swinv2Config) -> Iterator[str]:
    """A limit of a library: a position bias that was learned in another window than the stage has."""
    changed = {
        spec: f"{in_words(spec.window)}, its position bias learned in {in_words(spec.learned_window)}"
        for spec in config.stages()
        if spec.learned_window != spec.window
    }
    yield from _of_stages("it has no pre-training windows", changed)


def several_windows(config: Swinv2Config) -> Iterator[str]:
    """A limit of a library: windows that do not follow from one square window for all stages."""
    if not isinstance(with_equivalent_square(config).window_size, int):
        yield f"its windows are square, and of one size in all stages (window_size is {config.window_size})"


def rectangular_windows(config: Swinv2Config) -> Iterator[str]:
    """A limit of a library: windows that are not square."""
    odd = {spec: in_words(spec.window) for spec in config.stages() if len(set(spec.window)) > 1}
    yield from _of_stages("its windows are square", odd)


def clipped_windows(config: Swinv2Config) -> Iterator[str]:
    """A limit of a library: windows that differ from the configured window of the first stage."""
    first = config.stage_windows[0]
    others = {
        spec: f"its map or window_size makes it {in_words(spec.window)}"
        for spec in config.stages()
        if spec.window != first
    }
    yield from _of_stages(f"its windows have one size in all stages, here {in_words(first)}", others)


def padding(config: Swinv2Config) -> Iterator[str]:
    """A limit of a library: a map that cannot be divided into windows, or halved by merging, without padding."""
    uneven = {
        spec: f"{in_words(spec.grid)} tokens in windows of {in_words(spec.window)}"
        for spec in config.stages()
        if any(length % side for length, side in zip(spec.grid, spec.window, strict=True))
        or (spec.merges and any(length % 2 for length in spec.grid))
    }
    yield from _of_stages("it does not pad maps as this package does", uneven)


def one_token(config: Swinv2Config) -> Iterator[str]:
    """A limit of a library: windows of one token, for which the coordinate is zero divided by zero."""
    single = {
        spec: in_words(spec.window) for spec in config.stages() if 1 in spec.window or 1 in spec.pretrained_window
    }
    yield from _of_stages("in a window of one token it divides zero by zero", single)


def missing_biases(config: Swinv2Config) -> Iterator[str]:
    """A limit of a library: queries and values without a bias."""
    if not config.qkv_bias:
        yield "its queries and values always have a bias (qkv_bias is False)"


def other_channels(config: Swinv2Config) -> Iterator[str]:
    """A limit of a library: images that do not have three channels."""
    if config.num_channels != 3:
        yield f"it takes three channels (num_channels is {config.num_channels})"


def _of_stages(sentence: str, stages: Mapping[StageSpec, str]) -> Iterator[str]:
    """A limit as one sentence for all given stages, with a detail for each stage; nothing if there are no stages."""
    if stages:
        yield f"{sentence} ({'; '.join(f'stage {stage.index + 1}: {detail}' for stage, detail in stages.items())})"


def with_equivalent_square(config: Swinv2Config) -> Swinv2Config:
    """The configuration with one square window that gives all stages the same windows and shifts.

    Returns:
        The same configuration if it already has one square window, or if no square window is equivalent; otherwise a
        copy with the smallest equivalent one.

    Example:

        >>> with_equivalent_square(Swinv2Config(image_size=256, window_size=[16, 16, 16, 8])).window_size
        16
        >>> with_equivalent_square(Swinv2Config(image_size=256, window_size=[16, 16, 8, 8])).window_size
        [16, 16, 8, 8]
    """
    largest = max(max(spec.window) for spec in config.stages())
    is_square = isinstance(plain_windows(config.stage_windows), int)
    return config if is_square or not are_equivalent(config, largest) else _with_windows(config, largest)


def are_equivalent(config: Swinv2Config, window_size: Windows) -> bool:
    """Whether a `window_size` that a library can have, in any notation, gives stages the same windows and shifts."""
    return _with_windows(config, window_size).stages() == config.stages()


def _with_windows(config: Swinv2Config, window_size: Windows) -> Swinv2Config:
    """A copy of the configuration with the `window_size` that a library can have."""
    other = copy.deepcopy(config)
    other.window_size = plain_windows(as_windows("window_size", window_size, len(config.depths)))
    return other
