"""The Swin Transformer V2 models: the presets (model sizes of the papers) and the published checkpoints, as data.

In: a name. Out: numbers and addresses. This module knows no tensor and no file; it downloads nothing.
"""

import difflib
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Preset:
    """One architecture of the papers.

    The papers call two models giant: SwinV2-g, the largest model of the SimMIM data-scaling study, and SwinV2-G, the
    three-billion model of the Swin V2 paper. Only the case of one letter differs, and some file systems ignore case, so
    here they are "giant-1b" and "giant-3b", after the number of their parameters.

    Attributes:
        name: Name in this package.
        paper_name: Name in the paper.
        embed_dim: Channels of the first stage.
        depths: Blocks of each stage.
        num_heads: Attention heads of each stage, 32 channels each. The Swin V2 paper does not state the heads of "huge"
            and "giant-3b"; all its other models have 32 channels for each head.
        image_size: Image size in pixels of its first training.
        window_size: Window in tokens at that image size.
        extra_norm_period: N adds a layer norm on the main path after every N blocks of a stage; 0 adds none.
        parameters: Number of parameters without a classifier (`Swinv2Model`).
        stated_parameters: The number of parameters that is usually quoted, in millions, as printed.
        stated_with_classifier: Whether the quoted number includes a classifier of 1000 classes. The numbers of "huge"
            and "giant-1b" do not (655.2 and 1060.98 million, the authors' "655M" and "1.06B"); "huge" with a classifier
            has 658.0. The number of "giant-3b" does (3001.9; 2997.8 without). "giant-1b" has 1060.98 only without extra
            norms, which would add 10,752 parameters.
        source: Source of the numbers.
    """

    name: str
    paper_name: str
    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    image_size: int
    window_size: int
    extra_norm_period: int
    parameters: int
    stated_parameters: str
    stated_with_classifier: bool
    source: str

    def config_fields(self) -> dict[str, Any]:
        """The arguments of `Swinv2Config` for this preset.

        Example:

            >>> from swinv2 import Swinv2Config
            >>> from swinv2.zoo import PRESETS
            >>> Swinv2Config(**PRESETS["giant-3b"].config_fields()).hidden_size
            4096
        """
        return {
            "embed_dim": self.embed_dim,
            "depths": list(self.depths),
            "num_heads": list(self.num_heads),
            "image_size": self.image_size,
            "window_size": self.window_size,
            "extra_norm_period": self.extra_norm_period,
        }


_PAPER = "Liu et al., Swin Transformer V2 (arXiv 2111.09883), section 3.6"
_SCALING = (
    "Xie et al., On Data Scaling in Masked Image Modeling (arXiv 2206.04664); microsoft/Swin-Transformer MODELHUB.md"
)
# fmt: off
# name, paper's name, embed_dim, depths, num_heads, image_size, window_size, extra_norm_period, parameters, stated, ...
PRESETS: dict[str, Preset] = {preset.name: preset for preset in (
    Preset("tiny", "SwinV2-T", 96, (2, 2, 6, 2), (3, 6, 12, 24), 256, 8, 0,
         27_578_154, "28.35", True, _PAPER),
    Preset("small", "SwinV2-S", 96, (2, 2, 18, 2), (3, 6, 12, 24), 256, 8, 0,
         48_959_418, "49.73", True, _PAPER),
    Preset("base", "SwinV2-B", 128, (2, 2, 18, 2), (4, 8, 16, 32), 256, 8, 0,
         86_893_816, "87.92", True, _PAPER),
    Preset("large", "SwinV2-L", 192, (2, 2, 18, 2), (6, 12, 24, 48), 192, 12, 0,
         195_202_932, "196.74", True, _PAPER),
    Preset("huge", "SwinV2-H", 352, (2, 2, 18, 2), (11, 22, 44, 88), 192, 12, 6,
         655_219_370, "655.2", False, _PAPER),
    Preset("giant-1b", "SwinV2-g", 448, (2, 2, 18, 2), (14, 28, 56, 112), 192, 12, 0,
         1_060_976_996, "1060.98", False, _SCALING),
    Preset("giant-3b", "SwinV2-G", 512, (2, 2, 42, 4), (16, 32, 64, 128), 192, 12, 6,
         2_997_843_680, "3001.9", True, _PAPER),
)}
# fmt: on
"""The presets by name, smallest first."""


@dataclass(frozen=True)
class Checkpoint:
    """Published weights.

    Attributes:
        name: Name on the Hugging Face hub, which `from_pretrained` takes.
        size: Name in `PRESETS`.
        image_size: Image size in pixels.
        window_size: Window in tokens; a stage with a smaller map clips it.
        pretrained_window_sizes: For each stage, the window in which its position bias was learned; 0 if unchanged.
        num_labels: Number of classes.
        labels: Data set of the classes.
        top1: Published top-1 accuracy in percent on the ImageNet-1k validation set; None if none was published.
        source: Address of the authors' file, from which the hub's file was converted.
        licence: Licence of the weights on the hub.
        sha256: Digest of the hub's weight file, if it is known.
    """

    name: str
    size: str
    image_size: int
    window_size: int
    pretrained_window_sizes: tuple[int, ...]
    num_labels: int
    labels: Literal["ImageNet-1k", "ImageNet-22k"]
    top1: float | None
    source: str
    licence: str = "apache-2.0"
    sha256: str | None = None

    @property
    def training(self) -> str:
        """The data sets of its training, in order."""
        return "ImageNet-22k, then ImageNet-1k" if "22kto1k" in self.name else self.labels

    def config_fields(self) -> dict[str, Any]:
        """The arguments of `Swinv2Config` for this checkpoint's architecture, without label names."""
        return {
            **PRESETS[self.size].config_fields(),
            "image_size": self.image_size,
            "window_size": self.window_size,
            "pretrained_window_sizes": list(self.pretrained_window_sizes),
            "num_labels": self.num_labels,
        }


def _published_checkpoint(
    size: str, rest: str, image_size: int, window_size: int, top1: float | None, pretrained: tuple[int, ...] = (0,) * 4
) -> Checkpoint:
    """An entry of `CHECKPOINTS`, from the parts of its published name."""
    stem = f"swinv2-{size}-patch4-{rest}"
    is_22k = rest.endswith("-22k")
    return Checkpoint(
        name=f"microsoft/{stem}",
        size=size,
        image_size=image_size,
        window_size=window_size,
        pretrained_window_sizes=pretrained,
        num_labels=21841 if is_22k else 1000,
        labels="ImageNet-22k" if is_22k else "ImageNet-1k",
        top1=top1,
        source=(
            "https://github.com/SwinTransformer/storage/releases/download/v2.0.0/" + stem.replace("-", "_") + ".pth"
        ),
    )


_FROM_192 = (12, 12, 12, 6)
"""Learned windows of a model that was pre-trained at 192 pixels with windows of 12; its last map has 6 x 6 tokens."""

CHECKPOINTS: dict[str, Checkpoint] = {
    checkpoint.name: checkpoint
    for checkpoint in (
        _published_checkpoint("tiny", "window8-256", 256, 8, 81.8),
        _published_checkpoint("tiny", "window16-256", 256, 16, 82.8),
        _published_checkpoint("small", "window8-256", 256, 8, 83.7),
        _published_checkpoint("small", "window16-256", 256, 16, 84.1),
        _published_checkpoint("base", "window8-256", 256, 8, 84.2),
        _published_checkpoint("base", "window16-256", 256, 16, 84.6),
        _published_checkpoint("base", "window12-192-22k", 192, 12, None),
        _published_checkpoint("base", "window12to16-192to256-22kto1k-ft", 256, 16, 86.2, _FROM_192),
        _published_checkpoint("base", "window12to24-192to384-22kto1k-ft", 384, 24, 87.1, _FROM_192),
        _published_checkpoint("large", "window12-192-22k", 192, 12, None),
        _published_checkpoint("large", "window12to16-192to256-22kto1k-ft", 256, 16, 86.9, _FROM_192),
        _published_checkpoint("large", "window12to24-192to384-22kto1k-ft", 384, 24, 87.6, _FROM_192),
    )
}
"""The published checkpoints by name on the hub. Source: microsoft/Swin-Transformer, MODELHUB.md."""


def find_preset(name: str) -> Preset:
    """Finds a preset by its name, a key of `PRESETS`.

    Raises:
        ValueError: There is no such preset; the message lists all.

    Example:

        >>> from swinv2.zoo import find_preset
        >>> find_preset("giant")
        Traceback (most recent call last):
        ValueError: there is no size 'giant'; the sizes are tiny, small, ... Did you mean giant-1b or giant-3b?
    """
    if name in PRESETS:
        return PRESETS[name]
    close = [size for size in PRESETS if size.startswith(name)] or difflib.get_close_matches(name, PRESETS, 1)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise ValueError(f"there is no size {name!r}; the sizes are {', '.join(PRESETS)}.{hint}")
