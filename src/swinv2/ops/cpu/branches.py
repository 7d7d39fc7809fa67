"""The two residual branches of a block on a CPU, a cacheful at a time.

In: a map (B, H, W, C) and the weights of a branch. Out: the map with the branch's normalised work added. A branch is
computed for some windows, images or tokens at a time: what lies between its products stays in the cache, and only what
the gradients need is written to memory. The backward pass goes the same way. There is no gradient of the gradient: for
that, load the model with attn_implementation="eager".

Each function marked `custom_op` is one operation of the graph under torch.compile.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from swinv2.ops.cpu import blocks, kernels
from swinv2.ops.cpu.arguments import Norm, Weights
from swinv2.ops.cpu.linear import (
    add_turned_product,
    join,
    product,
    sum_of_tokens,
    uses_kernels,
)
from swinv2.ops.cpu.pieces import SMALLEST_PIECE, pieces
from swinv2.ops.custom_op import custom_op
from swinv2.ops.precision import precise, without_autocast
from swinv2.ops.windows import WindowPlan


@dataclass(frozen=True)
class Ending:
    """How a branch ends: what its work goes through before it is added.

    Attributes:
        weight, bias, eps: Of the layer norm.
        keep_mask: Which images the branch is computed for, (B); the others stay as they are. None for all.
        factor: What the norm's answer is multiplied by.
    """

    weight: Tensor
    bias: Tensor
    eps: float
    keep_mask: Tensor | None = None
    factor: float = 1.0


def add_attention(
    x: Tensor, qkv: Sequence[Weights], last: Weights, bias_table: Tensor, scale: Tensor, plan: WindowPlan, end: Ending
) -> Tensor:
    """x + factor * norm(last(attention(q(x), k(x), v(x)))).

    Args:
        x: The map (B, H, W, C).
        qkv: The linear layers of queries, keys and values; that of the keys has no bias.
        last: The linear layer after the attention.
        bias_table, scale, plan: See `reference.window_attention`.
        end: The norm and the drop path.
    """
    weights, biases = [weight for weight, _ in (*qkv, last)], [bias for _, bias in (*qkv, last)]
    shared = (bias_table, scale, end.weight, end.bias, end.eps, end.keep_mask, end.factor)
    if _wants_gradients(x, *weights, *biases, *shared[:4]):
        return _AddAttention.apply(x, *weights, *biases, *shared, _stored_dtype(x), plan)
    return attention_branch(x, weights, biases, *shared, False, _stored_dtype(x), plan)[0]


def add_mlp(x: Tensor, widen: Weights, narrow: Weights, end: Ending) -> Tensor:
    """x + factor * norm(narrow(GELU(widen(x)))).

    Args:
        x: The map (B, H, W, C).
        widen, narrow: The two linear layers.
        end: The norm and the drop path.
    """
    shared = (*widen, *narrow, end.weight, end.bias, end.eps, end.keep_mask, end.factor)
    if _wants_gradients(x, *shared[:6]):
        return _AddMlp.apply(x, *shared, _stored_dtype(x))
    return mlp_branch(x, *shared, False, _stored_dtype(x))[0]


def _wants_gradients(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _stored_dtype(x: Tensor) -> torch.dtype:
    """The dtype of what a branch leaves for its gradients: autocast's, where that is on."""
    if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:
        return torch.get_autocast_dtype("cpu")
    return x.dtype


def _empty_attention_branch(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    save_for_backward, dtype = rest[-3], rest[-2]
    batch, height, width, channels = x.shape
    saved = [
        x.new_empty(batch if save_for_backward else 0, height, width, wide * channels, dtype=dtype)
        for wide in (3, 1, 1)
    ]
    return x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, dtype)), saved[0], saved[1], saved[2]


