"""Stages: blocks at one resolution, and the merging that leads to the next; and all stages in a row.

In: the embedded map (B, H, W, C). Out: the map of every stage, before and after its merging. What callers want to see
of a map lies on the way to the next: a gradient with respect to it is that of the answer.
"""

from jaxtyping import Float
from torch import Tensor, nn

from swinv2.config import StageSpec, Swinv2Config
from swinv2.layers.block import SwinTransformerBlock, block_geometry
from swinv2.layers.fusion import fusible, remember_structure
from swinv2.layers.patches import PatchMerging


def as_states(feature_map: Float[Tensor, "B H W C"], wanted: bool) -> tuple[Tensor, ...]:
    """A map as tokens (B, H * W, C) and with its channels first (B, C, H, W) if they are wanted, and the map that must
    take its place: each is a view of the one before."""
    if not wanted:
        return (feature_map,)
    tokens = feature_map.flatten(1, 2)
    channels_first = tokens.transpose(1, 2).unflatten(2, feature_map.shape[1:3])
    return tokens, channels_first, channels_first.permute(0, 2, 3, 1)


def stage_attentions(outputs: tuple[tuple[Tensor, ...], ...], with_states: bool) -> tuple[Tensor, ...]:
    """The attention weights that the stages returned, one tensor for each stage that has a block."""
    return tuple(weights for stage in outputs for weights in stage[6 if with_states else 2 :])


class Stage(nn.Module):
    """Blocks at one resolution, shifted in turns, and patch merging.

    Args:
        config: The model's configuration.
        spec: This stage's sizes.
    """

    def __init__(self, config: Swinv2Config, spec: StageSpec) -> None:
        super().__init__()
        depth = len(spec.drop_path_rates)
        self.blocks = nn.ModuleList(SwinTransformerBlock(config, spec, index) for index in range(depth))
        self.downsample = PatchMerging(spec) if spec.merges else None
        remember_structure(self)

    def forward(
        self,
        x: Float[Tensor, "B H W C"],
        backend: str,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> tuple[Tensor, ...]:
        """Runs the stage.

        Args:
            x: The map.
            backend, output_attentions: See `SwinTransformerBlock.forward`.
            output_hidden_states: Whether to return both maps as tokens and with their channels first too.

        Returns:
            The map after the blocks, which a head for dense prediction takes; the map that enters the next stage, which
            in the last stage is the same; if they are wanted, tokens and channels-first map of the one and of the
            other, as `as_states` makes them; and, if they are wanted and there is a block, the attention weights of the
            last block.
        """
        weights: list[Tensor] = []
        if output_attentions:
            for block in self.blocks:
                x, *weights = block(x, backend, True)
        else:
            x = self.run_blocks(x, backend)
        *before, x = as_states(x, output_hidden_states)
        if self.downsample is None:
            return x, x, *before, *before, *weights
        *after, merged = as_states(self.downsample(x, backend), output_hidden_states)
        return x, merged, *before, *after, *weights

    @fusible
    def run_blocks(self, x: Tensor, backend: str) -> Tensor:
        """The blocks, one after another."""
        for block in self.blocks:
            x = block(x, backend)
        return x


class Encoder(nn.Module):
    """All stages, one after another.

    Args:
        config: The model's configuration.
    """

    def __init__(self, config: Swinv2Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Stage(config, spec) for spec in config.stages())

    def forward(
        self,
        x: Float[Tensor, "B H W C"],
        backend: str,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> tuple[tuple[Tensor, ...], ...]:
        """Runs all stages; see `Stage.forward`."""
        outputs: tuple[tuple[Tensor, ...], ...] = ()
        for stage in self.layers:
            outputs += (stage(x, backend, output_attentions, output_hidden_states),)
            x = outputs[-1][1]
        return outputs

    def replan(self, config: Swinv2Config) -> None:
        """Gives every block the windows of a configuration that differs in image size or window only."""
        for stage, spec in zip(self.layers, config.stages(), strict=True):
            blocks = [module for module in stage.modules() if isinstance(module, SwinTransformerBlock)]
            for index, block in enumerate(blocks):
                block.attention.self.geometry = block_geometry(config, spec, index)
