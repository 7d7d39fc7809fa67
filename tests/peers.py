"""The same network in other libraries, and how to tell whether two networks are one.

transformers', timm's and torchvision's models are built by their own libraries; small tables of names turn their
learned tensors into ours. Three things keep a comparison from being blind:

- weights are drawn so that every part of the network matters (`draw_weights`): fresh ones have post-norms of zero and
  a nearly constant position bias, and big biases would drown the image;
- images have structure at several scales (`images`), so that windows differ from each other;
- a difference is measured against the distance between the answers for two images (`difference`), not against the
  size of the answers.
"""

import re

import timm
import torch
import torch.nn.functional as F
import torchvision.models.swin_transformer as torchvision_swin
import transformers.models.swinv2.modeling_swinv2 as transformers_swinv2
from torch import Tensor, nn
from transformers.models.swinv2.configuration_swinv2 import Swinv2Config as TransformersConfig


def draw_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draws every learned tensor of a model, of ours or of a peer, so that an error anywhere shows in the answer.

    Matrices are scaled by their fan-in; norm weights 1 + N(0, 0.3); biases N(0, 0.1); the position bias is spread
    over its range: first layer N(0, 1), second 0.2 N(0, 1); logit_scale is log 10 + 0.5 N(0, 1).
    """
    generator = torch.Generator().manual_seed(seed)
    norms = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("logit_scale"):
            value = noise * 0.5 + torch.log(torch.tensor(10.0))
        elif re.search(r"(cpb_mlp|position_bias_mlp)\.0\.", name):
            value = noise
        elif re.search(r"(cpb_mlp|position_bias_mlp)\.2\.", name):
            value = noise * 0.2
        elif name in norms:
            value = 1 + noise * 0.3
        elif name.endswith(("mask_token", "position_embeddings")):
            value = noise
        elif parameter.ndim == 1:
            value = noise * 0.1
        else:
            value = noise / parameter[0].numel() ** 0.5
        parameter.data.copy_(value)
    return model


def images(size: tuple[int, int], channels: int = 3, count: int = 2, seed: int = 1) -> Tensor:
    """Draws images with structure at several scales, from single pixels to half the image."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(count, channels, *size)
    for scale in (1, 4, 16, 64, 256):
        grid = tuple(max(2, -(-length // scale)) for length in size)
        noise = torch.randn(count, channels, *grid, generator=generator)
        total += F.interpolate(noise, size, mode="bilinear", align_corners=False)
    return total / 5**0.5


def difference(ours: Tensor, theirs: Tensor) -> float:
    """How far our answer for two images is from a peer's, in units of the distance between the two images' answers.

    Args:
        ours, theirs: Two images' answers; the first half of the first axis belongs to the first image.

    Returns:
        The larger one of the two images' relative differences.
    """
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    ours, theirs = (answer.detach().double().reshape(2, -1) for answer in (ours, theirs))
    return ((ours - theirs).norm(dim=1).max() / (theirs[0] - theirs[1]).norm()).item()


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Norm of the difference over the norm of the peer's tensor, for gradients and other tensors without images."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-30)).item()


def transformers_model(name: str, seed: int = 0, **fields: object) -> nn.Module:
    """One of transformers' own classes with drawn weights; it has the eager backend of attention only."""
    return draw_weights(getattr(transformers_swinv2, name)(TransformersConfig(**fields)).eval(), seed)


def timm_model(name: str, seed: int = 0, **arguments: object) -> nn.Module:
    """One of timm's registered models with drawn weights."""
    return draw_weights(timm.create_model(name, pretrained=False, **arguments).eval(), seed)


def torchvision_model(seed: int = 0, **arguments: object) -> nn.Module:
    """torchvision's network in its second version, with drawn weights."""
    model = torchvision_swin.SwinTransformer(
        patch_size=[4, 4],
        block=torchvision_swin.SwinTransformerBlockV2,
        downsample_layer=torchvision_swin.PatchMergingV2,
        **arguments,
    )
    return draw_weights(model.eval(), seed)


# Patterns of names, tried in order; the first that fits is applied. Block parts are the same in both libraries.
_BLOCK_NAMES = (
    (r"\.attn\.logit_scale$", ".attention.self.logit_scale"),
    (r"\.attn\.cpb_mlp\.", ".attention.self.continuous_position_bias_mlp."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.(fc1|0)\.", ".intermediate.dense."),
    (r"\.mlp\.(fc2|3)\.", ".output.dense."),
)
_TIMM_NAMES = (
    (r"^patch_embed\.proj\.", "swinv2.embeddings.patch_embeddings.projection."),
    (r"^patch_embed\.norm\.", "swinv2.embeddings.norm."),
    (r"^layers\.(\d+)\.downsample\.", lambda found: f"swinv2.encoder.layers.{int(found[1]) - 1}.downsample."),
    (r"^layers\.(\d+)\.blocks\.", r"swinv2.encoder.layers.\1.blocks."),
    (r"^norm\.", "swinv2.layernorm."),
    (r"^head\.fc\.", "classifier."),
)
_TORCHVISION_NAMES = (
    (r"^features\.0\.0\.", "swinv2.embeddings.patch_embeddings.projection."),
    (r"^features\.0\.2\.", "swinv2.embeddings.norm."),
    (
        r"^features\.(\d+)\.(reduction|norm)\.",
        lambda found: f"swinv2.encoder.layers.{int(found[1]) // 2 - 1}.downsample.{found[2]}.",
    ),
    (r"^features\.(\d+)\.(\d+)\.", lambda found: f"swinv2.encoder.layers.{int(found[1]) // 2}.blocks.{found[2]}."),
    (r"^norm\.", "swinv2.layernorm."),
    (r"^head\.", "classifier."),
)


def _rename(name: str, table: tuple) -> str:
    for pattern, replacement in table:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return name


def _convert(tensors: dict[str, Tensor], table: tuple) -> dict[str, Tensor]:
    converted = {}
    for name, tensor in tensors.items():
        new_name = _rename(_rename(name, table), _BLOCK_NAMES)
        stem, _, kind = new_name.partition(".attn.")
        projections = f"{stem}.attention.self."
        if kind == "qkv.weight":
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                converted[f"{projections}{part}.weight"] = piece
        elif kind == "qkv.bias":
            # torchvision's keys have a bias that its forward pass sets to zero.
            query, _, value = tensor.chunk(3)
            converted |= {f"{projections}query.bias": query, f"{projections}value.bias": value}
        elif kind in ("q_bias", "v_bias"):
            converted[f"{projections}{'query' if kind == 'q_bias' else 'value'}.bias"] = tensor
        else:
            converted[new_name] = tensor
    return converted


def from_timm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's tensors, or their gradients, under our names."""
    return _convert(tensors, _TIMM_NAMES)


def from_torchvision(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's tensors, or their gradients, under our names."""
    return _convert(tensors, _TORCHVISION_NAMES)


def learned(model: nn.Module) -> dict[str, Tensor]:
    """A model's learned tensors by name."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients of a model's learned tensors by name; zeros where there is none."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }
