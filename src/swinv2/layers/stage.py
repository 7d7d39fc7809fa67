"""A stage (blocks at one resolution and the merging after them), and the encoder, which is all stages.

In: the embedded map (B, *grid, C); the grid is (H, W) for images, and (frames, H, W) for videos. Out: the map of every
stage, before and after its merging. Each map that callers get is also the input of the next layer, so the output has a
gradient with respect to it.
"""

from collections.abc import Iterable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from swinv2.config import StageSpec, Swinv2Config
from swinv2.layers.block import SwinTransformerBlock, block_geometry
from swinv2.layers.fusion import fusible, remember_structure
from swinv2.layers.patches import PatchMerging
from swinv2.layers.views import views_of


def stage_attentions(outputs: Iterable[tuple[Any, ...]]) -> tuple[Tensor, ...]:
    """The attention weights in the outputs of stages: one tensor for each stage that has a block."""
    return tuple(weights for _, _, *rest in outputs for weights in rest)


class Stage(nn.Module):
    """Blocks at one resolution, every second one shifted, and patch merging.

    Args:
        config: The model's configuration.
        spec: The sizes of this stage.
    """

    def __init__(self, config: Swinv2Config, spec: StageSpec) -> None:
        super().__init__()
        depth = len(spec.drop_path_rates)
        self.blocks = nn.ModuleList(SwinTransformerBlock(config, spec, index) for index in range(depth))
        self.downsample = PatchMerging(spec) if spec.merges else None
        remember_structure(self)

    @fusible
    def forward(self, x: Float[Tensor, "B *grid C"], backend: str, output_attentions: bool = False) -> tuple[Any, ...]:
        """Runs the stage.

        Args:
            x: The map.
            backend, output_attentions: See `SwinTransformerBlock.forward`.

        Returns:
            `Views` of the map after the blocks, for dense prediction; `Views` of the map after merging, for the next
            stage (the same map if there is no merging); and, if `output_attentions` and the stage has a block, the
            attention weights of the last block.
        """
        weights: list[Tensor] = []
        for block in self.blocks:
            if output_attentions:
                x, *weights = block(x, backend, True)
            else:
                x = block(x, backend)
        before = after = views_of(x)
        if self.downsample is not None:
            after = views_of(self.downsample(before.feature_map, backend))
        return before, after, *weights


class Encoder(nn.Module):
    """All stages.

    Args:
        config: The model's configuration.
    """

    def __init__(self, config: Swinv2Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Stage(config, spec) for spec in config.stages())

    def forward(
        self, x: Float[Tensor, "B *grid C"], backend: str, output_attentions: bool = False
    ) -> tuple[tuple[Any, ...], ...]:
        """Runs all stages; see `Stage.forward`."""
        outputs: list[tuple[Any, ...]] = []
        for stage in self.layers:
            outputs.append(stage(x, backend, output_attentions))
            x = outputs[-1][1].feature_map
        return tuple(outputs)

    def replan(self, config: Swinv2Config) -> None:
        """Gives every block the windows of a configuration that differs only in image size or window."""
        for stage, spec in zip(self.layers, config.stages(), strict=True):
            blocks = [module for module in stage.modules() if isinstance(module, SwinTransformerBlock)]
            for index, block in enumerate(blocks):
                block.attention.self.geometry = block_geometry(config, spec, index)
