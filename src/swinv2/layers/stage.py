"""Stages: blocks at one resolution, and the merging that leads to the next; and all stages in a row.

In: the embedded map (B, H, W, C). Out: the map of every stage, before and after its merging.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from swinv2.config import StageSpec, Swinv2Config
from swinv2.layers.block import SwinTransformerBlock, block_geometry
from swinv2.layers.patches import PatchMerging


@dataclass
class StageOutput:
    """What one stage leaves behind.

    Attributes:
        before_merging: The map after the blocks, what a dense-prediction head takes.
        after_merging: The map that enters the next stage; the same one in the last stage.
        attentions: Attention weights of the last block, if the form of attention has them.
    """

    before_merging: Float[Tensor, "B H W C"]
    after_merging: Float[Tensor, "B H2 W2 C2"]
    attentions: Float[Tensor, "N heads tokens tokens"] | None


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

    def forward(
        self, feature_map: Float[Tensor, "B H W C"], backend: str, chunk_size: int | None = None
    ) -> StageOutput:
        weights = None
        for block in self.blocks:
            feature_map, weights = block(feature_map, backend, chunk_size)
        merged = feature_map if self.downsample is None else self.downsample(feature_map)
        return StageOutput(feature_map, merged, weights)


class Encoder(nn.Module):
    """All stages, one after another.

    Args:
        config: The model's configuration.
    """

    def __init__(self, config: Swinv2Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Stage(config, spec) for spec in config.stages())

    def forward(
        self, feature_map: Float[Tensor, "B H W C"], backend: str, chunk_size: int | None = None
    ) -> list[StageOutput]:
        outputs = []
        for stage in self.layers:
            outputs.append(stage(feature_map, backend, chunk_size))
            feature_map = outputs[-1].after_merging
        return outputs

    def replan(self, config: Swinv2Config) -> None:
        """Gives every block the windows of a configuration that differs in image size or window only."""
        for stage, spec in zip(self.layers, config.stages(), strict=True):
            blocks = [module for module in stage.modules() if isinstance(module, SwinTransformerBlock)]
            for index, block in enumerate(blocks):
                block.attention.self.geometry = block_geometry(config, spec, index)
