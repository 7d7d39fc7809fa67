"""The rules for the tensors that every library has, learned or not.

In: a library's names of the parts of a network; the defaults are the authors' names. Out: the rules. The tables of the
dialects add the rules of one library only.
"""

from swinv2.convert.dialects.rules import BLOCK, JOINED, MERGE, MODEL, QUERY_VALUE, SAME, Change, Rule


def network_rules(
    *,
    patches: tuple[str, str] = ("patch_embed.proj.", "patch_embed.norm."),
    block: str = "layers.{stage}.blocks.{block}.",
    attention: str = "attn.",
    bias_network: tuple[str, ...] = ("cpb_mlp.",),
    mlp: tuple[str, str] = ("mlp.fc1.", "mlp.fc2."),
    merge: str = "layers.{merge}.downsample.",
    last_norm: str = "norm.",
    one_bias: bool = False,
    merging: Change = SAME,
) -> tuple[Rule, ...]:
    """The rules of a network without its head. Each argument but the last two is the beginning of a library's names.

    Args:
        patches: Projection of patches, and their norm.
        block: A block.
        attention: Attention, inside a block.
        bias_network: The small network of the position bias, inside attention. The first name is read and written, any
            further names are only read.
        mlp: The two layers of the MLP, inside a block.
        merge: A merging.
        last_norm: The norm after the last stage.
        one_bias: Whether one tensor is the bias of queries, keys and values; if not, queries and values have one each.
        merging: The change of the matrix of a merging.
    """
    inside, ours = block + attention, f"{BLOCK}attention.self."
    bias = f"{ours}continuous_position_bias_mlp."
    written, *older = (inside + name for name in bias_network)
    query, key, value = (f"{ours}{name}." for name in ("query", "key", "value"))
    biases = (
        (Rule(f"{inside}qkv.bias", (f"{query}bias", f"{value}bias"), QUERY_VALUE),)
        if one_bias
        else (Rule(f"{inside}q_bias", (f"{query}bias",)), Rule(f"{inside}v_bias", (f"{value}bias",)))
    )
    return (
        Rule(f"{patches[0]}{{part}}", (f"{MODEL}embeddings.patch_embeddings.projection.{{part}}",)),
        Rule(f"{patches[1]}{{part}}", (f"{MODEL}embeddings.norm.{{part}}",)),
        Rule(f"{inside}logit_scale", (f"{ours}logit_scale",)),
        Rule(f"{written}0.{{part}}", (f"{bias}0.{{part}}",), read_as=tuple(f"{name}0.{{part}}" for name in older)),
        Rule(f"{written}2.weight", (f"{bias}2.weight",), read_as=tuple(f"{name}2.weight" for name in older)),
        Rule(f"{inside}qkv.weight", (f"{query}weight", f"{key}weight", f"{value}weight"), JOINED),
        *biases,
        Rule(f"{inside}proj.{{part}}", (f"{BLOCK}attention.output.dense.{{part}}",)),
        Rule(f"{block}norm1.{{part}}", (f"{BLOCK}layernorm_before.{{part}}",)),
        Rule(f"{block}{mlp[0]}{{part}}", (f"{BLOCK}intermediate.dense.{{part}}",)),
        Rule(f"{block}{mlp[1]}{{part}}", (f"{BLOCK}output.dense.{{part}}",)),
        Rule(f"{block}norm2.{{part}}", (f"{BLOCK}layernorm_after.{{part}}",)),
        Rule(f"{merge}reduction.weight", (f"{MERGE}reduction.weight",), merging),
        Rule(f"{merge}norm.{{part}}", (f"{MERGE}norm.{{part}}",)),
        Rule(f"{last_norm}{{part}}", (f"{MODEL}layernorm.{{part}}",)),
    )


def window_tables(block: str, attention: str = "attn.") -> tuple[tuple[str, str], ...]:
    """The rows of `Dialect.buffers` for the tables of a window; the arguments are as in `network_rules`."""
    inside = block + attention
    return ("coordinates", f"{inside}relative_coords_table"), ("pairs", f"{inside}relative_position_index")
