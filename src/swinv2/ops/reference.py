"""The specification of cosine window attention, in plain PyTorch.

In: queries, keys and values as maps, not normalised; the bias table; the scale of each head; the plan. Out: the
attended map and the attention weights. Every other backend must return the same numbers. The reference pads, shifts and
cuts the maps, and builds the mask of every window and the T x T weights of every head: clear, but slow.

Source: Liu et al., Swin Transformer V2, section 3.3, equation 2: Sim(q, k) = cos(q, k) / tau + B.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from swinv2.lengths import Lengths
from swinv2.ops import windows
from swinv2.ops.precision import at_least_fp32
from swinv2.ops.windows import WindowPlan


@dataclass  # not frozen: that takes several times as long, in every call
class AttentionInputs:
    """What window attention is computed from, in every backend.

    Attributes:
        q, k, v: The maps, not normalised.
        bias_table: Position bias of each relative position, (heads, 2 Wh - 1, 2 Ww - 1) for images; it is added to the
            logits.
        scale: The factor of the cosine, 1 / tau: positive, at most 100.
        plan: The windows of the map.
        padded_value: The value of a padding token (the value projection of a zero token); zeros if None. The key of a
            padding token is zero, because the key projection has no bias.
        dropout: Probability of dropping an attention weight.
        padded_query: The query of a padding token; zeros if None. It affects only the attention weights, because the
            output of padding tokens is removed from the map.
    """

    q: Float[Tensor, "B *grid heads head_dim"]
    k: Float[Tensor, "B *grid heads head_dim"]
    v: Float[Tensor, "B *grid heads head_dim"]
    bias_table: Float[Tensor, "heads *table"]
    scale: Float[Tensor, " heads"]
    plan: WindowPlan
    padded_value: Float[Tensor, "heads head_dim"] | None = None
    dropout: float = 0.0
    padded_query: Float[Tensor, "heads head_dim"] | None = None


def normalise(vectors: Tensor) -> Tensor:
    """Specification: scales vectors along the last axis to length 1; a zero vector stays zero.

    It computes in fp32 at least: the smallest norm, 1e-12, is 0 in fp16, and the key of a padding token is exactly
    zero.
    """
    return F.normalize(at_least_fp32(vectors), dim=-1, eps=1e-12).to(vectors.dtype)


def expand_bias(bias_table: Float[Tensor, "heads *table"], window: Lengths) -> Float[Tensor, "heads tokens tokens"]:
    """Specification: looks up the bias of every pair of tokens of a window.

    The bias of query (y, x) and key (v, u) is entry (y - v + Wh - 1, x - u + Ww - 1) of the table. So the biases of one
    query are a Wh x Ww patch of the table in reverse order.
    """
    axes, tokens, patches = len(window), math.prod(window), bias_table
    for axis, length in enumerate(window, 1):
        patches = patches.unfold(axis, length, 1)
    return patches.flip(list(range(1 + axes, 1 + 2 * axes))).reshape(bias_table.shape[0], tokens, tokens)


def window_attention(
    inputs: AttentionInputs,
) -> tuple[Float[Tensor, "B *grid heads head_dim"], Float[Tensor, "N heads tokens tokens"]]:
    """Cosine attention inside every window of a map: the specification.

    Returns:
        The attended map, and the attention weights of all windows (B * windows, heads, T, T) after dropout.
    """
    q, k, v, plan = inputs.q, inputs.k, inputs.v, inputs.plan
    maps = (windows.pad(q, plan, inputs.padded_query), windows.pad(k, plan), windows.pad(v, plan, inputs.padded_value))
    query, key, value = (windows.partition(windows.shift(m, plan), plan.window).transpose(1, 2) for m in maps)

    cosine = normalise(query) @ normalise(key).transpose(-2, -1)
    bias = expand_bias(inputs.bias_table.to(v.dtype), plan.window)
    logits = cosine * inputs.scale[:, None, None].to(v.dtype) + bias
    hidden = plan.hidden_pairs(q.device)
    if hidden is not None:
        logits = logits.unflatten(0, (-1, hidden.shape[0])).masked_fill(hidden[:, None], float("-inf")).flatten(0, 1)
    weights = F.dropout(logits.softmax(dim=-1), inputs.dropout)

    attended = windows.merge((weights @ value).transpose(1, 2), plan.window, plan.padded_grid)
    return windows.crop(windows.unshift(attended, plan), plan), weights
