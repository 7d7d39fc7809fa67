"""The two residual branches of a block on a CPU, in chunks that fit the cache.

In: a map (B, H, W, C) and the weights of a branch. Out: the map plus the branch's normalised output. A branch is
computed for a chunk of windows, images or tokens at a time. Intermediate results stay in the cache, and only the
tensors saved for backward are written to memory. The backward pass works in the same way. Second derivatives are not
supported: for them, load the model with attn_implementation="eager".

Under torch.compile, each function with the decorator `custom_op` is one operation of the graph.
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
from swinv2.ops.cpu.chunks import SMALLEST_CHUNK, chunks
from swinv2.ops.cpu.linear import (
    add_transposed_product,
    join,
    product,
    sum_of_tokens,
    uses_kernels,
)
from swinv2.ops.custom_op import custom_op
from swinv2.ops.precision import precise, without_autocast
from swinv2.ops.reference import AttentionInputs
from swinv2.ops.windows import WindowPlan


@dataclass(frozen=True)
class Epilogue:
    """The norm and drop path of a branch, between its layers and the sum.

    Attributes:
        weight, bias, eps: Parameters of the layer norm.
        keep_mask: True for the images with a branch, (B); the other images are unchanged. None for all images.
        factor: Factor of the norm's output.
    """

    weight: Tensor
    bias: Tensor
    eps: float
    keep_mask: Tensor | None = None
    factor: float = 1.0


def add_attention(
    x: Tensor,
    qkv: Sequence[Weights],
    out_proj: Weights,
    bias_table: Tensor,
    scale: Tensor,
    plan: WindowPlan,
    epilogue: Epilogue,
) -> Tensor:
    """x + factor * norm(out_proj(attention(q(x), k(x), v(x)))).

    Args:
        x: The map (B, H, W, C).
        qkv: The linear layers of queries, keys and values; the key layer has no bias.
        out_proj: The output projection.
        bias_table, scale, plan: See `reference.window_attention`.
        epilogue: The norm and the drop path.
    """
    weights, biases = [weight for weight, _ in (*qkv, out_proj)], [bias for _, bias in (*qkv, out_proj)]
    shared = (bias_table, scale, epilogue.weight, epilogue.bias, epilogue.eps, epilogue.keep_mask, epilogue.factor)
    if _wants_gradients(x, *weights, *biases, *shared[:4]):
        return _AddAttention.apply(x, *weights, *biases, *shared, _stored_dtype(x), plan)
    return attention_branch(x, weights, biases, *shared, False, _stored_dtype(x), plan)[0]


def add_mlp(x: Tensor, fc1: Weights, fc2: Weights, epilogue: Epilogue) -> Tensor:
    """x + factor * norm(fc2(GELU(fc1(x)))).

    Args:
        x: The map (B, H, W, C).
        fc1, fc2: The two linear layers.
        epilogue: The norm and the drop path.
    """
    shared = (*fc1, *fc2, epilogue.weight, epilogue.bias, epilogue.eps, epilogue.keep_mask, epilogue.factor)
    if _wants_gradients(x, *shared[:6]):
        return _AddMlp.apply(x, *shared, _stored_dtype(x))
    return mlp_branch(x, *shared, False, _stored_dtype(x))[0]


def _wants_gradients(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _stored_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the tensors saved for backward: that of autocast, if it is on."""
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
        weights, biases: Those of the layers of queries, keys, values and of the output projection.
        norm_weight, norm_bias, eps, keep_mask, factor: See `Epilogue`.
        save_for_backward: Whether to return the tensors that the backward pass needs.
        dtype: Their dtype.

    Returns:
        The sum; queries, keys and values (B, H, W, 3 C); the attended map (B, H, W, C); and the norm's input
        (B, H, W, C). The last three have the kept images first, then undefined numbers. They are empty unless
        `save_for_backward`.
    """
    out, qkv, attended, branch_out = _empty_attention_branch(x, save_for_backward, dtype, plan)
    index = _kept_images(keep_mask)
    images = _take(x, index)
    sums = out if index is None else out.new_empty(images.shape)
    layers, norm = list(zip(weights, biases, strict=True)), (norm_weight, norm_bias, eps, factor)
    if uses_kernels(dtype):
        saved = [each[: len(images)] for each in (qkv, attended, branch_out)] if save_for_backward else []
        blocks.add_attention(images, layers[:3], layers[3], bias_table, scale, plan, norm, sums, *saved)
    else:
        _attend_by_torch(images, layers, bias_table, scale, plan, norm, sums, dtype, (qkv, attended, branch_out))
    if index is not None:
        out.copy_(x)[index] = sums
    return out, qkv, attended, branch_out


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
    """`blocks.add_attention` with matrix products by torch, which can be in 16 bits; tensors in `saved` that are not
    needed are empty."""
    heads, padding = len(scale), _as_vectors(layers[2][1], len(scale))
    in_proj = join([weight for weight, _ in layers[:3]], [bias for _, bias in layers[:3]])
    for chunk in _image_chunks(images, dtype):
        tokens = images[chunk].flatten(0, 2)
        qkv, attended, branch_out = (each[chunk].flatten(0, 2) if len(each) else None for each in saved)
        qkv = product(tokens, *in_proj, dtype, out=qkv)
        attended = qkv.new_empty(tokens.shape) if attended is None else attended
        q, k, v, output = (_as_vectors_of(plan, part, heads) for part in (*qkv.chunk(3, -1), attended))
        kernels.attend(AttentionInputs(q, k, v, bias_table, scale, plan, padding), output)
        branch_out = product(attended, *layers[3], dtype, out=branch_out)
        kernels.add_normalised(tokens, branch_out, *norm, out[chunk].flatten(0, 2))


def _empty_attention_gradients(
    grad: Tensor,
    x: Tensor,
    saved: Sequence[Tensor],
    weights: Sequence[Tensor],
    value_bias: Tensor | None,
    bias_table: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    wants_x, wants_weights, wants_out_proj, wants_table = rest[-3]
    channels, dtype = x.shape[3], precise(x.dtype)
    return (
        x.new_empty(x.shape if wants_x else (0,)),
        x.new_empty(3 * channels if wants_weights else 0, channels, dtype=dtype),
        x.new_empty(3 * channels, dtype=dtype),
        x.new_empty(channels if wants_out_proj else 0, channels, dtype=dtype),
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
        grad: The gradient of the sum.
        x, weights, bias_table, scale, norm_weight, eps, keep_mask, factor, dtype, plan: The arguments of
            `attention_branch`.
        saved: Its results, without the sum.
        value_bias: The bias of the value layer.
        wants: Whether to compute the gradients of x, of the joined weight of queries, keys and values, of the output
            projection's weight and of the bias table. A gradient that is not wanted is empty.

    Returns:
        The gradients of x; of weight (3 C, C) and bias (3 C) of the joined layers of queries, keys and values; of the
        output projection's weight; of the bias table; of the scale; and, as one tensor (3, C), of the norm's weight,
        the norm's bias and the output projection's bias. All but the first are in fp32 at least.
    """
    arguments = (grad, x, saved, weights, value_bias, bias_table, scale, wants, dtype, plan)
    grad_x, *sums = gradients = _empty_attention_gradients(*arguments)
    index = _kept_images(keep_mask)
    images, grads = _take(x, index), _take(grad, index)
    grad_images = grad_x if index is None and wants[0] else torch.empty_like(images) if wants[0] else None
    given = (bias_table, scale, plan, (norm_weight, norm_weight, eps, factor))
    if uses_kernels(dtype):
        in_proj, bias, out_proj, table, grad_scale, epilogue = sums
        of_images = [each[: len(images)] for each in saved]
        wanted = [
            each if is_wanted else None for each, is_wanted in zip((in_proj, out_proj, table), wants[1:], strict=True)
        ]
        to = blocks.Gradients(grad_images, wanted[0], bias, wanted[1], epilogue, wanted[2], grad_scale)
        blocks.attention_backward(grads, images, of_images, weights, value_bias, *given, to)
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
    """`blocks.attention_backward` with matrix products by torch; writes the gradient of x to `grad_images` and the
    other gradients to `sums`."""
    grad_in_proj, grad_bias, grad_out_proj, grad_table, grad_scale, grad_epilogue = (each.zero_() for each in sums)
    (norm_weight, _, eps, factor), epilogue = norm, grad_epilogue.double()
    qkv, attended, branch_out = saved
    heads, padding = len(scale), _as_vectors(value_bias, len(scale))
    in_proj, out_proj = torch.cat(list(weights[:3])), weights[3]
    for chunk in _image_chunks(images, dtype):
        tokens, chunk_grad, chunk_qkv, chunk_attended, chunk_branch_out = (
            each[chunk].flatten(0, 2) for each in (images, grads, qkv, attended, branch_out)
        )
        grad_branch_out = chunk_grad.new_empty(chunk_grad.shape, dtype=dtype)
        kernels.add_normalised_backward(
            chunk_grad, chunk_branch_out, norm_weight, eps, factor, grad_branch_out, epilogue
        )
        if wants[2]:
            add_transposed_product(grad_out_proj, grad_branch_out, chunk_attended, dtype)
        grad_attended, grad_qkv = (
            product(grad_branch_out, out_proj.T, None, dtype),
            grad_branch_out.new_empty(chunk_qkv.shape),
        )
        vectors, q, k, v = (_as_vectors_of(plan, part, heads) for part in (grad_attended, *chunk_qkv.chunk(3, -1)))
        made = [_as_vectors_of(plan, part, heads) for part in grad_qkv.chunk(3, -1)]
        inputs = AttentionInputs(q, k, v, bias_table, scale, plan, padding)
        chunk_table, chunk_scale, chunk_padding = kernels.attend_backward(vectors, inputs, made, wants[3])
        grad_scale += chunk_scale
        if chunk_table is not None:
            grad_table += chunk_table
        grad_bias += sum_of_tokens(grad_qkv)
        grad_bias.chunk(3)[2].add_(chunk_padding.flatten())
        if wants[1]:
            add_transposed_product(grad_in_proj, grad_qkv, tokens, dtype)
        if grad_images is not None:
            product(grad_qkv, in_proj.T, None, dtype, base=chunk_grad, out=grad_images[chunk].flatten(0, 2))
    grad_epilogue.copy_(epilogue)


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
        grad_x, in_proj, bias, out_proj, table, grad_scale, epilogue = attention_branch_backward(
            grad, x, saved, weights, *rest
        )
        gradients = [
            grad_x,
            *in_proj.chunk(3),
            out_proj,
            *bias.chunk(3),
            epilogue[2],
            table,
            grad_scale,
            epilogue[0],
            epilogue[1],
        ]
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
        w1, b1, w2, b2: Weights and biases of the two linear layers.
        norm_weight, norm_bias, eps, keep_mask, factor: See `Epilogue`.
        save_for_backward: Whether to return the tensors that the backward pass needs.
        dtype: Their dtype.

    Returns:
        The sum; the GELU's input (N, hidden); and the norm's input (N, C). The last two have the tokens of the kept
        images first, then undefined numbers. They are empty unless `save_for_backward`.
    """
    out, hidden, branch_out = _empty_mlp_branch(x, w1, save_for_backward, dtype)
    index = _kept_images(keep_mask)
    images = _take(x, index)
    sums = out if index is None else out.new_empty(images.shape)
    tokens, buffers, norm = images.flatten(0, 2), sums.flatten(0, 2), (norm_weight, norm_bias, eps, factor)
    if uses_kernels(dtype):
        saved = [each[: len(tokens)] for each in (hidden, branch_out)] if save_for_backward else []
        blocks.add_mlp(tokens, (w1, b1), (w2, b2), norm, buffers, *saved)
    for chunk in [] if uses_kernels(dtype) else _token_chunks(tokens, w1, dtype):
        chunk_tokens = tokens[chunk]
        gelu_out = chunk_tokens.new_empty(len(chunk_tokens), len(w1), dtype=dtype)
        product(chunk_tokens, w1, b1, dtype, out=hidden[chunk] if save_for_backward else None, gelu_out=gelu_out)
        chunk_branch_out = product(gelu_out, w2, b2, dtype, out=branch_out[chunk] if save_for_backward else None)
        kernels.add_normalised(chunk_tokens, chunk_branch_out, *norm, buffers[chunk])
    if index is not None:
        out.copy_(x)[index] = sums
    return out, hidden, branch_out


def _empty_mlp_gradients(
    grad: Tensor, x: Tensor, hidden: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    wants_x, wants_fc1, wants_fc2 = rest[-2]
    channels, wide, dtype = x.shape[3], hidden.shape[1], precise(x.dtype)
    return (
        x.new_empty(x.shape if wants_x else (0,)),
        x.new_empty(wide if wants_fc1 else 0, channels, dtype=dtype),
        x.new_empty(wide, dtype=dtype),
        x.new_empty(channels if wants_fc2 else 0, wide, dtype=dtype),
        x.new_empty(3, channels, dtype=dtype),
    )


@custom_op(_empty_mlp_gradients)
@without_autocast
def mlp_branch_backward(
    grad: Tensor,
    x: Tensor,
    hidden: Tensor,
    branch_out: Tensor,
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
        grad: The gradient of the sum.
        x, w1, w2, norm_weight, eps, keep_mask, factor, dtype: The arguments of `mlp_branch`.
        hidden, branch_out: Its results, without the sum.
        wants: Whether to compute the gradients of x, w1 and w2. A gradient that is not wanted is empty.

    Returns:
        The gradients of x, w1, b1 and w2; and, as one tensor (3, C), of the norm's weight, the norm's bias and b2. All
        but the first are in fp32 at least.
    """
    grad_x, *sums = gradients = _empty_mlp_gradients(grad, x, hidden, wants, dtype)
    index = _kept_images(keep_mask)
    images, grads = _take(x, index), _take(grad, index)
    grad_images = grad_x if index is None and wants[0] else torch.empty_like(images) if wants[0] else None
    tokens, grads = images.flatten(0, 2), grads.flatten(0, 2)
    grad_tokens = None if grad_images is None else grad_images.flatten(0, 2)
    norm = (norm_weight, norm_weight, eps, factor)
    if uses_kernels(dtype):
        (grad_w1, grad_b1, grad_w2, grad_epilogue), count = sums, len(tokens)
        wanted = [each if is_wanted else None for each, is_wanted in zip((grad_w1, grad_w2), wants[1:], strict=True)]
        to = blocks.Gradients(grad_tokens, wanted[0], grad_b1, wanted[1], grad_epilogue)
        blocks.mlp_backward(grads, tokens, hidden[:count], branch_out[:count], w1, w2, norm, to)
    else:
        _mlp_backward_by_torch(grads, tokens, hidden, branch_out, w1, w2, norm, wants, dtype, grad_tokens, sums)
    if index is not None and grad_images is not None:
        grad_x.copy_(grad)[index] = grad_images
    return gradients


