"""The configuration of a Swin Transformer V2.

In: the fields of a `config.json`, written by hand, by this package or by transformers.
Out: a validated `Swinv2Config`, and one `StageSpec` for each stage: all the numbers that the layers need. This module
knows no tensor, no layer and no checkpoint name.
"""

import copy
import difflib
import math
from dataclasses import dataclass, fields
from typing import Any, Self

from torch import nn
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedConfig
from transformers.activations import ACT2FN, GELUActivation
from transformers.backbone_utils import BackboneConfigMixin
from transformers.utils import logging

from swinv2.lengths import (
    Lengths,
    Pair,
    Windows,
    as_axes,
    as_length,
    as_lengths,
    as_pair,
    as_windows,
    in_words,
    plain_pair,
    plain_windows,
)

logger = logging.get_logger(__name__)

# Fields that transformers, in this or an older version, passes to any configuration or stores in it, in addition to the
# fields of PreTrainedConfig; and `path_norm`: the published Swin V2 configurations have it, and no code reads it.
_COMMON_FIELDS = frozenset(GenerationConfig().to_dict()) | frozenset(
    """
    num_labels name_or_path _name_or_path torch_dtype model_type out_features out_indices _out_features _out_indices
    attn_implementation _attn_implementation _attn_implementation_internal experts_implementation
    _experts_implementation _experts_implementation_internal output_attentions _output_attentions _commit_hash
    per_layer_config auto_map custom_pipelines quantization_config _post_init_done
    is_decoder add_cross_attention cross_attention_hidden_size tie_encoder_decoder tie_word_embeddings torchscript
    use_bfloat16 use_cache tokenizer_class prefix sep_token_id task_specific_params finetuning_task pruned_heads
    gradient_checkpointing tf_legacy_loss tie_last_hidden_states path_norm
    """.split()  # noqa: SIM905 - a list of words reads better as words
)


def is_exact_gelu(module: nn.Module) -> bool:
    """Whether a module is the exact GELU (with the error function), computed by torch's own operation."""
    return (type(module) is nn.GELU and module.approximate == "none") or (
        type(module) is GELUActivation and module.act is functional.gelu
    )


@dataclass(frozen=True)
class StageSpec:
    """The numbers of one stage, derived from a `Swinv2Config`.

    Lengths along axes are (height, width) for images, and (frames, height, width) for videos.

    Attributes:
        index: Position of the stage, 0 for the first.
        dim: Channels C of the stage's map.
        num_heads: Attention heads; `dim` is a multiple of it.
        grid: Size in tokens of the stage's map for an image or a video of the configured size.
        window: Size in tokens of the attention windows.
        shift: Cyclic shift in tokens of every second block.
        pretrained_window: Window in which the position bias was learned; the coordinates are normalised by it.
            0 on an axis means `window` itself.
        drop_path_rates: For each block, the probability that its branches are left out.
        extra_norms: For each block, whether an extra layer norm on the main path ends it.
        merges: Whether patch merging (2 x 2) ends the stage.
    """

    index: int
    dim: int
    num_heads: int
    grid: Lengths
    window: Lengths
    shift: Lengths
    pretrained_window: Lengths
    drop_path_rates: tuple[float, ...]
    extra_norms: tuple[bool, ...]
    merges: bool

    @property
    def name(self) -> str:
        """Name of the stage in messages, and of its map: "stage1" for the first."""
        return f"stage{self.index + 1}"

    @property
    def depth(self) -> int:
        """Number of blocks of the stage."""
        return len(self.drop_path_rates)

    @property
    def learned_window(self) -> Lengths:
        """The window in which the position bias was learned: `pretrained_window`, or `window` on an axis that is 0."""
        return tuple(learned or own for learned, own in zip(self.pretrained_window, self.window, strict=True))


_OTHER_WEIGHTS = frozenset({"depths", "embed_dim", "num_heads", "patch_size", "tubelet_size"})
"""If one of these fields is changed, the weights of the file do not fit."""


