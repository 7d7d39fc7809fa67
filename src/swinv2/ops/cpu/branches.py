"""The two residual branches of a block on a CPU, with their gradients.

In: a map (B, *grid, C) and the weights of a branch. Out: the map plus the branch's normalised output,
x + factor * norm(last(middle(first(x)))).

    branch       first                                middle       last
    attention    query, key and value layers          attention    output projection
    MLP          first linear layer                   GELU         second linear layer

The C kernels compute a whole branch (`blocks.py`), or torch computes the products, if it is faster (`by_torch.py`). In
both, intermediate results stay in the cache, and only the tensors saved for backward are written to memory. Second
derivatives are not supported: for them, load the model with attn_implementation="eager".

Under torch.compile, each function with the decorator `custom_op` is one operation of the graph.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from swinv2.ops.cpu import blocks, by_torch
from swinv2.ops.cpu.arguments import Norm, Weights
from swinv2.ops.cpu.linear import uses_kernels
from swinv2.ops.custom_op import custom_op
from swinv2.ops.precision import precise, without_autocast
from swinv2.ops.windows import WindowPlan

NO_WINDOWS = WindowPlan((1, 1), (1, 1))
"""The plan of an MLP, which does not use it."""


class Epilogue(NamedTuple):
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
    """The attention branch, with gradients: x + factor * norm(out_proj(attention(q(x), k(x), v(x)))).

    Args:
        x: The map (B, *grid, C).
        qkv: The linear layers of queries, keys and values; the key layer has no bias.
        out_proj: The output projection.
        bias_table, scale, plan: See `reference.window_attention`.
        epilogue: The norm and the drop path.
    """
    return _add_branch(_AddAttention, x, (*qkv, out_proj), bias_table, scale, plan, epilogue)


def add_mlp(x: Tensor, fc1: Weights, fc2: Weights, epilogue: Epilogue) -> Tensor:
    """The MLP branch, with gradients: x + factor * norm(fc2(GELU(fc1(x)))).

    Args:
        x: The map (B, *grid, C).
        fc1, fc2: The two linear layers.
        epilogue: The norm and the drop path.
    """
    return _add_branch(_AddMlp, x, (fc1, fc2), None, None, NO_WINDOWS, epilogue)


def _add_branch(
    function: Any,
    x: Tensor,
    layers: Sequence[Weights],
    bias_table: Tensor | None,
    scale: Tensor | None,
    plan: WindowPlan,
    epilogue: Epilogue,
) -> Tensor:
    """Calls the branch's autograd function, or `branch` itself if no gradients are needed."""
    weights, biases = [weight for weight, _ in layers], [bias for _, bias in layers]
    # The tensors saved for backward have the dtype of autocast, if it is on.
    uses_autocast = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64
    dtype = torch.get_autocast_dtype("cpu") if uses_autocast else x.dtype
    rest: list[Any] = [bias_table, scale, *epilogue, dtype, plan]
    arguments = (x, *weights, *biases, *rest)
    if torch.is_grad_enabled() and any(isinstance(each, Tensor) and each.requires_grad for each in arguments):
        return function.apply(*arguments)
    rest.append(False)
    return branch(x, weights, biases, *rest)[0]


