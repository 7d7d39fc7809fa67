"""The Swin Transformer V2 block: two residual branches, each normalised after its work.

In and out: a map (B, H, W, C).

Source: Liu et al., Swin Transformer V2, section 3.2 (res-post-norm) and figure 1; section 3.6 for the extra norm.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from swinv2.config import StageSpec, Swinv2Config, is_exact_gelu, is_pointwise
from swinv2.layers.attention import Attention, CosineWindowAttention, Projection, WindowGeometry
from swinv2.layers.linear import is_plain, is_unwatched, project_and_activate
from swinv2.layers.position import ContinuousPositionBias, PreciseLinear
from swinv2.ops.cpu.mlp import feed_forward, gelu_feed_forward
from swinv2.ops.cpu.opaque import is_compiled
from swinv2.ops.cpu.pieces import SMALLEST_PIECE, add_in_pieces, can_run, is_plain_call
from swinv2.ops.dispatch import EAGER, TRITON, refuse_machine
from swinv2.ops.precision import precise


class DropPath(nn.Module):
    """Stochastic depth: in training, drops the whole branch of a sample and scales up the others.

    Args:
        rate: Probability of dropping, from 0 to less than 1.

    Source: Huang et al., arXiv 1603.09382.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Float[Tensor, "B *rest"]) -> Float[Tensor, "B *rest"]:
        if not self.drops:
            return branch
        return branch * self.factors(branch).view(-1, *(1,) * (branch.ndim - 1)).to(branch.dtype)

    def factors(self, samples: Float[Tensor, "B *rest"]) -> Float[Tensor, " B"]:
        """What each sample's branch is multiplied by: drawn anew at each call."""
        return self._draw(samples).to(precise(samples.dtype)).div(1 - self.rate)

    @property
    def drops(self) -> bool:
        """Whether anything is dropped, now."""
        return self.training and self.rate > 0

    def _draw(self, samples: Tensor) -> Tensor:
        return torch.rand(len(samples), device=samples.device) < 1 - self.rate

    def add(self, x: Float[Tensor, "B *rest"], branch: Callable[[Tensor], Tensor]) -> Float[Tensor, "B *rest"]:
        """x + self(branch(x)) with the same draws, without computing the branch of what is dropped.

        Args:
            x: The main branch.
            branch: Works on each sample by itself.
        """
        kept = self._draw(x)
        some = kept.nonzero().flatten()
        # If nothing is kept, one sample is computed and added zero times: every parameter needs a gradient.
        scale = 1 / (1 - self.rate) if len(some) else 0.0
        some = some if len(some) else torch.zeros(1, dtype=torch.long, device=x.device)
        everything = len(some) == len(x)
        computed = branch(x if everything else x.index_select(0, some))
        if everything:
            return torch.add(x, computed, alpha=scale)
        dtype = torch.promote_types(x.dtype, computed.dtype)
        return x.to(dtype).index_add(0, some, computed.to(dtype), alpha=scale)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class Intermediate(nn.Module):
    """The first half of the MLP; a module of its own because the checkpoints call it `intermediate.dense`."""

    def __init__(self, in_features: int, out_features: int, activation: nn.Module) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, out_features)
        self.activation = activation

    def forward(self, features: Tensor) -> Tensor:
        return project_and_activate(features, self.dense, self.activation)


class PostNorm(nn.LayerNorm):
    """The norm that ends a residual branch: a layer norm whose fresh weight and bias are zero, so that a fresh block is
    the identity. A class of its own because initialisation asks each module what it is.
    """


