"""torchvision's names: `swin_v2_*`.

Data only. Stages and mergings take turns in one list, `features`, after the patch embedding. Queries, keys and values
have one bias, of which torchvision sets that of the keys to zero before each use. The coordinates are always those of
the window itself: torchvision knows no pre-training window.

Source: torchvision, models/swin_transformer.py.
"""

from swinv2.config import Swinv2Config
from swinv2.convert import limits
from swinv2.convert.rules import BLOCK, JOINED, MERGE, MODEL, QUERY_VALUE, Dialect, Rule

_BLOCK = "features.{2*stage+1}.{block}."
_MERGE = "features.{2*merge+2}."


def _limits(config: Swinv2Config) -> list[str]:
    checks = (
        limits.extra_norms,
        limits.position_embeddings,
        limits.hidden_padding,
        limits.other_norms,
        limits.other_activations,
        limits.missing_biases,
        limits.other_channels,
        limits.clipped_windows,
        limits.pretraining,
        limits.one_token,
    )
    return [sentence for check in checks for sentence in check(config)]


TORCHVISION = Dialect(
    name="torchvision",
    title="torchvision",
    rules=(
        Rule("features.0.0.{part}", (f"{MODEL}embeddings.patch_embeddings.projection.{{part}}",)),
        Rule("features.0.2.{part}", (f"{MODEL}embeddings.norm.{{part}}",)),
        Rule(f"{_BLOCK}attn.logit_scale", (f"{BLOCK}attention.self.logit_scale",)),
        Rule(f"{_BLOCK}attn.cpb_mlp.0.{{part}}", (f"{BLOCK}attention.self.continuous_position_bias_mlp.0.{{part}}",)),
        Rule(f"{_BLOCK}attn.cpb_mlp.2.weight", (f"{BLOCK}attention.self.continuous_position_bias_mlp.2.weight",)),
        Rule(
            f"{_BLOCK}attn.qkv.weight",
            tuple(f"{BLOCK}attention.self.{part}.weight" for part in ("query", "key", "value")),
            JOINED,
        ),
        Rule(
            f"{_BLOCK}attn.qkv.bias",
            (f"{BLOCK}attention.self.query.bias", f"{BLOCK}attention.self.value.bias"),
            QUERY_VALUE,
        ),
        Rule(f"{_BLOCK}attn.proj.{{part}}", (f"{BLOCK}attention.output.dense.{{part}}",)),
        Rule(f"{_BLOCK}norm1.{{part}}", (f"{BLOCK}layernorm_before.{{part}}",)),
        Rule(f"{_BLOCK}mlp.0.{{part}}", (f"{BLOCK}intermediate.dense.{{part}}",)),
        Rule(f"{_BLOCK}mlp.3.{{part}}", (f"{BLOCK}output.dense.{{part}}",)),
        Rule(f"{_BLOCK}norm2.{{part}}", (f"{BLOCK}layernorm_after.{{part}}",)),
        Rule(f"{_MERGE}reduction.weight", (f"{MERGE}reduction.weight",)),
        Rule(f"{_MERGE}norm.{{part}}", (f"{MERGE}norm.{{part}}",)),
        Rule("norm.{part}", (f"{MODEL}layernorm.{{part}}",)),
        Rule("head.{part}", ("classifier.{part}",)),
    ),
    limits=_limits,
    buffers=(
        ("coordinates", (f"{_BLOCK}attn.relative_coords_table",)),
        ("pairs", (f"{_BLOCK}attn.relative_position_index",)),
    ),
    flat_pairs=True,
    knows_windows=True,
    takes_any_size=True,
)