@custom_op(_empty_attention_branch)
@without_autocast
def attention_branch(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    bias_table: Tensor,
    scale: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    keep_mask: Tensor | None,
    factor: float,
    save_for_backward: bool,
    dtype: torch.dtype,
    plan: WindowPlan,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`add_attention` without gradients.

    Args:
        x, bias_table, scale, plan: See `add_attention`.
        weights, biases: Of the layers of queries, keys and values, and of the last one.
        norm_weight, norm_bias, eps, keep_mask, factor: See `Ending`.
        save_for_backward: Whether to return what the gradients need.
        dtype: What that is stored in.

    Returns:
        The sum; queries, keys and values (B, H, W, 3 C); the attended map (B, H, W, C), and the norm's input, likewise.
        Those begin with the images that are kept; beyond these is nothing. They are empty unless `save_for_backward`.
    """
    out, qkv, attended, work = _empty_attention_branch(x, save_for_backward, dtype, plan)
    index = _images_kept(keep_mask)
    images = _take(x, index)
    sums = out if index is None else out.new_empty(images.shape)
    layers, norm = list(zip(weights, biases, strict=True)), (norm_weight, norm_bias, eps, factor)
    if uses_kernels(dtype):
        saved = [each[: len(images)] for each in (qkv, attended, work)] if save_for_backward else []
        blocks.add_attention(images, layers[:3], layers[3], bias_table, scale, plan, norm, sums, *saved)
    else:
        _attend_by_torch(images, layers, bias_table, scale, plan, norm, sums, dtype, (qkv, attended, work))
    if index is not None:
        out.copy_(x)[index] = sums
    return out, qkv, attended, work


def _attend_by_torch(
    images: Tensor,
    layers: Sequence[Weights],
    bias_table: Tensor,
    scale: Tensor,
    plan: WindowPlan,
    norm: Norm,
    out: Tensor,
    dtype: torch.dtype,
    saved: Sequence[Tensor],
) -> None:
    """`blocks.add_attention` with products by torch, which has them in 16 bits; what is to be saved is empty if it is
    not."""
    heads, filling = len(scale), _as_vectors(layers[2][1], len(scale))
    into = join([weight for weight, _ in layers[:3]], [bias for _, bias in layers[:3]])
    for piece in _image_pieces(images, dtype):
        tokens = images[piece].flatten(0, 2)
        qkv, attended, work = (each[piece].flatten(0, 2) if len(each) else None for each in saved)
        qkv = product(tokens, *into, dtype, out=qkv)
        attended = qkv.new_empty(tokens.shape) if attended is None else attended
        q, k, v, answer = (_as_vectors_of(plan, part, heads) for part in (*qkv.chunk(3, -1), attended))
        kernels.attend(q, k, v, bias_table, scale, filling, plan, answer)
        work = product(attended, *layers[3], dtype, out=work)
        kernels.add_normalised(tokens, work, *norm, out[piece].flatten(0, 2))


def _empty_attention_gradients(
    grad: Tensor,
    x: Tensor,
    saved: Sequence[Tensor],
    weights: Sequence[Tensor],
    value_bias: Tensor | None,
    bias_table: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    wants_x, wants_weights, wants_last, wants_table = rest[-3]
    channels, dtype = x.shape[3], precise(x.dtype)
    return (
        x.new_empty(x.shape if wants_x else (0,)),
        x.new_empty(3 * channels if wants_weights else 0, channels, dtype=dtype),
        x.new_empty(3 * channels, dtype=dtype),
        x.new_empty(channels if wants_last else 0, channels, dtype=dtype),
        bias_table.new_empty(bias_table.shape if wants_table else (0,), dtype=dtype),
        x.new_empty(rest[0].shape, dtype=dtype),
        x.new_empty(3, channels, dtype=dtype),
    )


@custom_op(_empty_attention_gradients)
@without_autocast
def attention_branch_backward(
    grad: Tensor,
    x: Tensor,
    saved: Sequence[Tensor],
    weights: Sequence[Tensor],
    value_bias: Tensor | None,
    bias_table: Tensor,
    scale: Tensor,
    norm_weight: Tensor,
    eps: float,
    keep_mask: Tensor | None,
    factor: float,
    wants: Sequence[bool],
    dtype: torch.dtype,
    plan: WindowPlan,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `attention_branch`.

    Args:
        grad: Of the sum.
        x, weights, bias_table, scale, norm_weight, eps, keep_mask, factor, dtype, plan: What it was given.
        saved: What it returned beside the sum.
        value_bias: The bias of the values.
        wants: Whether the gradients of x, of the joined weight, of the last layer's weight and of the bias table are
            wanted; they are empty where they are not.

    Returns:
        The gradients of x; of weight (3 C, C) and bias (3 C) of the joined layers of queries, keys and values; of the
        last layer's weight; of the bias table; of the scale; and of the norm's weight, of its bias and of the last
        layer's bias, (3, C). All but x's are in fp32 at least.
    """
    arguments = (grad, x, saved, weights, value_bias, bias_table, scale, wants, dtype, plan)
    grad_x, *sums = gradients = _empty_attention_gradients(*arguments)
    index = _images_kept(keep_mask)
    images, grads = _take(x, index), _take(grad, index)
    grad_images = grad_x if index is None and wants[0] else torch.empty_like(images) if wants[0] else None
    given = (bias_table, scale, plan, (norm_weight, norm_weight, eps, factor))
    if uses_kernels(dtype):
        into, bias, last, table, grad_scale, end = sums
        some = [each[: len(images)] for each in saved]
        wanted = [each if is_wanted else None for each, is_wanted in zip((into, last, table), wants[1:], strict=True)]
        to = blocks.Gradients(grad_images, wanted[0], bias, wanted[1], end, wanted[2], grad_scale)
        blocks.attention_backward(grads, images, some, weights, value_bias, *given, to)
    else:
        _attend_backward_by_torch(grads, images, saved, weights, value_bias, *given, wants, dtype, grad_images, sums)
    if index is not None and grad_images is not None:
        grad_x.copy_(grad)[index] = grad_images
    return gradients


def _attend_backward_by_torch(
    grads: Tensor,
    images: Tensor,
    saved: Sequence[Tensor],
    weights: Sequence[Tensor],
    value_bias: Tensor | None,
    bias_table: Tensor,
    scale: Tensor,
    plan: WindowPlan,
    norm: Norm,
    wants: Sequence[bool],
    dtype: torch.dtype,
    grad_images: Tensor | None,
    sums: Sequence[Tensor],
) -> None:
    """`blocks.attention_backward` with products by torch; `sums` gets the other gradients."""
    grad_into, grad_bias, grad_last, grad_table, grad_scale, grad_end = (each.zero_() for each in sums)
    (norm_weight, _, eps, factor), end = norm, grad_end.double()
    qkv, attended, work = saved
    heads, filling = len(scale), _as_vectors(value_bias, len(scale))
    into, last = torch.cat(list(weights[:3])), weights[3]
    for piece in _image_pieces(images, dtype):
        tokens, some_grad, some_qkv, some_attended, some_work = (
            each[piece].flatten(0, 2) for each in (images, grads, qkv, attended, work)
        )
        grad_work = some_grad.new_empty(some_grad.shape, dtype=dtype)
        kernels.add_normalised_backward(some_grad, some_work, norm_weight, eps, factor, grad_work, end)
        if wants[2]:
            add_turned_product(grad_last, grad_work, some_attended, dtype)
        grad_attended, grad_qkv = product(grad_work, last.T, None, dtype), grad_work.new_empty(some_qkv.shape)
        vectors, q, k, v = (_as_vectors_of(plan, part, heads) for part in (grad_attended, *some_qkv.chunk(3, -1)))
        made = [_as_vectors_of(plan, part, heads) for part in grad_qkv.chunk(3, -1)]
        arguments = (vectors, q, k, v, bias_table, scale, filling, plan, made, wants[3])
        some_table, some_scale, some_filling = kernels.attend_backward(*arguments)
        grad_scale += some_scale
        if some_table is not None:
            grad_table += some_table
        grad_bias += sum_of_tokens(grad_qkv)
        grad_bias.chunk(3)[2].add_(some_filling.flatten())
        if wants[1]:
            add_turned_product(grad_into, grad_qkv, tokens, dtype)
        if grad_images is not None:
            product(grad_qkv, into.T, None, dtype, base=some_grad, out=grad_images[piece].flatten(0, 2))
    grad_end.copy_(end)


class _AddAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
        weights, biases, (bias_table, scale, norm_weight, norm_bias) = rest[:4], rest[4:8], rest[8:12]
        eps, keep_mask, factor, dtype, plan = rest[12:]
        shared = (bias_table, scale, norm_weight, norm_bias, eps, keep_mask, factor)
        out, *saved = attention_branch(x, weights, biases, *shared, True, dtype, plan)
        ctx.save_for_backward(x, *saved, *weights, biases[2], bias_table, scale, norm_weight, keep_mask)
        ctx.rest = eps, factor, dtype, plan
        ctx.dtypes = _dtypes(x, *rest)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        saved, weights, (value_bias, bias_table, scale, norm_weight, keep_mask) = tensors[:3], tensors[3:7], tensors[7:]
        eps, factor, dtype, plan = ctx.rest
        asked = ctx.needs_input_grad
        wants = [asked[0], any(asked[1:4]), asked[4], asked[9]]
        rest = (value_bias, bias_table, scale, norm_weight, eps, keep_mask, factor, wants, dtype, plan)
        grad_x, into, bias, last, table, grad_scale, end = attention_branch_backward(grad, x, saved, weights, *rest)
        gradients = [grad_x, *into.chunk(3), last, *bias.chunk(3), end[2], table, grad_scale, end[0], end[1]]
        return *_as_asked(gradients, asked, ctx.dtypes), *[None] * 5


def _empty_mlp_branch(x: Tensor, w1: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    save_for_backward, dtype = rest[-2:]
    tokens = x.shape[0] * x.shape[1] * x.shape[2] if save_for_backward else 0
    saved = [x.new_empty(tokens, channels, dtype=dtype) for channels in (w1.shape[0], x.shape[3])]
    return x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, dtype)), saved[0], saved[1]


