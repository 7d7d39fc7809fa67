"""Other libraries' networks and files, made without this package.

transformers, timm and torchvision build their own. The authors' and mmpretrain's files are laid out by hand: from the
recorded names and shapes (`convert/recorded/`), with timm's tensors, whose network computes what the authors' does, and
with tables in plain loops.
"""

import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import peers

RECORDED = Path(__file__).parent / "convert" / "recorded"
SMALL = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
"""The network of most tests; at 64 pixels its maps are 16 and 8 tokens wide."""


@dataclass(frozen=True)
class Sizes:
    """A network in numbers, for files that are laid out by hand."""

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    image_size: int
    window_size: int | tuple[int, ...]
    pretrained: tuple[int, ...]
    num_labels: int

    def grid(self, stage: int) -> int:
        return self.image_size // 4 >> stage

    def window(self, stage: int) -> int:
        configured = self.window_size if isinstance(self.window_size, int) else self.window_size[stage]
        return min(configured, self.grid(stage))


def small_sizes(
    image_size: int = 64, window_size: int | tuple[int, ...] = 4, pretrained: tuple[int, ...] = (0, 0)
) -> Sizes:
    return Sizes(**SMALL, image_size=image_size, window_size=window_size, pretrained=pretrained, num_labels=5)


def timm_network(sizes: Sizes) -> nn.Module:
    windows = sizes.window_size
    return peers.timm_model(
        "swinv2_tiny_window8_256",
        img_size=sizes.image_size,
        # Two integers would be the height and the width of one window.
        window_size=windows if isinstance(windows, int) else [(side, side) for side in windows],
        pretrained_window_sizes=sizes.pretrained,
        embed_dim=sizes.embed_dim,
        depths=sizes.depths,
        num_heads=sizes.num_heads,
        num_classes=sizes.num_labels,
    )


@cache
def coordinates(window: int, pretrained: int) -> Tensor:
    """The authors' table, one number after another; the float32 arithmetic is torch's."""
    base = torch.tensor(float((pretrained or window) - 1))
    rows = []
    for down in range(1 - window, window):
        for across in range(1 - window, window):
            for step in (down, across):
                number = torch.tensor(float(step)) / base * 8
                rows.append(torch.sign(number) * torch.log2(torch.abs(number) + 1.0) / math.log2(8))
    return torch.stack(rows).view(1, 2 * window - 1, 2 * window - 1, 2)


@cache
def pairs(window: int) -> Tensor:
    tokens = [(row, column) for row in range(window) for column in range(window)]
    return torch.tensor(
        [[(a - c + window - 1) * (2 * window - 1) + b - d + window - 1 for c, d in tokens] for a, b in tokens]
    )


@cache
def regions(grid: int, window: int, shift: int) -> Tensor:
    """The authors' way: nine labels are painted on a map, which is cut into windows."""
    slices = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    labels = torch.zeros(grid, grid)
    for row in range(3):
        for column in range(3):
            labels[slices[row], slices[column]] = 3 * row + column
    windows = labels.unfold(0, window, window).unfold(1, window, window).reshape(-1, window * window)
    return torch.where(windows[:, None] == windows[:, :, None], 0.0, -100.0)


