"""The Swin Transformer V2 block: two residual branches with post-norm.

In and out: a map (B, *grid, C); the grid is (H, W) for images, and (frames, H, W) for videos.

Source: Liu et al., Swin Transformer V2, section 3.2 (res-post-norm) and figure 1; section 3.6 for the extra norm.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from swinv2.config import StageSpec, Swinv2Config
from swinv2.layers.attention import Attention, Projection, WindowGeometry
from swinv2.layers.fusion import fusible, remember_structure
from swinv2.ops.precision import precise


class DropPath(nn.Module):
    """Stochastic depth: in training, drops the branch for random samples and scales it up for the other samples.

    Args:
        rate: Probability of dropping, from 0 to less than 1.

    Source: Huang et al., arXiv 1603.09382.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Float[Tensor, "B *rest"]) -> Float[Tensor, "B *rest"]:
        """Multiplies the branch of each image by its factor, in training."""
        if not self.drops:
            return branch
        return branch * self.draw_factors(branch).view(-1, *(1,) * (branch.ndim - 1)).to(branch.dtype)

    def draw_factors(self, samples: Float[Tensor, "B *rest"]) -> Float[Tensor, " B"]:
        """Draws the factor of each sample's branch: 0 if it is dropped."""
        return self.draw_keep_mask(samples).to(precise(samples.dtype)).mul(self.kept_factor)

    def draw_keep_mask(self, samples: Float[Tensor, "B *rest"]) -> Bool[Tensor, " B"]:
        """Draws the keep mask: True for the samples whose branch is not dropped."""
        return torch.rand(len(samples), device=samples.device) < 1 - self.rate

    @property
    def kept_factor(self) -> float:
        """The factor of the branches that are not dropped."""
        return 1 / (1 - self.rate) if self.drops else 1.0

    @property
    def drops(self) -> bool:
        """Whether branches are dropped in the current mode."""
        return self.training and self.rate > 0

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class Intermediate(nn.Module):
    """The first half of the MLP; a separate module because the checkpoints call it `intermediate.dense`."""

    def __init__(self, in_features: int, out_features: int, activation: nn.Module) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, out_features)
        self.activation = activation

    def forward(self, features: Tensor) -> Tensor:
        """The first linear layer of the MLP, then the activation."""
        return self.activation(self.dense(features))


class PostNorm(nn.LayerNorm):
    """The norm at the end of a residual branch. Its initial weight and bias are zero, so a new block is the identity.

    It is a class of its own because initialisation depends on the class.
    """


class SwinTransformerBlock(GradientCheckpointingLayer):
    """One block. `layernorm_before` is the post-norm of the attention branch, despite its name in the checkpoints;
    `layernorm_after` is the post-norm of the MLP branch.

    Args:
        config: The model's configuration.
        spec: The sizes of the stage.
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
        remember_structure(self)

    def forward(
        self, x: Float[Tensor, "B *grid C"], backend: str, output_attentions: bool = False
    ) -> Float[Tensor, "B *grid C"] | tuple[Float[Tensor, "B *grid C"], Float[Tensor, "N heads tokens tokens"]]:
        """Runs the block.

        Args:
            x: The map.
            backend: A backend of `ops.backends`.
            output_attentions: Whether to return the attention weights too; only the backend "eager" has them.
        """
        x, *weights = self.attention_branch(x, backend, output_attentions)
        x = self.layernorm_extra(self.mlp_branch(x, backend))
        return (x, *weights) if output_attentions else x

    @fusible
    def attention_branch(self, x: Tensor, backend: str, output_attentions: bool) -> tuple[Tensor, ...]:
        """x + drop_path(norm(attention(x))), and the attention weights if `output_attentions`."""
        attended, *weights = self.attention(x, backend, output_attentions)
        return x + self.drop_path(self.layernorm_before(attended)), *weights

    @fusible
    def mlp_branch(self, x: Tensor, backend: str) -> Tensor:
        """x + drop_path(norm(mlp(x)))"""
        return x + self.drop_path(self.layernorm_after(self.output(self.intermediate(x))))


def block_geometry(config: Swinv2Config, spec: StageSpec, index: int) -> WindowGeometry:
    """The windows of block `index` of a stage; every second block is shifted."""
    shift = spec.shift if index % 2 else (0,) * len(spec.shift)
    return WindowGeometry(spec.window, shift, spec.pretrained_window, config.mask_padding)