class _AddBranch(torch.autograd.Function):
    """The gradients of x, weights, biases, bias table, scale, and of weight and bias of the norm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *arguments: Any) -> Tensor:
        """Runs `branch`, and saves its tensors for the backward pass."""
        *layers, bias_table, scale, norm_weight, _, ctx.eps, keep_mask, ctx.factor, _, ctx.plan = arguments
        count = len(layers) // 2
        weights, biases = layers[:count], layers[count:]
        rest: list[Any] = [*arguments[2 * count :], True]
        out, *saved = branch(x, weights, biases, *rest)
        value_bias = None if bias_table is None else biases[2]
        ctx.save_for_backward(x, *saved, value_bias, biases[-1], bias_table, scale, norm_weight, keep_mask, *weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        saved, (*attention, norm_weight, keep_mask), weights = tensors[:3], tensors[3:9], tensors[9:]
        needs, last = ctx.needs_input_grad, len(weights)
        wants = [needs[0], any(needs[1:last]), needs[last], needs[2 * last + 1]]
        rest: list[Any] = [*attention, norm_weight, ctx.eps, keep_mask, ctx.factor, wants, ctx.plan]
        grad_x, in_proj, in_bias, out_proj, epilogue, *others = branch_backward(grad, x, saved, weights, *rest)
        norm_weight, norm_bias, out_bias = epilogue
        layers = (*in_proj.chunk(last - 1), out_proj, *in_bias.chunk(last - 1), out_bias)
        # Autograd converts them to the dtypes of the arguments.
        gradients = (grad_x, *layers, *others, norm_weight, norm_bias)
        found = [gradient if needed else None for gradient, needed in zip(gradients, needs, strict=False)]
        return *found, *[None] * (len(needs) - len(found))


class _AddAttention(_AddBranch):
    """The name of the attention branch in graphs and profiles."""


class _AddMlp(_AddBranch):
    """The name of the MLP branch in graphs and profiles."""


def _saves_norm_input(x: Tensor, weights: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether the norm's input of a branch is saved for backward, which needs it.

    That of an attention of a video in fp32 or fp64 is computed again, from the attended map: a block saves a twelfth
    less, for one more product where the linear layers of a training step have 36 of its size.
    """
    is_attention, is_video = len(weights) > 2, x.ndim == 5
    return not (is_attention and is_video and dtype.itemsize > 2)