@custom_op(_empty_mlp_branch)
@without_autocast
def mlp_branch(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    keep_mask: Tensor | None,
    factor: float,
    save_for_backward: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """`add_mlp` without gradients.

    Args:
        x: The map (B, H, W, C).
        w1, b1, w2, b2: Of the two linear layers.
        norm_weight, norm_bias, eps, keep_mask, factor: See `Ending`.
        save_for_backward: Whether to return what the gradients need.
        dtype: What that is stored in.

    Returns:
        The sum; the GELU's input (N, hidden) and the norm's input (N, C), of the tokens of the images that are
        kept; beyond them is nothing. They are empty unless `save_for_backward`.
    """
    out, hidden, work = _empty_mlp_branch(x, w1, save_for_backward, dtype)
    index = _images_kept(keep_mask)
    images = _take(x, index)
    sums = out if index is None else out.new_empty(images.shape)
    tokens, rooms, norm = images.flatten(0, 2), sums.flatten(0, 2), (norm_weight, norm_bias, eps, factor)
    if uses_kernels(dtype):
        saved = [each[: len(tokens)] for each in (hidden, work)] if save_for_backward else []
        blocks.add_mlp(tokens, (w1, b1), (w2, b2), norm, rooms, *saved)
    for piece in [] if uses_kernels(dtype) else _token_pieces(tokens, w1, dtype):
        some = tokens[piece]
        after = some.new_empty(len(some), len(w1), dtype=dtype)
        product(some, w1, b1, dtype, out=hidden[piece] if save_for_backward else None, after=after)
        some_work = product(after, w2, b2, dtype, out=work[piece] if save_for_backward else None)
        kernels.add_normalised(some, some_work, *norm, rooms[piece])
    if index is not None:
        out.copy_(x)[index] = sums
    return out, hidden, work


def _empty_mlp_gradients(
    grad: Tensor, x: Tensor, hidden: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    wants_x, wants_widen, wants_narrow = rest[-2]
    channels, wide, dtype = x.shape[3], hidden.shape[1], precise(x.dtype)
    return (
        x.new_empty(x.shape if wants_x else (0,)),
        x.new_empty(wide if wants_widen else 0, channels, dtype=dtype),
        x.new_empty(wide, dtype=dtype),
        x.new_empty(channels if wants_narrow else 0, wide, dtype=dtype),
        x.new_empty(3, channels, dtype=dtype),
    )


@custom_op(_empty_mlp_gradients)
@without_autocast
def mlp_branch_backward(
    grad: Tensor,
    x: Tensor,
    hidden: Tensor,
    work: Tensor,
    w1: Tensor,
    w2: Tensor,
    norm_weight: Tensor,
    eps: float,
    keep_mask: Tensor | None,
    factor: float,
    wants: Sequence[bool],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `mlp_branch`.

    Args:
        grad: Of the sum.
        x, w1, w2, norm_weight, eps, keep_mask, factor, dtype: What it was given.
        hidden, work: What it returned beside the sum.
        wants: Whether the gradients of x, w1 and w2 are wanted; they are empty where they are not.

    Returns:
        The gradients of x; of w1 and b1; of w2; and of the norm's weight, of its bias and of b2, (3, C). All but x's
        are in fp32 at least.
    """
    grad_x, *sums = gradients = _empty_mlp_gradients(grad, x, hidden, wants, dtype)
    index = _images_kept(keep_mask)
    images, grads = _take(x, index), _take(grad, index)
    grad_images = grad_x if index is None and wants[0] else torch.empty_like(images) if wants[0] else None
    tokens, grads = images.flatten(0, 2), grads.flatten(0, 2)
    rooms = None if grad_images is None else grad_images.flatten(0, 2)
    norm = (norm_weight, norm_weight, eps, factor)
    if uses_kernels(dtype):
        (into, bias, last, end), count = sums, len(tokens)
        to = blocks.Gradients(rooms, into if wants[1] else None, bias, last if wants[2] else None, end)
        blocks.mlp_backward(grads, tokens, hidden[:count], work[:count], w1, w2, norm, to)
    else:
        _mlp_backward_by_torch(grads, tokens, hidden, work, w1, w2, norm, wants, dtype, rooms, sums)
    if index is not None and grad_images is not None:
        grad_x.copy_(grad)[index] = grad_images
    return gradients


def _mlp_backward_by_torch(
    grads: Tensor,
    tokens: Tensor,
    hidden: Tensor,
    work: Tensor,
    w1: Tensor,
    w2: Tensor,
    norm: Norm,
    wants: Sequence[bool],
    dtype: torch.dtype,
    rooms: Tensor | None,
    sums: Sequence[Tensor],
) -> None:
    """`blocks.mlp_backward` with products by torch; `sums` gets the other gradients."""
    grad_w1, grad_b1, grad_w2, grad_end = (each.zero_() for each in sums)
    (norm_weight, _, eps, factor), bias, end = norm, grad_b1.double(), grad_end.double()
    for piece in _token_pieces(tokens, w1, dtype):
        some_grad, before = grads[piece], hidden[piece]
        grad_work = some_grad.new_empty(some_grad.shape, dtype=dtype)
        kernels.add_normalised_backward(some_grad, work[piece], norm_weight, eps, factor, grad_work, end)
        grad_hidden, after = product(grad_work, w2.T, None, dtype), grad_work.new_empty(before.shape)
        kernels.gelu_backward(before, grad_hidden, after, grad_hidden, bias)
        if wants[2]:
            add_turned_product(grad_w2, grad_work, after, dtype)
        if wants[1]:
            add_turned_product(grad_w1, grad_hidden, tokens[piece], dtype)
        if rooms is not None:
            product(grad_hidden, w1.T, None, dtype, base=some_grad, out=rooms[piece])
    grad_b1.copy_(bias)
    grad_end.copy_(end)


class _AddMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
        w1, b1, w2, b2, norm_weight, norm_bias, eps, keep_mask, factor, dtype = rest
        out, *saved = mlp_branch(x, w1, b1, w2, b2, norm_weight, norm_bias, eps, keep_mask, factor, True, dtype)
        ctx.save_for_backward(x, *saved, w1, w2, norm_weight, keep_mask)
        ctx.rest = eps, factor, dtype
        ctx.dtypes = _dtypes(x, *rest)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, work, w1, w2, norm_weight, keep_mask = ctx.saved_tensors
        eps, factor, dtype = ctx.rest
        asked = ctx.needs_input_grad
        wants = [asked[0], asked[1], asked[3]]
        arguments = (grad, x, hidden, work, w1, w2, norm_weight, eps, keep_mask, factor, wants, dtype)
        grad_x, grad_w1, grad_b1, grad_w2, end = mlp_branch_backward(*arguments)
        gradients = [grad_x, grad_w1, grad_b1, grad_w2, end[2], end[0], end[1]]
        return *_as_asked(gradients, asked, ctx.dtypes), *[None] * 4


def _dtypes(*arguments: Any) -> list[torch.dtype | None]:
    return [argument.dtype if isinstance(argument, Tensor) else None for argument in arguments]


def _as_asked(
    gradients: Sequence[Tensor], asked: Sequence[bool], dtypes: Sequence[torch.dtype | None]
) -> list[Tensor | None]:
    """Gradients in their tensors' dtypes; None where none was asked for."""
    triples = zip(gradients, asked, dtypes, strict=False)
    return [_in_dtype(gradient, dtype) if wanted else None for gradient, wanted, dtype in triples]


def _in_dtype(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    # Asking torch takes longer.
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _images_kept(keep_mask: Tensor | None) -> Tensor | None:
    """Numbers of the images that drop path keeps; None for all."""
    return None if keep_mask is None or keep_mask.all() else keep_mask.nonzero().flatten()


def _take(images: Tensor, index: Tensor | None) -> Tensor:
    """Images of certain numbers, one after the other in memory. (What torch takes lies as it lay.)"""
    return (images if index is None else images[index]).contiguous()


def _as_vectors(bias: Tensor | None, heads: int) -> Tensor | None:
    """The value of a filling token, which is a token of zeros, for each head."""
    return None if bias is None else bias.view(heads, -1)


def _as_vectors_of(plan: WindowPlan, tokens: Tensor, heads: int) -> Tensor:
    """Tokens (N, C) as a map of vectors (B, H, W, heads, head_dim)."""
    return tokens.unflatten(0, (-1, *plan.grid)).unflatten(-1, (heads, -1))


def _image_pieces(images: Tensor, dtype: torch.dtype) -> list[slice]:
    """Images whose queries, keys, values and what follows them fit the cache."""
    return pieces(len(images), 5 * math.prod(images.shape[1:]) * dtype.itemsize)


def _token_pieces(tokens: Tensor, w1: Tensor, dtype: torch.dtype) -> list[slice]:
    return pieces(len(tokens), 2 * len(w1) * dtype.itemsize, SMALLEST_PIECE)
