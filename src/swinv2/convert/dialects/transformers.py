"""transformers' names, which are ours.

Data only. Newer versions of transformers have other names inside their classes: `attention.q_proj`, `k_proj`, `v_proj`,
`o_proj` and `mlp.fc1`, `fc2`. Their folders still have the older names, which every version reads; so the older names
are written, and both are read. The names of a network without a head do not begin with `swinv2.`. Old folders also
contain coordinates and pair indices.

Source: transformers, models/swinv2/modeling_swinv2.py, before and after it was rewritten.
"""

from swinv2.convert.dialects import limits
from swinv2.convert.dialects.names import window_tables
from swinv2.convert.dialects.rules import BLOCK, MERGE, MODEL, Dialect, Rule


def _same_name(name: str, *newer: str) -> Rule:
    """The rule of a tensor with the same name in transformers, which newer versions may spell otherwise."""
    spellings = (*newer, *(text.removeprefix(MODEL) for text in (name, *newer) if text.startswith(MODEL)))
    return Rule(name, (name,), read_as=spellings)


_BIAS = "continuous_position_bias_mlp."

TRANSFORMERS = Dialect(
    name="transformers",
    title="transformers",
    rules=(
        _same_name(f"{MODEL}embeddings.patch_embeddings.projection.{{part}}"),
        _same_name(f"{MODEL}embeddings.norm.{{part}}"),
        _same_name(f"{MODEL}embeddings.mask_token"),
        _same_name(f"{MODEL}embeddings.position_embeddings"),
        _same_name(f"{BLOCK}attention.self.logit_scale", f"{BLOCK}attention.logit_scale"),
        _same_name(f"{BLOCK}attention.self.{_BIAS}0.{{part}}", f"{BLOCK}attention.{_BIAS}0.{{part}}"),
        _same_name(f"{BLOCK}attention.self.{_BIAS}2.weight", f"{BLOCK}attention.{_BIAS}2.weight"),
        _same_name(f"{BLOCK}attention.self.query.{{part}}", f"{BLOCK}attention.q_proj.{{part}}"),
        _same_name(f"{BLOCK}attention.self.key.weight", f"{BLOCK}attention.k_proj.weight"),
        _same_name(f"{BLOCK}attention.self.value.{{part}}", f"{BLOCK}attention.v_proj.{{part}}"),
        _same_name(f"{BLOCK}attention.output.dense.{{part}}", f"{BLOCK}attention.o_proj.{{part}}"),
        _same_name(f"{BLOCK}layernorm_before.{{part}}"),
        _same_name(f"{BLOCK}intermediate.dense.{{part}}", f"{BLOCK}mlp.fc1.{{part}}"),
        _same_name(f"{BLOCK}output.dense.{{part}}", f"{BLOCK}mlp.fc2.{{part}}"),
        _same_name(f"{BLOCK}layernorm_after.{{part}}"),
        _same_name(f"{BLOCK}layernorm_extra.{{part}}"),
        _same_name(f"{MERGE}reduction.weight"),
        _same_name(f"{MERGE}norm.{{part}}"),
        _same_name(f"{MODEL}layernorm.{{part}}"),
        _same_name("classifier.{part}"),
        _same_name("decoder.0.{part}"),
    ),
    limits=(
        limits.extra_norms,
        limits.position_embeddings,
        limits.hidden_padding,
        limits.rectangles,
        limits.several_windows,
        limits.rectangular_pretraining,
    ),
    buffers=tuple(
        row
        for block in (BLOCK, BLOCK.removeprefix(MODEL))
        for row in (
            *window_tables(block, "attention.self."),
            ("regions", f"{block}attn_mask"),
            ("key bias", f"{block}attention.self.key.bias"),
            ("key bias", f"{block}attention.k_proj.bias"),
        )
    ),
)
