"""The sizes of a stage, as accounts of a model show them."""

from swinv2 import Swinv2Config
from swinv2.stages import StageSizes, sizes_of


def test_the_sizes_of_each_stage() -> None:
    """Axis by axis; a window that covers its map has no shift there."""
    config = Swinv2Config(
        image_size=(32, 64),
        embed_dim=16,
        depths=[1, 3],
        num_heads=[2, 4],
        window_size=(4, 8),
        pretrained_window_sizes=[0, 0],
    )
    first, second = (StageSizes(**sizes_of(spec)) for spec in config.stages())
    assert first == StageSizes(name="stage1", blocks=1, channels=16, heads=2, grid=(8, 16), window=(4, 8), shift=(2, 4))
    assert second == StageSizes(name="stage2", blocks=3, channels=32, heads=4, grid=(4, 8), window=(4, 8), shift=(0, 0))
