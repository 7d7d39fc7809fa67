"""timm's names: `swinv2_*`.

Data only. timm merges at the start of a stage, where the authors merge at the end of the one before; its classifier is
`head.fc`. Its files hold learned tensors only, and so no window: that is in the name of the architecture.

Source: timm, models/swin_transformer_v2.py.
"""

from swinv2.config import Swinv2Config
from swinv2.convert import limits
from swinv2.convert.rules import BLOCK, JOINED, MERGE, MODEL, Dialect, Rule

_BLOCK = "layers.{stage}.blocks.{block}."


def _limits(config: Swinv2Config) -> list[str]:
    checks = (
        limits.extra_norms,
        limits.position_embeddings,
        limits.hidden_padding,
        limits.other_norms,
        limits.other_activations,
        limits.padding,
    )
    return [sentence for check in checks for sentence in check(config)]


TIMM = Dialect(
    name="timm",
    title="timm",
    rules=(
        Rule("patch_embed.proj.{part}", (f"{MODEL}embeddings.patch_embeddings.projection.{{part}}",)),
        Rule("patch_embed.norm.{part}", (f"{MODEL}embeddings.norm.{{part}}",)),
        Rule(f"{_BLOCK}attn.logit_scale", (f"{BLOCK}attention.self.logit_scale",)),
        Rule(f"{_BLOCK}attn.cpb_mlp.0.{{part}}", (f"{BLOCK}attention.self.continuous_position_bias_mlp.0.{{part}}",)),
        Rule(f"{_BLOCK}attn.cpb_mlp.2.weight", (f"{BLOCK}attention.self.continuous_position_bias_mlp.2.weight",)),
        Rule(
            f"{_BLOCK}attn.qkv.weight",
            tuple(f"{BLOCK}attention.self.{part}.weight" for part in ("query", "key", "value")),
            JOINED,
        ),
        Rule(f"{_BLOCK}attn.q_bias", (f"{BLOCK}attention.self.query.bias",)),
        Rule(f"{_BLOCK}attn.v_bias", (f"{BLOCK}attention.self.value.bias",)),
        Rule(f"{_BLOCK}attn.proj.{{part}}", (f"{BLOCK}attention.output.dense.{{part}}",)),
        Rule(f"{_BLOCK}norm1.{{part}}", (f"{BLOCK}layernorm_before.{{part}}",)),
        Rule(f"{_BLOCK}mlp.fc1.{{part}}", (f"{BLOCK}intermediate.dense.{{part}}",)),
        Rule(f"{_BLOCK}mlp.fc2.{{part}}", (f"{BLOCK}output.dense.{{part}}",)),
        Rule(f"{_BLOCK}norm2.{{part}}", (f"{BLOCK}layernorm_after.{{part}}",)),
        Rule("layers.{merge+1}.downsample.reduction.weight", (f"{MERGE}reduction.weight",)),
        Rule("layers.{merge+1}.downsample.norm.{part}", (f"{MERGE}norm.{{part}}",)),
        Rule("norm.{part}", (f"{MODEL}layernorm.{{part}}",)),
        Rule("head.fc.{part}", ("classifier.{part}",)),
    ),
    limits=_limits,
    buffers=(
        ("coordinates", (f"{_BLOCK}attn.relative_coords_table",)),
        ("pairs", (f"{_BLOCK}attn.relative_position_index",)),
        ("regions", (f"{_BLOCK}attn_mask",)),
        ("key bias", (f"{_BLOCK}attn.k_bias",)),
    ),
)