class SwinTransformerBlock(nn.Module):
    """One block. In the checkpoints' names `layernorm_before` normalises the attention branch and `layernorm_after`
    the MLP branch: both come after their branch's work, whatever the first one's name says.

    Args:
        config: The model's configuration.
        spec: The stage the block belongs to.
        index: Position in the stage; every second block is shifted.
    """

    def __init__(self, config: Swinv2Config, spec: StageSpec, index: int) -> None:
        super().__init__()
        self.hidden_features = int(config.mlp_ratio * spec.dim)
        geometry = block_geometry(config, spec, index)
        self.attention = Attention(
            spec.dim, spec.num_heads, geometry, config.qkv_bias, config.attention_probs_dropout_prob
        )
        self.layernorm_before = PostNorm(spec.dim, eps=config.layer_norm_eps)
        self.drop_path = DropPath(spec.drop_path_rates[index])
        self.intermediate = Intermediate(spec.dim, self.hidden_features, config.make_activation())
        self.output = Projection(self.hidden_features, spec.dim, config.hidden_dropout_prob)
        self.layernorm_after = PostNorm(spec.dim, eps=config.layer_norm_eps)
        self.layernorm_extra = (
            nn.LayerNorm(spec.dim, eps=config.layer_norm_eps) if spec.extra_norms[index] else nn.Identity()
        )
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Any] | None = None

    def forward(
        self, feature_map: Float[Tensor, "B H W C"], backend: str, chunk_size: int | None = None
    ) -> tuple[Float[Tensor, "B H W C"], Float[Tensor, "N heads tokens tokens"] | None]:
        """Runs the block, recomputing it in the backward pass if gradient checkpointing is on.

        Args:
            feature_map: The map.
            backend: Form of the attention that runs.
            chunk_size: Windows that attend at a time; see `CosineWindowAttention.forward`.

        Returns:
            The map, and the attention weights if the form has them.
        """
        if self.gradient_checkpointing and self.training and self._gradient_checkpointing_func is not None:
            return self._gradient_checkpointing_func(self._residual_branches, feature_map, backend, chunk_size)
        return self._residual_branches(feature_map, backend, chunk_size)

    def _residual_branches(self, x: Tensor, backend: str, chunk_size: int | None) -> tuple[Tensor, Tensor | None]:
        bias_table = self.attention.bias_table(x.device, backend)

        def attend(images: Tensor) -> Tensor:
            return self._attention_branch(images, bias_table, backend, chunk_size)[0]

        def transform(tokens: Tensor) -> Tensor:
            return self._mlp_branch(tokens, backend)

        weights = None
        if self._may_add_in_one_kernel(x, backend):
            x = self._add_in_one_kernel(x, self.attention(x, bias_table, backend, chunk_size)[0], self.layernorm_before)
            x = self._add_in_one_kernel(x, self._mlp(x, backend), self.layernorm_after)
        elif self._may_run_in_pieces(x, backend):
            batch, *grid, channels = x.shape
            token_bytes = x.element_size() * max(3 * channels, self.hidden_features)
            x = add_in_pieces(x, attend, token_bytes * math.prod(grid))
            x = add_in_pieces(x.flatten(0, 2), transform, token_bytes, SMALLEST_PIECE).view(batch, *grid, channels)
        elif self._may_leave_out_dropped(x, backend):
            x = self.drop_path.add(x, attend)
            x = self.drop_path.add(x, transform)
        else:
            branch, weights = self._attention_branch(x, bias_table, backend, chunk_size)
            x = x + self.drop_path(branch)
            x = x + self.drop_path(transform(x))
        return self.layernorm_extra(x), weights

    def _attention_branch(
        self, x: Tensor, bias_table: Tensor, backend: str, chunk_size: int | None
    ) -> tuple[Tensor, Tensor | None]:
        if self._may_attend_in_one_operation(x, backend):
            return self.layernorm_before(self.attention.as_one_operation(x, bias_table)), None
        attended, weights = self.attention(x, bias_table, backend, chunk_size)
        return self.layernorm_before(attended), weights

    def _mlp_branch(self, x: Tensor, backend: str) -> Tensor:
        return self.layernorm_after(self._mlp(x, backend))

    def _mlp(self, x: Tensor, backend: str) -> Tensor:
        if self._may_transform_in_pieces(x, backend):
            widen, narrow = ((layer.weight, layer.bias) for layer in (self.intermediate.dense, self.output.dense))
            if is_compiled(x):
                return self.output.dropout(gelu_feed_forward(x, widen, narrow))
            return self.output.dropout(feed_forward(x, widen, self.intermediate.activation, narrow))
        return self.output(self.intermediate(x))

    def _add_in_one_kernel(self, x: Tensor, work: Tensor, norm: nn.LayerNorm) -> Tensor:
        # Triton is there on few machines, and takes a second to import.
        from swinv2.ops.triton.residual import add_normalised

        factors = self.drop_path.factors(x) if self.drop_path.drops else None
        return add_normalised(x, work, norm.weight, norm.bias, norm.eps, factors)

    def _may_transform_in_pieces(self, x: Tensor, backend: str) -> bool:
        """Whether nobody can tell that the wide features exist for a few tokens at a time. In eager mode without
        gradients the whole branch runs in pieces."""
        compiled = is_compiled(x) and is_exact_gelu(self.intermediate.activation)
        return (
            backend != EAGER
            and (compiled or (torch.is_grad_enabled() and can_run(x)))
            and are_as_built(self.intermediate, self.output)
        )

    def _may_attend_in_one_operation(self, x: Tensor, backend: str) -> bool:
        """Whether the attention branch is one operation for a compiler: without gradients."""
        return (
            backend != EAGER
            and is_compiled(x)
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not any(module.training for module in self.attention.modules())
            and are_as_built(self.attention)
        )

    def _may_leave_out_dropped(self, x: Tensor, backend: str) -> bool:
        """Whether nobody can tell that the branches are not computed for the samples that drop path drops."""
        return (
            backend != EAGER
            and type(self.drop_path) is DropPath
            and self.drop_path.drops
            and can_run(x)
            and are_as_built(*self.children())
        )

    def _may_add_in_one_kernel(self, x: Tensor, backend: str) -> bool:
        """Whether norm, drop path and sum may be one kernel: on a machine for the attention's kernels, in eager mode,
        and nobody sees what lies between."""
        return (
            backend == TRITON
            and not x.is_meta
            and refuse_machine(x.device) is None
            and is_plain_call(x)
            and type(self.drop_path) is DropPath
            and all(
                type(norm) is PostNorm
                and all(type(p) is nn.Parameter and p.device == x.device for p in norm.parameters())
                for norm in (self.layernorm_before, self.layernorm_after)
            )
            and are_as_built(self.layernorm_before, self.layernorm_after, self.drop_path)
        )

    def _may_run_in_pieces(self, x: Tensor, backend: str) -> bool:
        """Whether nobody can tell that the branches are computed for a few images, and a few tokens, at a time."""
        return (
            backend != EAGER
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and can_run(x)
            and not any(module.training for module in self.modules())
            and are_as_built(*self.children())
        )


BUILT_OF = frozenset(
    {
        *(Attention, CosineWindowAttention, ContinuousPositionBias, PreciseLinear, Projection, Intermediate),
        *(PostNorm, DropPath, nn.LayerNorm, nn.Dropout, nn.Identity),
    }
)
"""What a block consists of, beside plain linear layers and the activation."""


def are_as_built(*parts: nn.Module) -> bool:
    """Whether parts of a block, and all their parts, are what this file made them: not replaced and not watched."""
    return all(
        is_plain(module) or ((type(module) in BUILT_OF or is_pointwise(module)) and is_unwatched(module))
        for part in parts
        for module in part.modules()
    )


def block_geometry(config: Swinv2Config, spec: StageSpec, index: int) -> WindowGeometry:
    """The windows of a stage's block: shifted in every second one."""
    shift = spec.shift if index % 2 else (0, 0)
    return WindowGeometry(spec.window, shift, spec.pretrained_window, config.mask_padding)
