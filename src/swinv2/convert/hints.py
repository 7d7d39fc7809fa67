"""Reads sizes from the name of a file, and from the `config.json` beside it.

In: a name, or the fields of a `config.json`. Out: the sizes; none if the name is not a published one. If timm's
arguments describe a network that this package does not compute, an error is raised. This module knows no tensor.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swinv2.config import Swinv2Config
from swinv2.convert.dialects.rules import Dialect
from swinv2.convert.dialects.transformers import TRANSFORMERS
from swinv2.errors import UsageError
from swinv2.lengths import Windows, as_pair, as_windows, plain_pair, plain_windows

_PUBLISHED = re.compile(
    r"(?:microsoft/|timm/)?swinv2_[a-z]+(?:_patch4)?_window([1-9]\d{0,2})(?:to([1-9]\d{0,2}))?_([1-9]\d{1,3})"
    r"(?:to([1-9]\d{1,3}))?(?:_22k|_22kto1k_ft|_22kft1k)?(?:\.\w+)?"
)
"""Names of the authors, the hub and timm. A name with anything more is not a published name."""
_MMPRETRAIN = re.compile(
    r"swinv2_[a-z]+_w([1-9]\d{0,2})(_in21k_pre)?(?:_3rdparty|_\d+xb\d+)?_in(?:1|21)k_([1-9]\d{1,3})px"
    r"(?:_\d{8}_[0-9a-f]{8})?"
)
"""Names of mmpretrain's configurations and files."""