def _empty_branch(x: Tensor, weights: Sequence[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For compiled graphs: the shapes of the results of `branch`."""
    dtype, _, save_for_backward = rest[-3:]  # the last arguments of `branch`
    batch, *grid, channels = x.shape
    batch = batch if save_for_backward else 0
    first = sum(weight.shape[0] for weight in weights[:-1])
    middle = channels if len(weights) > 2 else 0
    last = channels if _saves_norm_input(x, weights, dtype) else 0
    qkv_or_hidden, attended, branch_out = (
        x.new_empty(batch, *grid, features, dtype=dtype) for features in (first, middle, last)
    )
    return x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, dtype)), qkv_or_hidden, attended, branch_out


@custom_op(_empty_branch)
@without_autocast
def branch(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    bias_table: Tensor | None,
    scale: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    keep_mask: Tensor | None,
    factor: float,
    dtype: torch.dtype,
    plan: WindowPlan,
    save_for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`add_attention` without gradients; `add_mlp` if there is no bias table.

    Args:
        x, bias_table, scale, plan: See `add_attention`.
        weights, biases: Those of the first layers and of the last layer.
        norm_weight, norm_bias, eps, keep_mask, factor: See `Epilogue`.
        dtype: That of the tensors saved for backward.
        save_for_backward: Whether to return them.

    Returns:
        The sum; the output of the first layers (B, *grid, 3 C or hidden); the attended map (B, *grid, C), empty for an
        MLP; and the norm's input (B, *grid, C), empty unless `_saves_norm_input`. The last three have the kept images
        first, then undefined numbers. They are empty unless `save_for_backward`.
    """
    out, *saved = results = _empty_branch(x, weights, dtype, plan, save_for_backward)
    kept = _kept_images(keep_mask)
    images, sums, layers = _take_images(x, kept), _buffer_for_images(out, kept), list(zip(weights, biases, strict=True))
    norm: Norm = (norm_weight, norm_bias, eps, factor)
    buffers: list[Any] = [each[: len(images)] for each in saved] if save_for_backward else [None] * 3
    if not _saves_norm_input(x, weights, dtype):
        buffers[2] = None
    if not uses_kernels(dtype):
        by_torch.add_branch(images, layers, bias_table, scale, plan, norm, sums, dtype, buffers)
    elif bias_table is None or scale is None:
        blocks.add_mlp(images, layers[0], layers[1], norm, sums, buffers[0], buffers[2])
    else:
        blocks.add_attention(images, layers[:3], layers[3], bias_table, scale, plan, norm, sums, *buffers)
    if kept is not None:
        out.copy_(x)[kept] = sums
    return results


def _empty_branch_gradients(
    grad: Tensor, x: Tensor, saved: Sequence[Tensor], weights: Sequence[Tensor], *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """For compiled graphs: the shapes of the results of `branch_backward`."""
    # Of the arguments of `branch_backward`, those after the weights.
    bias_table, scale, (wants_x, wants_first, wants_last, wants_table) = rest[2], rest[3], rest[-2]
    channels, dtype, (last_in, first_out) = x.shape[-1], precise(x.dtype), (weights[-1].shape[1], saved[0].shape[-1])
    return (
        x.new_empty(x.shape if wants_x else (0,)),
        x.new_empty(first_out if wants_first else 0, channels, dtype=dtype),
        x.new_empty(first_out, dtype=dtype),
        x.new_empty(channels if wants_last else 0, last_in, dtype=dtype),
        x.new_empty(3, channels, dtype=dtype),
        x.new_empty(bias_table.shape if wants_table else (0,), dtype=dtype),
        x.new_empty((0,) if scale is None else scale.shape, dtype=dtype),
    )


@custom_op(_empty_branch_gradients)
@without_autocast
def branch_backward(
    grad: Tensor,
    x: Tensor,
    saved: Sequence[Tensor],
    weights: Sequence[Tensor],
    value_bias: Tensor | None,
    last_bias: Tensor | None,
    bias_table: Tensor | None,
    scale: Tensor | None,
    norm_weight: Tensor,
    eps: float,
    keep_mask: Tensor | None,
    factor: float,
    wants: Sequence[bool],
    plan: WindowPlan,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `branch`.

    Args:
        grad: The gradient of the sum.
        x, weights, bias_table, scale, norm_weight, eps, keep_mask, factor, plan: The arguments of `branch`.
        saved: Its results, without the sum.
        value_bias: The bias of the value layer; None for an MLP.
        last_bias: The bias of the last layer.
        wants: Whether to compute the gradients of x, of the first layers' weights, of the last layer's weight and of
            the bias table. A gradient that is not wanted is empty.

    Returns:
        The gradients of x; of the first layers' joined weight (3 C or hidden, C) and bias; of the last layer's weight;
        as one tensor (3, C), of the norm's weight, the norm's bias and the last layer's bias; of the bias table; and of
        the scale. All but the first are in fp32 at least.
    """
    before_wants = (value_bias, last_bias, bias_table, scale)
    gradients = _empty_branch_gradients(grad, x, saved, weights, *before_wants, wants, plan)
    kept = _kept_images(keep_mask)
    images, grads, grad_images = _take_images(x, kept), _take_images(grad, kept), _buffer_for_images(gradients[0], kept)
    # An empty tensor is not wanted: there are no images, the branch is an MLP, or nobody asked for it.
    wanted: list[Any] = [each if each.numel() else None for each in (grad_images, *gradients[1:])]
    first_out, middle_out, branch_out = (each[: len(images)] for each in saved)
    if not _saves_norm_input(x, weights, first_out.dtype):
        bias = None if last_bias is None else last_bias.to(middle_out.dtype)
        branch_out = F.linear(middle_out, weights[-1].to(middle_out.dtype), bias)
    saved = [first_out, middle_out, branch_out]
    # The norm's bias is not used.
    norm, to = (norm_weight, norm_weight, eps, factor), blocks.Gradients(*wanted)
    if not uses_kernels(saved[0].dtype):
        by_torch.branch_backward(grads, images, saved, weights, value_bias, bias_table, scale, plan, norm, to)
    elif bias_table is None or scale is None:
        blocks.mlp_backward(grads, images, saved[0], saved[2], weights[0], weights[1], norm, to)
    else:
        blocks.attention_backward(grads, images, saved, weights, value_bias, bias_table, scale, plan, norm, to)
    if kept is not None and wants[0]:
        gradients[0].copy_(grad)[kept] = grad_images
    return gradients


def _kept_images(keep_mask: Tensor | None) -> Tensor | None:
    """Indices of the images for which the branch is computed; None for all images."""
    return None if keep_mask is None or keep_mask.all() else keep_mask.nonzero().flatten()


def _take_images(images: Tensor, kept: Tensor | None) -> Tensor:
    """The kept images, contiguous in memory. (torch's indexing alone keeps the layout.)"""
    return (images if kept is None else images[kept]).contiguous()


def _buffer_for_images(out: Tensor, kept: Tensor | None) -> Tensor:
    """Memory for the kept images of `out`: `out` itself if all are kept, or if it is empty because nobody wants it."""
    return out if kept is None or not out.numel() else out.new_empty(len(kept), *out.shape[1:])
