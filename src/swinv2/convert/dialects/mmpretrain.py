"""mmpretrain's names: `SwinTransformerV2` inside a classifier, or alone.

Data only. mmpretrain merges at the start of a stage, with torch's Unfold, so the columns of a merging's matrix are in
another order. The name of the last norm contains the number of its stage. The extra norms of the largest models are
`norm3`.

Source: open-mmlab/mmpretrain, models/backbones/swin_transformer_v2.py, models/utils/attention.py and embed.py; mmcv's
`FFN` and `PatchEmbed` for the names inside.
"""

from swinv2.convert.dialects import limits
from swinv2.convert.dialects.names import network_rules, window_tables
from swinv2.convert.dialects.rules import BLOCK, MODEL, UNFOLDED, Dialect, Rule

_BLOCK = "stages.{stage}.blocks.{block}."
_ATTENTION = "attn.w_msa."
_BACKBONE = (
    *network_rules(
        patches=("patch_embed.projection.", "patch_embed.norm."),
        block=_BLOCK,
        attention=_ATTENTION,
        mlp=("ffn.layers.0.0.", "ffn.layers.1."),
        merge="stages.{merge+1}.downsample.",
        last_norm="norm{last}.",
        merging=UNFOLDED,
    ),
    Rule("absolute_pos_embed", (f"{MODEL}embeddings.position_embeddings",)),
    Rule(f"{_BLOCK}norm3.{{part}}", (f"{BLOCK}layernorm_extra.{{part}}",)),
)

MMPRETRAIN = Dialect(
    name="mmpretrain",
    title="mmpretrain",
    rules=(
        # Names of a backbone alone, without the prefix, are read too.
        *(rule.under("backbone.", "") for rule in _BACKBONE),
        Rule("head.fc.{part}", ("classifier.{part}",)),
    ),
    limits=(
        limits.hidden_padding,
        limits.other_operations,
        limits.rectangles,
        limits.rectangular_windows,
        limits.rectangular_pretraining,
        limits.one_token,
    ),
    buffers=(*window_tables(f"backbone.{_BLOCK}", _ATTENTION), *window_tables(_BLOCK, _ATTENTION)),
    writes_buffers=True,
    takes_any_size=True,
    windows_by_stage=True,
)