def _mlp_backward_by_torch(
    grads: Tensor,
    tokens: Tensor,
    hidden: Tensor,
    branch_out: Tensor,
    w1: Tensor,
    w2: Tensor,
    norm: Norm,
    wants: Sequence[bool],
    dtype: torch.dtype,
    grad_tokens: Tensor | None,
    sums: Sequence[Tensor],
) -> None:
    """`blocks.mlp_backward` with matrix products by torch; writes the gradient of x to `grad_tokens` and the other
    gradients to `sums`."""
    grad_w1, grad_b1, grad_w2, grad_epilogue = (each.zero_() for each in sums)
    (norm_weight, _, eps, factor), bias, epilogue = norm, grad_b1.double(), grad_epilogue.double()
    for chunk in _token_chunks(tokens, w1, dtype):
        chunk_grad, gelu_in = grads[chunk], hidden[chunk]
        grad_branch_out = chunk_grad.new_empty(chunk_grad.shape, dtype=dtype)
        kernels.add_normalised_backward(
            chunk_grad, branch_out[chunk], norm_weight, eps, factor, grad_branch_out, epilogue
        )
        grad_hidden, gelu_out = product(grad_branch_out, w2.T, None, dtype), grad_branch_out.new_empty(gelu_in.shape)
        kernels.gelu_backward(gelu_in, grad_hidden, gelu_out, grad_hidden, bias)
        if wants[2]:
            add_transposed_product(grad_w2, grad_branch_out, gelu_out, dtype)
        if wants[1]:
            add_transposed_product(grad_w1, grad_hidden, tokens[chunk], dtype)
        if grad_tokens is not None:
            product(grad_hidden, w1.T, None, dtype, base=chunk_grad, out=grad_tokens[chunk])
    grad_b1.copy_(bias)
    grad_epilogue.copy_(epilogue)


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
        x, hidden, branch_out, w1, w2, norm_weight, keep_mask = ctx.saved_tensors
        eps, factor, dtype = ctx.rest
        asked = ctx.needs_input_grad
        wants = [asked[0], asked[1], asked[3]]
        arguments = (grad, x, hidden, branch_out, w1, w2, norm_weight, eps, keep_mask, factor, wants, dtype)
        grad_x, grad_w1, grad_b1, grad_w2, epilogue = mlp_branch_backward(*arguments)
        gradients = [grad_x, grad_w1, grad_b1, grad_w2, epilogue[2], epilogue[0], epilogue[1]]
        return *_as_asked(gradients, asked, ctx.dtypes), *[None] * 4


