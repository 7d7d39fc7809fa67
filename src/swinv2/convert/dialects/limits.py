"""The limits of other implementations, as sentences.

In: a configuration. Out: a sentence for each of its settings with which a library's network would compute something
else. Each dialect lists the limits that its library has. This module knows no tensor.
"""

from collections.abc import Iterator, Mapping

from swinv2.config import StageSpec, Swinv2Config
from swinv2.convert.dialects.squares import with_equivalent_square
from swinv2.lengths import as_pair, in_words


def extra_norms(config: Swinv2Config) -> Iterator[str]:
    """The extra norms on the main path of the largest models."""
    if config.extra_norm_period:
        yield f"it has no extra norms on the main path (extra_norm_period is {config.extra_norm_period})"


def position_embeddings(config: Swinv2Config) -> Iterator[str]:
    """Absolute position embeddings."""
    if config.use_absolute_embeddings:
        yield "its absolute position embeddings do not work, if it has any"


def hidden_padding(config: Swinv2Config) -> Iterator[str]:
    """Padding tokens that are hidden."""
    if config.mask_padding:
        yield "it cannot hide padding tokens (mask_padding is True)"


def other_norms(config: Swinv2Config) -> Iterator[str]:
    """An epsilon of the norms other than the usual one."""
    if config.layer_norm_eps != 1e-5:
        yield f"the epsilon of its norms is 1e-05 (layer_norm_eps is {config.layer_norm_eps:g})"


def other_activations(config: Swinv2Config) -> Iterator[str]:
    """An activation other than GELU."""
    if config.hidden_act != "gelu":
        yield f"its activation is gelu (hidden_act is {config.hidden_act!r})"


def rectangles(config: Swinv2Config) -> Iterator[str]:
    """Rectangular sizes: implementations choose different windows for them."""
    for name, size in {"image_size": config.image_size, "patch_size": config.patch_size}.items():
        if len(set(as_pair(name, size))) > 1:
            yield f"it chooses other windows for a rectangular {name} ({size})"


def rectangular_pretraining(config: Swinv2Config) -> Iterator[str]:
    """Pre-training windows that are not square."""
    odd = [stage for stage in config.stages() if stage.pretrained_window[0] != stage.pretrained_window[1]]
    yield from _of_stages(
        "its pre-training windows are square", {stage: in_words(stage.pretrained_window) for stage in odd}
    )


def pretraining(config: Swinv2Config) -> Iterator[str]:
    """A position bias that was learned in another window than the stage has."""
    changed = [stage for stage in config.stages() if stage.learned_window != stage.window]
    yield from _of_stages(
        "it has no pre-training windows",
        {
            stage: f"{in_words(stage.window)}, its position bias learned in {in_words(stage.learned_window)}"
            for stage in changed
        },
    )


def several_windows(config: Swinv2Config) -> Iterator[str]:
    """Windows that do not follow from one square window for all stages."""
    if not isinstance(with_equivalent_square(config).window_size, int):
        yield f"its windows are square, and of one size in all stages (window_size is {config.window_size})"


def rectangular_windows(config: Swinv2Config) -> Iterator[str]:
    """Windows that are not square."""
    odd = [stage for stage in config.stages() if stage.window[0] != stage.window[1]]
    yield from _of_stages("its windows are square", {stage: in_words(stage.window) for stage in odd})


def clipped_windows(config: Swinv2Config) -> Iterator[str]:
    """Windows that differ from the configured window of the first stage."""
    first = config.stage_windows[0]
    others = [stage for stage in config.stages() if stage.window != first]
    yield from _of_stages(
        f"its windows have one size in all stages, here {in_words(first)}",
        {stage: f"its map or window_size makes it {in_words(stage.window)}" for stage in others},
    )


def padding(config: Swinv2Config) -> Iterator[str]:
    """A map that cannot be divided into windows, or halved by merging, without padding."""
    uneven = [
        stage
        for stage in config.stages()
        if any(length % side for length, side in zip(stage.grid, stage.window, strict=True))
        or (stage.merges and any(length % 2 for length in stage.grid))
    ]
    yield from _of_stages(
        "it does not pad maps as this package does",
        {stage: f"{in_words(stage.grid)} tokens in windows of {in_words(stage.window)}" for stage in uneven},
    )


def one_token(config: Swinv2Config) -> Iterator[str]:
    """Windows of one token, for which the coordinate is zero divided by zero."""
    single = [stage for stage in config.stages() if 1 in stage.window or 1 in stage.pretrained_window]
    yield from _of_stages(
        "in a window of one token it divides zero by zero", {stage: in_words(stage.window) for stage in single}
    )


def missing_biases(config: Swinv2Config) -> Iterator[str]:
    """Queries and values without a bias."""
    if not config.qkv_bias:
        yield "its queries and values always have a bias (qkv_bias is False)"


def other_channels(config: Swinv2Config) -> Iterator[str]:
    """Images that do not have three channels."""
    if config.num_channels != 3:
        yield f"it takes three channels (num_channels is {config.num_channels})"


def _of_stages(sentence: str, stages: Mapping[StageSpec, str]) -> Iterator[str]:
    """One sentence for all given stages, with a detail for each stage; nothing if there are no stages."""
    if stages:
        yield f"{sentence} ({'; '.join(f'stage {stage.index + 1}: {detail}' for stage, detail in stages.items())})"