def recorded(library: str, sizes: Sizes, numbers: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """A file of a library, laid out from its recorded names: zeros that take no memory, or the given numbers."""
    tensors: dict[str, Tensor] = {}
    last = len(sizes.depths) - 1
    for line in (RECORDED / f"{library}.txt").read_text().splitlines():
        where, name, shape = line.split()
        stages = range(last if where == "merge" else last + 1) if where != "once" else [0]
        for stage in stages:
            for block in range(sizes.depths[stage]) if where == "block" else [0]:
                letters = {"E": sizes.embed_dim, "C": sizes.embed_dim << stage, "H": sizes.num_heads[stage]}
                letters |= {"N": sizes.num_labels, "L": sizes.embed_dim << last}
                filled = name.format(s=stage, b=block, t=stage + 1)
                tensor = _table(shape, sizes, stage, block)
                if not shape.startswith("["):
                    lengths = [_length(length, letters) for length in shape.split(",")]
                    tensor = torch.zeros(1).expand(lengths) if numbers is None else numbers[filled]
                    assert list(tensor.shape) == lengths, filled
                if tensor is not None:
                    tensors[filled] = tensor
    return tensors


def _length(text: str, letters: dict[str, int]) -> int:
    factor, letter = re.fullmatch(r"(\d*)([A-Z]?)", text).groups()
    return int(factor or 1) * letters.get(letter, 1)


def _table(shape: str, sizes: Sizes, stage: int, block: int) -> Tensor | None:
    window, grid = sizes.window(stage), sizes.grid(stage)
    if shape == "[coordinates]":
        return coordinates(window, sizes.pretrained[stage])
    if shape == "[pairs]":
        return pairs(window)
    shift = window // 2 if block % 2 and grid > window else 0
    return regions(grid, window, shift) if shift else None


def microsoft_file(sizes: Sizes, network: nn.Module | None = None) -> dict[str, Tensor]:
    """An authors' file with a timm network's numbers: they merge at the end of a stage, and have one head."""
    numbers = {}
    for name, tensor in (network or timm_network(sizes)).state_dict().items():
        moved = re.sub(r"layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", name)
        numbers[moved.replace("head.fc.", "head.")] = tensor.clone()
    return recorded("microsoft", sizes, numbers)


def unfold_order(channels: int) -> Tensor:
    """For each column of a merging as torch's Unfold has them, its column in the order of the authors."""
    # Each number of a 2 x 2 map of so many channels says which column of the authors' it is.
    neighbours = {(0, 0): 0, (1, 0): 1, (0, 1): 2, (1, 1): 3}
    pixels = torch.empty(1, channels, 2, 2)
    for (row, column), index in neighbours.items():
        pixels[0, :, row, column] = index * channels + torch.arange(channels)
    return F.unfold(pixels, kernel_size=2, stride=2).flatten().long()


def mmpretrain_file(sizes: Sizes, network: nn.Module | None = None) -> dict[str, Tensor]:
    """An mmpretrain file with a timm network's numbers."""
    renames = {
        "patch_embed.proj.": "patch_embed.projection.",
        "layers.": "stages.",
        ".attn.": ".attn.w_msa.",
        ".mlp.fc1.": ".ffn.layers.0.0.",
        ".mlp.fc2.": ".ffn.layers.1.",
    }
    numbers = {}
    for name, tensor in (network or timm_network(sizes)).state_dict().items():
        if name.startswith("head."):
            numbers[name] = tensor.clone()
            continue
        if name in ("norm.weight", "norm.bias"):
            name = name.replace("norm", f"norm{len(sizes.depths) - 1}")
        for old, new in renames.items():
            name = name.replace(old, new)
        if name.endswith("downsample.reduction.weight"):
            tensor = tensor[:, unfold_order(tensor.shape[1] // 4)]
        numbers[f"backbone.{name}"] = tensor.clone()
    stages = len(sizes.depths)
    file = {name.replace("norm3", f"norm{stages - 1}"): name for name in recorded_names(sizes)}
    renamed = {original: numbers[name] for name, original in file.items() if name in numbers}
    laid_out = recorded("mmpretrain", sizes, renamed)
    return {
        re.sub(r"^backbone\.norm3\.", f"backbone.norm{stages - 1}.", name): tensor for name, tensor in laid_out.items()
    }


def recorded_names(sizes: Sizes) -> list[str]:
    return list(recorded("mmpretrain", sizes))


def simmim_file(sizes: Sizes, network: nn.Module, older: bool) -> dict[str, Tensor]:
    """An authors' SimMIM file with the numbers of transformers' masked-image model."""
    ours = network.state_dict()
    numbers = {"mask_token": ours["swinv2.embeddings.mask_token"]}
    for name in recorded("microsoft", sizes):
        if name.startswith("head") or "relative_" in name or name.endswith("attn_mask"):
            continue
        theirs = name.replace("patch_embed.proj.", "embeddings.patch_embeddings.projection.")
        theirs = theirs.replace("patch_embed.norm.", "embeddings.norm.")
        theirs = re.sub(r"^layers\.", "encoder.layers.", theirs)
        theirs = re.sub(r"^norm\.", "layernorm.", theirs)
        for old, new in {
            ".norm1.": ".layernorm_before.",
            ".norm2.": ".layernorm_after.",
            ".mlp.fc1.": ".intermediate.dense.",
            ".mlp.fc2.": ".output.dense.",
            ".attn.proj.": ".attention.output.dense.",
            ".attn.cpb_mlp.": ".attention.self.continuous_position_bias_mlp.",
            ".attn.logit_scale": ".attention.self.logit_scale",
            ".attn.q_bias": ".attention.self.query.bias",
            ".attn.v_bias": ".attention.self.value.bias",
        }.items():
            theirs = theirs.replace(old, new)
        if theirs.endswith(".attn.qkv.weight"):
            stem = "swinv2." + theirs.replace(".attn.qkv.weight", ".attention.self.")
            numbers[name] = torch.cat([ours[f"{stem}{part}.weight"] for part in ("query", "key", "value")])
        else:
            numbers[name] = ours[f"swinv2.{theirs}"]
    heads = {"head.weight": torch.zeros(sizes.num_labels, sizes.embed_dim << len(sizes.depths) - 1)}
    heads["head.bias"] = torch.zeros(sizes.num_labels)
    file = recorded("microsoft", sizes, numbers | heads) | {"mask_token": numbers["mask_token"]}
    file = {f"encoder.{name}": tensor.clone() for name, tensor in file.items() if not name.startswith("head")}
    if older:
        file = {name.replace("cpb_mlp", "rpe_mlp"): tensor for name, tensor in file.items()}
    return file | {name: tensor.clone() for name, tensor in ours.items() if name.startswith("decoder.")}