KINDS = {"swinv2": "images", "swinv2_video": "videos"}
"""What the models of each model type are for."""

MOST_PADDED = 1.25
"""A stage keeps its window if the padded map has at most so many times the tokens of the map."""


def _fitted_side(length: int, most: int) -> int:
    """The side of a window, from half of `most` to `most`, that pads a map of this length least."""
    return min(range(most, (most - 1) // 2, -1), key=lambda side: -(-length // side) * side)


def _is_number(value: Any) -> bool:
    """Whether the value of a configuration's field is a number; True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class Swinv2Config(BackboneConfigMixin, PreTrainedConfig):
    """Configuration of a Swin Transformer V2: transformers' fields and defaults, checked.

    The defaults are the architecture of microsoft/swinv2-tiny-patch4-window8-256, with transformers' default image size
    (224) and window (7).

    Args:
        image_size: Image size in pixels, one length or (height, width). It determines windows and shifts; the forward
            pass takes any size.
        patch_size: Patch size in pixels, one length or (height, width).
        num_channels: Channels of the image.
        embed_dim: Channels C of the first stage; each later stage has twice as many.
        depths: Number of blocks of each stage; any number of stages.
        num_heads: Attention heads of each stage.
        window_size: Attention windows in tokens: one length, or (height, width); or a list with one of these for each
            stage. Two integers are always a pair; for two stages write [[16, 16], [8, 8]]. A window is clipped, axis by
            axis, to its stage's map. The field is stored in the shortest notation: as one integer if possible.
        pretrained_window_sizes: For each stage, the window in which its position bias was learned (an integer or a
            pair), or 0 for that of `window_size`. Set it if `window_size` is another window: the position bias is then
            extrapolated.
        mlp_ratio: Hidden features of the MLP divided by its input features.
        qkv_bias: Whether queries and values have a learned bias (keys never have one).
        hidden_dropout_prob: Dropout after the patch embedding and after the MLP.
        attention_probs_dropout_prob: Dropout of the attention weights and of the attention's output.
        drop_path_rate: Drop path probability of the last block; it rises linearly from 0 in the first block.
        hidden_act: Activation of the MLP, a name of `transformers.activations.ACT2FN`.
        use_absolute_embeddings: Whether to add a learned position embedding to the patches.
        initializer_range: Standard deviation of fresh weights.
        layer_norm_eps: Epsilon of the layer norms in the blocks and at the end. Those of the patch embedding, of
            patch merging and of feature maps always have 1e-5, as in every other implementation.
        encoder_stride: Side in pixels of the area that the masked-image decoder predicts for each token of the last
            map; one length or (height, width). Must be the patch size times two to the power of the merges.
        extra_norm_period: N adds an extra layer norm on the main path after every N blocks of a stage (6 in the huge
            and giant models of the paper); 0 adds none.
        mask_padding: False: attention includes the padding tokens of the last windows, as in transformers and in the
            training of the published checkpoints. True: they are hidden.
        norm_targets: 0: the masked-image decoder predicts pixels. An odd number N: it predicts pixels normalised by the
            mean and deviation of the N x N pixels around each; the authors' Swin V2 models were pre-trained with 47.
        norm_feature_maps: Whether `Swinv2Backbone` ends each map that it returns with a layer norm of its own, as
            transformers' and the authors' Swin (V1) backbones do: without one, the values of a map grow from block to
            block. transformers' Swin V2 has none, so there a model with them computes something else.
        out_features: Names of the maps that the backbone returns: "stem", "stage1", ...
        out_indices: Indices of these maps; give only one of the two fields.

    Raises:
        ValueError: A field is impossible or unknown; the message names it and says what was expected. If fields
            contradict each other, the error is raised when a model is built from them (`checked`).

    Source:
        Liu et al., Swin Transformer V2, sections 3.1 to 3.4; transformers' `Swinv2Config` for names and defaults.

    Example:

        >>> from swinv2 import Swinv2Config
        >>> config = Swinv2Config(image_size=256, window_size=8)
        >>> [stage.window for stage in config.stages()]
        [(8, 8), (8, 8), (8, 8), (8, 8)]
        >>> config = Swinv2Config(image_size=(128, 256), window_size=[(8, 16), (8, 16), 8, 4])
        >>> [stage.window for stage in config.stages()]
        [(8, 16), (8, 16), (8, 8), (4, 4)]
        >>> Swinv2Config(windows_size=8)
        Traceback (most recent call last):
        ValueError: Swinv2Config has no field 'windows_size'; did you mean 'window_size'?
    """

    model_type = "swinv2"
    attribute_map = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}
    axes = 2
    size_fields = frozenset({"image_size", "window_size"})

    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 4
    num_channels: int = 3
    embed_dim: int = 96
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_heads: list[int] | tuple[int, ...] = (3, 6, 12, 24)
    window_size: int | list[Any] | tuple[Any, ...] = 7
    pretrained_window_sizes: list[Any] | tuple[Any, ...] = (0, 0, 0, 0)
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    drop_path_rate: float = 0.1
    hidden_act: str = "gelu"
    use_absolute_embeddings: bool = False
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    encoder_stride: int | list[int] | tuple[int, int] = 32
    extra_norm_period: int = 0
    mask_padding: bool = False
    norm_targets: int = 0
    norm_feature_maps: bool = False
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for alias, name in self.attribute_map.items():
            if alias in kwargs:
                kwargs[name] = kwargs.pop(alias)
        if "num_heads" in kwargs:
            self.num_heads = kwargs.pop("num_heads")
        self.depths = as_lengths("depths", self.depths)
        self.num_heads = as_lengths("num_heads", self.num_heads)
        sizes = self.pretrained_window_sizes
        if not isinstance(sizes, (list, tuple)):
            raise ValueError(f"pretrained_window_sizes is {sizes!r}; expected a list, one entry for each stage.")
        # The default, four zeros, means 0 for each stage; transformers writes it for any number of stages.
        self.pretrained_window_sizes = list(sizes) if any(sizes) else [0] * len(self.depths)
        self._check_each()
        self._shorten_windows()
        for name in ("num_layers", "hidden_size", "stage_names"):
            given = kwargs.pop(name, None)
            if given is not None and given != getattr(self, name):
                raise ValueError(
                    f"{name} is {given!r}, but embed_dim {self.embed_dim} and depths {self.depths} make it "
                    f"{getattr(self, name)!r}; leave {name} out."
                )
        known = self._known_fields()
        for key in (key for key in kwargs if key not in known):
            close = difflib.get_close_matches(key, sorted(name for name in known if not name.startswith("_")), 1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise ValueError(f"{type(self).__name__} has no field {key!r}{hint}")
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Builds a configuration from the contents of a `config.json`.

        Unknown keys become attributes, with a warning, since other tools add keys to the file; the constructor raises
        an error for them.

        If another `image_size` or `window_size` is given, here or to `from_pretrained`, each stage keeps the window in
        which its position bias was learned (see `resized`), unless `pretrained_window_sizes` is given too. For fresh
        weights give zeros there. Absolute position embeddings of another size cannot be loaded: load the model
        unchanged, and call `set_image_size`.
        """
        given = config_dict.get("model_type")
        if given != cls.model_type and given in KINDS:
            raise ValueError(
                f"the configuration is of a model of {KINDS[given]} (model type {given!r}), and {cls.__name__} is for "
                f"models of {KINDS[cls.model_type]}; load it with the classes of models of {KINDS[given]}, or with "
                "transformers' Auto classes after swinv2.register()."
            )
        known = cls._known_fields()
        extra = {key: value for key, value in config_dict.items() if key not in known}
        own = {key: value for key, value in config_dict.items() if key in known}
        built = super().from_dict(dict(own), **kwargs)  # changes its dictionary
        config = built[0] if isinstance(built, tuple) else built
        if "window_size" in kwargs:
            config._shorten_windows()
        is_resized = kwargs.keys() & cls.size_fields and not kwargs.keys() & _OTHER_WEIGHTS
        if is_resized and "pretrained_window_sizes" not in kwargs:
            config._keep_learned_windows(cls(**own))
            others = [spec for spec in config.stages() if spec.window != spec.learned_window]
            if others:
                windows = ", ".join(
                    f"{in_words(s.window)} from {in_words(s.learned_window)} in stage {s.index + 1}" for s in others
                )
                logger.warning(
                    f"The position bias is extrapolated to windows in which it was not learned: {windows}. To stretch "
                    "it instead, or to begin with fresh weights, give "
                    f"pretrained_window_sizes={[0] * len(config.depths)} too."
                )
        for key, value in extra.items():
            setattr(config, key, value)
        if extra:
            logger.warning(f"{cls.__name__} keeps these unknown keys of the file; they have no effect: {sorted(extra)}")
        return built

    def resized(self, image_size: Any, window_size: Windows | None = None, stretch: bool = False) -> Self:
        """The same network for another image size, and for another window if one is given.

        If a stage's window changes, `pretrained_window_sizes` keeps the window in which its position bias was learned:
        the bias is extrapolated.

        Args:
            image_size: In pixels, one length or (height, width).
            window_size: In tokens, in any notation of the field; None keeps the present one.
            stretch: Stretch the learned position bias over the new window instead.

        Raises:
            ValueError: The size or the window is impossible.

        Source:
            Liu et al., Swin Transformer V2, section 3.3 and table 1.
        """
        return self._with_sizes({"image_size": image_size}, window_size, stretch)

    def _with_sizes(self, sizes: dict[str, Any], window_size: Windows | None, stretch: bool) -> Self:
        """`resized`, with the fields of the size as a dictionary."""
        other = copy.deepcopy(self)
        for name, value in sizes.items():
            setattr(other, name, value)
        if window_size is not None:
            windows = as_windows("window_size", window_size, len(self.depths), axes=self.axes)
            other.window_size = plain_windows(windows)
        if stretch:
            other.pretrained_window_sizes = [0] * len(self.depths)
        else:
            other._keep_learned_windows(self)
        return other.checked()

    def map_sizes(self, image_size: Pair) -> list[Pair]:
        """The size (height, width) in tokens of each stage's map of an image (height, width) in pixels.

        The network pads to whole patches and to even maps, so lengths are rounded up; `StageSpec.grid`, which decides
        windows, is rounded down.
        """
        patch = as_pair("patch_size", self.patch_size)
        height, width = (-(-length // side) for length, side in zip(image_size, patch, strict=True))
        return [(-(-height >> index), -(-width >> index)) for index in range(len(self.depths))]

    def fitted_windows(self, image_size: Any, window: int | Pair) -> list[Pair]:
        """A window for each stage that wastes little on padding: the given one, unless a map would be padded by more
        than a quarter of its tokens; then, on each axis, the one that pads least, from the given length (or that of the
        map, which clips it) to half of it, and of equal ones the largest.

        Args:
            image_size: In pixels, one length or (height, width).
            window: The largest window in tokens.

        Example:

            >>> from swinv2 import Swinv2Config
            >>> Swinv2Config().fitted_windows(1536, 32)  # the last map has 48 tokens on each axis, which pad to 64
            [(32, 32), (32, 32), (32, 32), (24, 24)]

        Raises:
            ValueError: The size or the window is impossible.
        """
        other = copy.deepcopy(self)
        other.image_size, other.window_size = image_size, plain_windows((as_axes("window", window, axes=self.axes),))
        frames = [-(-length // side) for length, side in zip(self.input_lengths, self.patch_lengths, strict=True)][:-2]
        found = list[Any]()
        for spec, size in zip(other.stages(), self.map_sizes(as_pair("image_size", image_size)), strict=True):
            grid = (*frames, *size)
            padded = math.prod(-(-length // side) * side for length, side in zip(grid, spec.window, strict=True))
            keeps = padded <= MOST_PADDED * math.prod(grid)
            found.append(spec.window if keeps else tuple(map(_fitted_side, grid, spec.window)))
        return found

    def checked(self) -> Self:
        """This configuration, if a model can be built from it.

        Raises:
            ValueError: Fields are impossible or contradict each other.
        """
        self.stages()
        return self

    def _shorten_windows(self) -> None:
        """Sets `window_size` to its shortest notation."""
        windows = as_windows("window_size", self.window_size, len(self.depths), any_number=True, axes=self.axes)
        # A list whose length is not the number of stages stays unchanged; building a model raises an error for it.
        is_valid = len(windows) == len(self.depths)
        self.window_size = plain_windows(windows) if is_valid else copy.deepcopy(self.window_size)

    def _keep_learned_windows(self, before: "Swinv2Config") -> None:
        """Sets the pre-training windows to the learned windows of another configuration."""
        kept = []
        for old, new in zip(before.stages(), self.stages(), strict=True):
            unchanged = new.window == old.window and not any(old.pretrained_window)
            # A length of 1 is written as 2: the coordinates are the same, and transformers divides by the length - 1.
            learned = tuple(max(length, 2) for length in old.learned_window)
            kept.append((0,) * self.axes if unchanged else learned)
        self.pretrained_window_sizes = [plain_pair(pair) for pair in kept]

    @classmethod
    def _known_fields(cls) -> frozenset[str]:
        """The keys of a `config.json` for which `from_dict` gives no warning."""
        own = {field.name for field in fields(cls)}
        return frozenset(own | _COMMON_FIELDS | set(cls.attribute_map) | {"num_layers", "hidden_size", "stage_names"})

    @property
    def num_layers(self) -> int:
        """Number of stages."""
        return len(self.depths)

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage."""
        return self.embed_dim * 2 ** (len(self.depths) - 1)

    @property
    def stage_names(self) -> list[str]:
        """Names of the maps that a backbone can return: "stem", "stage1", ..., "stageN"."""
        return ["stem"] + [f"stage{index}" for index in range(1, len(self.depths) + 1)]

    @property
    def stage_windows(self) -> tuple[Lengths, ...]:
        """Size in tokens of each stage's windows, before its map clips them."""
        return as_windows("window_size", self.window_size, len(self.depths), axes=self.axes)

    @property
    def input_lengths(self) -> Lengths:
        """Size of the configured input along each axis: (height, width) in pixels."""
        return as_pair("image_size", self.image_size)

    @property
    def patch_lengths(self) -> Lengths:
        """Size of a patch along each axis: (height, width) in pixels."""
        return as_pair("patch_size", self.patch_size)

    @property
    def patch_grid(self) -> Lengths:
        """Size in tokens of the first map for an input of the configured size."""
        return tuple(length // patch for length, patch in zip(self.input_lengths, self.patch_lengths, strict=True))

    def stages(self) -> tuple[StageSpec, ...]:
        """Derives every stage's sizes from the fields as they are now.

        On each axis, a window is at most as long as the stage's map; an axis on which it covers the map is not shifted.
        Each stage halves the grid of the stage before, rounded down, to at least one token.

        Raises:
            ValueError: Fields contradict each other, or were changed to an impossible value.

        Source:
            transformers' `Swinv2Layer._compute_window_shift`; timm's `_calc_window_shift` for rectangles.
        """
        self._check_each()
        self._check_together()
        num_blocks, period = sum(self.depths), self.extra_norm_period
        rates = [self.drop_path_rate * block / max(num_blocks - 1, 1) for block in range(num_blocks)]
        specs: list[StageSpec] = []
        for index, (depth, configured) in enumerate(zip(self.depths, self.stage_windows, strict=True)):
            # Merging halves height and width, and keeps the frames of a video.
            *frames, height, width = self.patch_grid
            grid = (*frames, max(1, height >> index), max(1, width >> index))
            window = tuple(map(min, grid, configured))
            shift = tuple(0 if length <= side else side // 2 for length, side in zip(grid, window, strict=True))
            name = f"pretrained_window_sizes[{index}]"
            learned = as_axes(name, self.pretrained_window_sizes[index], 0, self.axes)
            first = sum(self.depths[:index])
            specs.append(
                StageSpec(
                    index=index,
                    dim=self.embed_dim << index,
                    num_heads=self.num_heads[index],
                    grid=grid,
                    window=window,
                    shift=shift,
                    pretrained_window=learned,
                    drop_path_rates=tuple(rates[first : first + depth]),
                    extra_norms=tuple(period > 0 and (block + 1) % period == 0 for block in range(depth)),
                    merges=index < len(self.depths) - 1,
                )
            )
        return tuple(specs)

    def make_activation(self) -> nn.Module:
        """Builds the activation of the MLP."""
        return ACT2FN[self.hidden_act]

    def _check_each(self) -> None:
        """Raises an error for a value that is always wrong."""
        if not self.depths:
            raise ValueError("depths is empty; expected the number of blocks of at least one stage.")
        for name in ("image_size", "patch_size", "encoder_stride"):
            as_pair(name, getattr(self, name))
        for name in ("num_channels", "embed_dim"):
            as_length(name, getattr(self, name))
        as_length("extra_norm_period", self.extra_norm_period, 0)
        as_length("norm_targets", self.norm_targets, 0)
        if self.norm_targets and (self.norm_targets < 3 or self.norm_targets % 2 == 0):
            raise ValueError(
                f"norm_targets is {self.norm_targets}; expected 0, or an odd number of at least 3: the side of a "
                "square around each pixel."
            )
        as_windows("window_size", self.window_size, len(self.depths), any_number=True, axes=self.axes)
        for index, window in enumerate(self.pretrained_window_sizes):
            as_axes(f"pretrained_window_sizes[{index}]", window, 0, self.axes)
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
            self._check_probability(name)
        for name in ("mlp_ratio", "initializer_range", "layer_norm_eps"):
            if not _is_number(getattr(self, name)) or getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected a number above 0.")
        for name in ("qkv_bias", "use_absolute_embeddings", "mask_padding", "norm_feature_maps"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected True or False.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act is {self.hidden_act!r}; expected one of {sorted(ACT2FN)}.")

    def _check_probability(self, name: str) -> None:
        """Raises an error unless a field is a probability."""
        if not _is_number(getattr(self, name)) or not 0.0 <= getattr(self, name) < 1.0:
            raise ValueError(f"{name} is {getattr(self, name)!r}; expected a probability: at least 0 and less than 1.")

    def _check_together(self) -> None:
        """Raises an error if fields contradict each other. Called when a model is built: until then they may change."""
        if 0 in self.patch_grid:
            raise ValueError(
                f"image_size {self.image_size} is smaller than patch_size {self.patch_size}; an image must have at "
                "least one patch."
            )
        if self.extra_norm_period > max(self.depths):
            raise ValueError(
                f"extra_norm_period is {self.extra_norm_period}, but no stage of depths {self.depths} has so many "
                "blocks, so there would be no extra norm. Use 0 for that."
            )
        for name in ("num_heads", "pretrained_window_sizes"):
            if len(getattr(self, name)) != len(self.depths):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, {len(getattr(self, name))} long; expected one entry for "
                    f"each of the {len(self.depths)} stages of depths {self.depths}."
                )
        if int(self.mlp_ratio * self.embed_dim) < 1:
            raise ValueError(
                f"mlp_ratio is {self.mlp_ratio}, which gives an MLP of {self.embed_dim} channels no hidden feature."
            )
        for index, heads in enumerate(self.num_heads):
            if (self.embed_dim * 2**index) % heads:
                raise ValueError(
                    f"num_heads[{index}] is {heads}, but the {self.embed_dim * 2**index} channels of stage {index + 1} "
                    "are not a multiple of it; change num_heads or embed_dim."
                )
