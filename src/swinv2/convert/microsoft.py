"""The authors' names: their classifiers and backbones, and the models that SimMIM pre-trained.

Data only. SimMIM's files hold the same network as `encoder.`, with a mask token and a decoder; older ones call the
small network of the position bias `rpe_mlp`. The authors' files also hold what follows from sizes: coordinates, pair
indices and a mask of regions for each shifted block.

Source: microsoft/Swin-Transformer, models/swin_transformer_v2.py, models/simmim.py, utils_simmim.py.
"""

from swinv2.config import Swinv2Config
from swinv2.convert import limits
from swinv2.convert.rules import BLOCK, JOINED, MERGE, MODEL, Dialect, Rule


def _limits(config: Swinv2Config) -> list[str]:
    checks = (
        limits.extra_norms,
        limits.hidden_padding,
        limits.other_norms,
        limits.other_activations,
        limits.rectangles,
        limits.rectangular_pretraining,
        limits.padding,
        limits.one_token,
    )
    return [sentence for check in checks for sentence in check(config)]


def _simmim_limits(config: Swinv2Config) -> list[str]:
    return _limits(config) + limits.other_channels(config)


def _network(prefix: str) -> tuple[Rule, ...]:
    block, merge = f"{prefix}layers.{{stage}}.blocks.{{block}}.", f"{prefix}layers.{{merge}}.downsample."
    bias = "attention.self.continuous_position_bias_mlp."
    parts = ("query", "key", "value")
    return (
        Rule(f"{prefix}patch_embed.proj.{{part}}", (f"{MODEL}embeddings.patch_embeddings.projection.{{part}}",)),
        Rule(f"{prefix}patch_embed.norm.{{part}}", (f"{MODEL}embeddings.norm.{{part}}",)),
        Rule(f"{prefix}absolute_pos_embed", (f"{MODEL}embeddings.position_embeddings",)),
        Rule(f"{block}attn.logit_scale", (f"{BLOCK}attention.self.logit_scale",)),
        Rule(
            f"{block}attn.cpb_mlp.0.{{part}}",
            (f"{BLOCK}{bias}0.{{part}}",),
            read_as=(f"{block}attn.rpe_mlp.0.{{part}}",),
        ),
        Rule(f"{block}attn.cpb_mlp.2.weight", (f"{BLOCK}{bias}2.weight",), read_as=(f"{block}attn.rpe_mlp.2.weight",)),
        Rule(f"{block}attn.qkv.weight", tuple(f"{BLOCK}attention.self.{part}.weight" for part in parts), JOINED),
        Rule(f"{block}attn.q_bias", (f"{BLOCK}attention.self.query.bias",)),
        Rule(f"{block}attn.v_bias", (f"{BLOCK}attention.self.value.bias",)),
        Rule(f"{block}attn.proj.{{part}}", (f"{BLOCK}attention.output.dense.{{part}}",)),
        Rule(f"{block}norm1.{{part}}", (f"{BLOCK}layernorm_before.{{part}}",)),
        Rule(f"{block}mlp.fc1.{{part}}", (f"{BLOCK}intermediate.dense.{{part}}",)),
        Rule(f"{block}mlp.fc2.{{part}}", (f"{BLOCK}output.dense.{{part}}",)),
        Rule(f"{block}norm2.{{part}}", (f"{BLOCK}layernorm_after.{{part}}",)),
        Rule(f"{merge}reduction.weight", (f"{MERGE}reduction.weight",)),
        Rule(f"{merge}norm.{{part}}", (f"{MERGE}norm.{{part}}",)),
        Rule(f"{prefix}norm.{{part}}", (f"{MODEL}layernorm.{{part}}",)),
    )


def _buffers(prefix: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    block = f"{prefix}layers.{{stage}}.blocks.{{block}}."
    return (
        ("coordinates", (f"{block}attn.relative_coords_table",)),
        ("pairs", (f"{block}attn.relative_position_index",)),
        ("regions", (f"{block}attn_mask",)),
    )


MICROSOFT = Dialect(
    name="microsoft",
    title="the authors' code",
    rules=(*_network(""), Rule("head.{part}", ("classifier.{part}",))),
    limits=_limits,
    buffers=_buffers(""),
    knows_windows=True,
    knows_regions=True,
)

SIMMIM = Dialect(
    name="simmim",
    title="the authors' code for SimMIM",
    rules=(
        *_network("encoder."),
        Rule("encoder.mask_token", (f"{MODEL}embeddings.mask_token",)),
        Rule("decoder.0.{part}", ("decoder.0.{part}",)),
    ),
    limits=_simmim_limits,
    buffers=_buffers("encoder."),
    knows_windows=True,
    knows_regions=True,
)
