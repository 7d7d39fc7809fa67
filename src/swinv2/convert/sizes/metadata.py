"""What the name of a file, and the `config.json` beside it, say of sizes.

In: a name, or the fields of a `config.json`. Out: what they say; nothing where somebody named a file himself. Arguments
of timm that would make it compute something else than this package are refused. This module knows no tensor.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swinv2.config import Swinv2Config
from swinv2.convert.dialects.rules import Dialect
from swinv2.convert.dialects.transformers import TRANSFORMERS
from swinv2.errors import UsageError
from swinv2.lengths import Pair, Windows, as_pair, as_windows, plain_windows

_PUBLISHED = re.compile(
    r"(?:microsoft/|timm/)?swinv2_[a-z]+(?:_patch4)?_window([1-9]\d{0,2})(?:to([1-9]\d{0,2}))?_([1-9]\d{1,3})"
    r"(?:to([1-9]\d{1,3}))?(?:_22k|_22kto1k_ft|_22kft1k)?(?:\.\w+)?"
)
"""The authors', the hub's and timm's names with all that may be in them; more makes it somebody's own name."""
_MMPRETRAIN = re.compile(
    r"swinv2_[a-z]+_w([1-9]\d{0,2})(_in21k_pre)?(?:_3rdparty|_\d+xb\d+)?_in(?:1|21)k_([1-9]\d{1,3})px"
    r"(?:_\d{8}_[0-9a-f]{8})?"
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
class SizeHints:
    """What is known of the sizes that shapes do not show; None for what is not.

    Attributes:
        image_size: Image size (height, width) in pixels.
        window_size: Windows in tokens, one for all stages or one for each.
        pretrained: For each stage, the window in which its position bias was learned; 0 for its own.
    """

    image_size: Pair | None = None
    window_size: Windows | None = None
    pretrained: tuple[int | Pair, ...] | None = None


def read_name(name: str, stages: int) -> SizeHints:
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
        SizeHints(image_size=(256, 256), window_size=16, pretrained=(12, 12, 12, 6))
    """
    text = name.lower().replace("-", "_")
    found = _PUBLISHED.fullmatch(text)
    if found is not None:
        window, size = int(found[2] or found[1]), int(found[4] or found[3])
        first, first_size = int(found[1]), int(found[3])
        pretrained = (0,) * stages
        if found[2] and found[4]:
            pretrained = tuple(max(1, min(first, first_size // 4 >> index)) for index in range(stages))
        return SizeHints((size, size), window, pretrained)
    if re.fullmatch(r"swin_v2_[tsb](_[0-9a-f]{8})?", text):
        return SizeHints((256, 256), 8, (0,) * stages)
    found = _MMPRETRAIN.fullmatch(text)
    if found is not None:
        size = int(found[3])
        return SizeHints((size, size), int(found[1]), None if found[2] else (0,) * stages)
    return SizeHints()


def read_config(config: dict[str, Any] | None, dialect: Dialect, stages: int) -> Swinv2Config | SizeHints:
    """What a config.json beside the weights says.

    Args:
        config: Its fields; None without one.
        dialect: Whose names the tensors have.
        stages: Number of stages.

    Returns:
        A configuration if it is transformers' or ours; otherwise what timm's says of sizes, or nothing.

    Raises:
        UsageError: It describes no possible model, or one that this package does not compute.
    """
    if config is None:
        return SizeHints()
    if config.get("model_type") == "swinv2":
        try:
            return Swinv2Config.from_dict(config).checked()
        except (ValueError, TypeError) as error:
            raise UsageError(f"config.json beside the weights describes no possible model: {error}") from error
    if isinstance(config.get("architecture"), str):
        return _read_timm(config, stages)
    if dialect is TRANSFORMERS or "model_type" in config:
        raise UsageError(
            f"config.json beside the weights is of the model type {config.get('model_type')!r}; expected 'swinv2', or "
            "timm's own with its architecture. Give the file of weights itself to leave config.json aside."
        )
    return SizeHints()


def _read_timm(config: Mapping[str, Any], stages: int) -> SizeHints:
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
        windows = None if window is None else plain_windows(as_windows("window_size", window, stages))
        pretrained = None if learned is None else tuple(as_pair("pretrained_window_sizes", one, 0) for one in learned)
    except (ValueError, TypeError) as error:
        raise UsageError(f"config.json beside the weights is timm's, but {error}") from error
    if any(0 in one and any(one) for one in pretrained or ()):
        raise UsageError(
            f"config.json says pre-training windows of {learned}, of which one is 0 on one axis only; timm takes only "
            "the first number for a sign. Give the file of weights itself, and --pretrained-window-sizes."
        )
    return SizeHints(image_size, windows, pretrained)


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
