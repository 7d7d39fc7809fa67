"""mmpretrain's names: `SwinTransformerV2` inside a classifier, or by itself.

Data only. mmpretrain merges at the start of a stage, with torch's Unfold: the columns of a merging are in another
order. The last norm is called after its stage. The largest models have extra norms, `norm3`.

Source: open-mmlab/mmpretrain, models/backbones/swin_transformer_v2.py, models/utils/attention.py and embed.py; mmcv's
`FFN` and `PatchEmbed` for the names inside.
"""

from swinv2.config import Swinv2Config
from swinv2.convert import limits
from swinv2.convert.rules import BLOCK, JOINED, MERGE, MODEL, SAME, UNFOLDED, Change, Dialect, Rule

_BLOCK = "stages.{stage}.blocks.{block}."
_ATTENTION = f"{_BLOCK}attn.w_msa."


def _limits(config: Swinv2Config) -> list[str]:
    checks = (
        limits.hidden_padding,
        limits.other_norms,
        limits.other_activations,
        limits.rectangles,
        limits.rectangular_pretraining,
        limits.one_token,
    )
    return [sentence for check in checks for sentence in check(config)]


def _inside(theirs: str, ours: tuple[str, ...], change: Change = SAME) -> Rule:
    """A part of the backbone, which is read by itself too."""
    return Rule(f"backbone.{theirs}", ours, change, read_as=(theirs,))


MMPRETRAIN = Dialect(
    name="mmpretrain",
    title="mmpretrain",
    rules=(
        _inside("patch_embed.projection.{part}", (f"{MODEL}embeddings.patch_embeddings.projection.{{part}}",)),
        _inside("patch_embed.norm.{part}", (f"{MODEL}embeddings.norm.{{part}}",)),
        _inside("absolute_pos_embed", (f"{MODEL}embeddings.position_embeddings",)),
        _inside(f"{_ATTENTION}logit_scale", (f"{BLOCK}attention.self.logit_scale",)),
        _inside(f"{_ATTENTION}cpb_mlp.0.{{part}}", (f"{BLOCK}attention.self.continuous_position_bias_mlp.0.{{part}}",)),
        _inside(f"{_ATTENTION}cpb_mlp.2.weight", (f"{BLOCK}attention.self.continuous_position_bias_mlp.2.weight",)),
        _inside(
            f"{_ATTENTION}qkv.weight",
            tuple(f"{BLOCK}attention.self.{part}.weight" for part in ("query", "key", "value")),
            JOINED,
        ),
        _inside(f"{_ATTENTION}q_bias", (f"{BLOCK}attention.self.query.bias",)),
        _inside(f"{_ATTENTION}v_bias", (f"{BLOCK}attention.self.value.bias",)),
        _inside(f"{_ATTENTION}proj.{{part}}", (f"{BLOCK}attention.output.dense.{{part}}",)),
        _inside(f"{_BLOCK}norm1.{{part}}", (f"{BLOCK}layernorm_before.{{part}}",)),
        _inside(f"{_BLOCK}ffn.layers.0.0.{{part}}", (f"{BLOCK}intermediate.dense.{{part}}",)),
        _inside(f"{_BLOCK}ffn.layers.1.{{part}}", (f"{BLOCK}output.dense.{{part}}",)),
        _inside(f"{_BLOCK}norm2.{{part}}", (f"{BLOCK}layernorm_after.{{part}}",)),
        _inside(f"{_BLOCK}norm3.{{part}}", (f"{BLOCK}layernorm_extra.{{part}}",)),
        _inside("stages.{merge+1}.downsample.reduction.weight", (f"{MERGE}reduction.weight",), UNFOLDED),
        _inside("stages.{merge+1}.downsample.norm.{part}", (f"{MERGE}norm.{{part}}",)),
        _inside("norm{last}.{part}", (f"{MODEL}layernorm.{{part}}",)),
        Rule("head.fc.{part}", ("classifier.{part}",)),
    ),
    limits=_limits,
    buffers=(
        ("coordinates", (f"backbone.{_ATTENTION}relative_coords_table", f"{_ATTENTION}relative_coords_table")),
        ("pairs", (f"backbone.{_ATTENTION}relative_position_index", f"{_ATTENTION}relative_position_index")),
    ),
    knows_windows=True,
    takes_any_size=True,
)