def _dtypes(*arguments: Any) -> list[torch.dtype | None]:
    return [argument.dtype if isinstance(argument, Tensor) else None for argument in arguments]


def _as_asked(
    gradients: Sequence[Tensor], asked: Sequence[bool], dtypes: Sequence[torch.dtype | None]
) -> list[Tensor | None]:
    """Gradients in the dtypes of the tensors; None if a gradient was not requested."""
    triples = zip(gradients, asked, dtypes, strict=False)
    return [_in_dtype(gradient, dtype) if wanted else None for gradient, wanted, dtype in triples]


def _in_dtype(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    # Faster than `to`, even if `to` changes nothing.
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _kept_images(keep_mask: Tensor | None) -> Tensor | None:
    """Indices of the images in the keep mask; None for all images."""
    return None if keep_mask is None or keep_mask.all() else keep_mask.nonzero().flatten()


def _take(images: Tensor, index: Tensor | None) -> Tensor:
    """Selects images, contiguous in memory. (torch's indexing alone keeps the layout.)"""
    return (images if index is None else images[index]).contiguous()


def _as_vectors(bias: Tensor | None, heads: int) -> Tensor | None:
    """The value of a padding token (a token of zeros) for each head: the bias."""
    return None if bias is None else bias.view(heads, -1)


def _as_vectors_of(plan: WindowPlan, tokens: Tensor, heads: int) -> Tensor:
    """Tokens (N, C) as a map of vectors (B, H, W, heads, head_dim)."""
    return tokens.unflatten(0, (-1, *plan.grid)).unflatten(-1, (heads, -1))


def _image_chunks(images: Tensor, dtype: torch.dtype) -> list[slice]:
    """Chunks of images whose queries, keys, values, attended map and branch output fit the cache."""
    return chunks(len(images), 5 * math.prod(images.shape[1:]) * dtype.itemsize)


def _token_chunks(tokens: Tensor, w1: Tensor, dtype: torch.dtype) -> list[slice]:
    return chunks(len(tokens), 2 * len(w1) * dtype.itemsize, SMALLEST_CHUNK)