_TIMM_KNOWN = (
    *("img_size", "window_size", "pretrained_window_sizes"),
    *("embed_dim", "depths", "num_heads", "patch_size", "mlp_ratio", "qkv_bias", "num_classes", "in_chans"),
    *("drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "strict_img_size"),
)
"""Arguments of timm's networks that are read, that shapes show, or that do not change the outputs."""
_TIMM_FIXED = {
    "global_pool": "avg",
    "act_layer": "gelu",
    "always_partition": False,
    "dynamic_img_size": False,
    "dynamic_img_pad": False,
}
"""Arguments that change the outputs, with the only value that this package supports."""


@dataclass(frozen=True)
class SizeHints:
    """Sizes from one source: fields of a configuration that shapes do not show; None if the source does not say them.

    Attributes:
        image_size: Image size in pixels, one length or (height, width).
        window_size: Windows in tokens, one for all stages or one for each stage.
        pretrained_window_sizes: For each stage, the window in which its position bias was learned; 0 for the stage's
            own window.
    """

    image_size: int | Sequence[int] | None = None
    window_size: Windows | None = None
    pretrained_window_sizes: Sequence[int | Sequence[int]] | None = None

    def checked(self, stages: int, prefix: str = "") -> "SizeHints":
        """The same sizes in the notation of a configuration; `prefix` begins the names of the first two in a message.

        Raises:
            ValueError: A size is impossible, or the number of sizes is not that of the stages.
        """
        size, windows, learned = self.image_size, self.window_size, self.pretrained_window_sizes
        if learned is not None and len(learned) != stages:
            raise ValueError(f"pretrained_window_sizes is {learned}; expected one for each of the {stages} stages.")
        return SizeHints(
            None if size is None else plain_pair(as_pair(f"{prefix}image_size", size)),
            None if windows is None else plain_windows(as_windows(f"{prefix}window_size", windows, stages)),
            None if learned is None else [plain_pair(as_pair("pretrained_window_sizes", one, 0)) for one in learned],
        )


def read_name(name: str, stages: int) -> SizeHints:
    """Reads sizes from a published name.

    Args:
        name: Such as "swinv2_base_patch4_window12to16_192to256_22kto1k_ft", "swinv2-tiny-patch4-window8-256",
            "swinv2_tiny_window8_256.ms_in1k", "swin_v2_t-b137f0e2" or "swinv2-tiny-w8_3rdparty_in1k-256px".
        stages: Number of stages.

    Returns:
        The sizes; none unless the whole name is a published one. A name of timm may have any tag after a dot.

    Example:

        >>> read_name("swinv2_base_window12to16_192to256.ms_in22k_ft_in1k", 4)
        SizeHints(image_size=256, window_size=16, pretrained_window_sizes=(12, 12, 12, 6))
    """
    text = name.lower().replace("-", "_")
    found = _PUBLISHED.fullmatch(text)
    if found is not None:
        window, size = int(found[2] or found[1]), int(found[4] or found[3])
        first, first_size = int(found[1]), int(found[3])
        pretrained = (0,) * stages
        if found[2] and found[4]:
            pretrained = tuple(max(1, min(first, first_size // 4 >> index)) for index in range(stages))
        return SizeHints(size, window, pretrained)
    if re.fullmatch(r"swin_v2_[tsb](_[0-9a-f]{8})?", text):
        return SizeHints(256, 8, (0,) * stages)
    found = _MMPRETRAIN.fullmatch(text)
    if found is not None:
        return SizeHints(int(found[3]), int(found[1]), None if found[2] else (0,) * stages)
    return SizeHints()


def read_config(config: dict[str, Any] | None, dialect: Dialect, stages: int) -> Swinv2Config | SizeHints:
    """Reads the fields of a config.json next to the weights; `config` is None if there is none.

    Args:
        config: The fields.
        dialect: That of the weights; transformers' must have a config.json of swinv2.
        stages: Number of stages.

    Returns:
        A configuration if the file is transformers' or ours; the sizes if it is timm's; otherwise empty hints.

    Raises:
        UsageError: The model is impossible, or this package cannot compute it.
    """
    if config is None:
        return SizeHints()
    if config.get("model_type") == "swinv2":
        try:
            return Swinv2Config.from_dict(config).checked()
        except (ValueError, TypeError) as error:
            raise UsageError(f"the model in the config.json next to the weights is impossible: {error}") from error
    if isinstance(config.get("architecture"), str):
        return _read_timm_config(config, stages)
    if dialect is TRANSFORMERS or "model_type" in config:
        raise UsageError(
            f"config.json next to the weights has the model type {config.get('model_type')!r}; expected 'swinv2', or "
            "timm's config.json with an architecture. To ignore config.json, give the file of weights itself."
        )
    return SizeHints()


def _read_timm_config(config: Mapping[str, Any], stages: int) -> SizeHints:
    """Reads the sizes in timm's config.json; raises an error if its network is not ours."""
    named = read_name(config["architecture"], stages)
    arguments, pretrained_cfg = config.get("model_args") or {}, config.get("pretrained_cfg") or {}
    if not isinstance(arguments, dict) or not isinstance(pretrained_cfg, dict):
        raise UsageError(
            "config.json next to the weights is timm's, but its model_args or pretrained_cfg is not an object."
        )
    if "global_pool" in config:
        arguments = {"global_pool": config["global_pool"], **arguments}
    odd = [
        f"{name!r} is {value!r}{f', expected {_TIMM_FIXED[name]!r}' if name in _TIMM_FIXED else ''}"
        for name, value in arguments.items()
        if name not in _TIMM_KNOWN and not (name in _TIMM_FIXED and value == _TIMM_FIXED[name])
    ]
    if odd:
        raise UsageError(
            f"config.json next to the weights is timm's, with arguments that this package does not support: "
            f"{'; '.join(odd)}. To ignore config.json, give the file of weights itself."
        )
    size: Any = arguments.get("img_size") or (pretrained_cfg.get("input_size") or [None])[1:]
    hints = SizeHints(
        size or named.image_size,
        arguments.get("window_size", named.window_size),
        arguments.get("pretrained_window_sizes", named.pretrained_window_sizes),
    )
    try:
        hints = hints.checked(stages)
    except (ValueError, TypeError) as error:
        raise UsageError(f"config.json next to the weights is timm's, but {error}") from error
    if any(isinstance(one, list) and 0 in one for one in hints.pretrained_window_sizes or ()):
        raise UsageError(
            f"config.json has the pre-training windows {hints.pretrained_window_sizes}, and one of them is 0 on one "
            "axis only. timm tests only the first number for 0, so this is ambiguous. Give the file of weights itself, "
            "and --pretrained-window-sizes."
        )
    return hints
