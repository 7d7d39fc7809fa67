"""The Swin Transformer V2 block: two residual branches, each normalised after its work.

In and out: a map (B, H, W, C).

Source: Liu et al., Swin Transformer V2, section 3.2 (res-post-norm) and figure 1; section 3.6 for the extra norm.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from swinv2.config import StageSpec, Swinv2Config, is_exact_gelu
from swinv2.layers.attention import Attention, CosineWindowAttention, Projection, WindowGeometry
from swinv2.layers.linear import is_plain, is_unwatched, project
from swinv2.ops.cpu import library
from swinv2.ops.cpu.branches import Ending, add_attention, add_mlp
from swinv2.ops.cpu.opaque import is_compiled
from swinv2.ops.cpu.pieces import can_run, is_plain_call
from swinv2.ops.dispatch import SDPA, TRITON, refuse_machine
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
        return self.keeps(samples).to(precise(samples.dtype)).mul(self.factor)

    def keeps(self, samples: Float[Tensor, "B *rest"]) -> Bool[Tensor, " B"]:
        """Which samples' branches are not dropped: drawn anew at each call."""
        return torch.rand(len(samples), device=samples.device) < 1 - self.rate

    @property
    def factor(self) -> float:
        """What the branches that are not dropped are multiplied by."""
        return 1 / (1 - self.rate) if self.drops else 1.0

    @property
    def drops(self) -> bool:
        """Whether anything is dropped, now."""
        return self.training and self.rate > 0

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class Intermediate(nn.Module):
    """The first half of the MLP; a module of its own because the checkpoints call it `intermediate.dense`."""

    def __init__(self, in_features: int, out_features: int, activation: nn.Module) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, out_features)
        self.activation = activation

    def forward(self, features: Tensor) -> Tensor:
        return self.activation(project(features, self.dense)[0])


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
        self._channels = spec.dim
        self._built = {name: _make_up(part.modules()) for name, part in self.named_children()}
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
        x, weights = self._add_attention(x, backend, chunk_size)
        return self.layernorm_extra(self._add_mlp(x, backend)), weights

    def _add_attention(self, x: Tensor, backend: str, chunk_size: int | None) -> tuple[Tensor, Tensor | None]:
        attention = self.attention.self
        bias_table = self.attention.bias_table(x.device, backend)
        if self._may_be_one_function(x, backend, "attention", "layernorm_before", "drop_path"):
            qkv = [(layer.weight, layer.bias) for layer in (attention.query, attention.key, attention.value)]
            last, plan = self.attention.output.dense, attention.geometry.plan((x.shape[1], x.shape[2]))
            end = self._ending(x, self.layernorm_before)
            return add_attention(x, qkv, (last.weight, last.bias), bias_table, attention.scale(), plan, end), None
        attended, weights = self.attention(x, bias_table, backend, chunk_size)
        return self._add(x, attended, self.layernorm_before, backend), weights

    def _add_mlp(self, x: Tensor, backend: str) -> Tensor:
        parts = ("intermediate", "output", "layernorm_after", "drop_path")
        if self._may_be_one_function(x, backend, *parts) and is_exact_gelu(self.intermediate.activation):
            widen, narrow = ((layer.weight, layer.bias) for layer in (self.intermediate.dense, self.output.dense))
            return add_mlp(x, widen, narrow, self._ending(x, self.layernorm_after))
        return self._add(x, self.output(self.intermediate(x)), self.layernorm_after, backend)

    def _add(self, x: Tensor, work: Tensor, norm: nn.Module, backend: str) -> Tensor:
        if isinstance(norm, nn.LayerNorm) and self._may_add_in_one_kernel(x, norm, backend):
            # Triton is there on few machines, and takes a second to import.
            from swinv2.ops.triton.residual import add_normalised

            factors = self.drop_path.factors(x) if self.drop_path.drops else None
            return add_normalised(x, work, norm.weight, norm.bias, norm.eps, factors)
        return x + self.drop_path(norm(work))

    def _ending(self, x: Tensor, norm: nn.LayerNorm) -> Ending:
        kept = self.drop_path.keeps(x) if self.drop_path.drops else None
        return Ending(norm.weight, norm.bias, norm.eps, kept, self.drop_path.factor)

    def _may_be_one_function(self, x: Tensor, backend: str, *names: str) -> bool:
        """Whether a residual branch may be computed as a whole on a CPU, with its compiled kernels: nobody can tell
        that its parts are not called."""
        if backend != SDPA or not (can_run(x) or is_compiled(x)):
            return False
        parts = {name: list(self.get_submodule(name).modules()) for name in names}
        modules = [module for part in parts.values() for module in part]
        weights = [module.weight for module in modules if type(module) is nn.Linear]
        return (
            x.dtype in library.TYPES
            and library.refuse() is None
            and x.shape[-1] == self._channels
            and all(_make_up(part) == self._built[name] for name, part in parts.items())
            and all(is_plain(module) or (type(module) is not nn.Linear and is_unwatched(module)) for module in modules)
            and all(p is None or p.device.type == "cpu" for module in modules for p in module._parameters.values())
            # Otherwise torch refuses to multiply them.
            and (torch.is_autocast_enabled("cpu") or all(weight.dtype == x.dtype for weight in weights))
            and not any(_drops(module) for module in modules)
        )

    def _may_add_in_one_kernel(self, x: Tensor, norm: nn.LayerNorm, backend: str) -> bool:
        """Whether norm, drop path and sum may be one kernel: on a machine for the attention's kernels, in eager mode,
        and nobody sees what lies between."""
        return (
            backend == TRITON
            and not x.is_meta
            and refuse_machine(x.device) is None
            and is_plain_call(x)
            and type(self.drop_path) is DropPath
            and type(norm) is PostNorm
            and all(type(p) is nn.Parameter and p.device == x.device for p in norm.parameters())
            and is_unwatched(norm)
            and is_unwatched(self.drop_path)
        )


def _drops(module: nn.Module) -> bool:
    """Whether a module drops numbers or attention weights, now."""
    if isinstance(module, nn.Dropout):
        return module.training and module.p > 0
    return isinstance(module, CosineWindowAttention) and module.training and module.dropout > 0


def _make_up(modules: Iterable[nn.Module]) -> list[Any]:
    """Types of modules and shapes of their weights: what a part was built of, or what somebody has made of it."""
    return [(type(module), [None if p is None else p.shape for p in module._parameters.values()]) for module in modules]


def block_geometry(config: Swinv2Config, spec: StageSpec, index: int) -> WindowGeometry:
    """The windows of a stage's block: shifted in every second one."""
    shift = spec.shift if index % 2 else (0, 0)
    return WindowGeometry(spec.window, shift, spec.pretrained_window, config.mask_padding)
