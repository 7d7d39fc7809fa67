"""Tables from sizes, to the bit, and windows from tables."""

from pathlib import Path

import pytest
import torch

import foreign
import swinv2
from conversions import WIDE, save, torchvision_network
from swinv2 import Swinv2Config
from swinv2.config import StageSpec
from swinv2.convert.dialects.rules import Buffer
from swinv2.convert.hints import SizeHints
from swinv2.convert.tables import make_table, read_tables
from swinv2.errors import UsageError


def stage_of(window: int, pretrained: int) -> StageSpec:
    """The first of two; its map is 16 tokens wide."""
    config = Swinv2Config(
        image_size=64,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=window,
        pretrained_window_sizes=[pretrained] * 2,
    )
    return config.stages()[0]


@pytest.mark.parametrize(("window", "pretrained"), [(4, 0), (4, 3), (8, 12), (16, 0)])
def test_tables_are_those_of_the_authors(window: int, pretrained: int) -> None:
    """Against plain loops; a block that is not shifted has no mask."""
    stage = stage_of(window, pretrained)
    assert torch.equal(make_table("coordinates", stage, 0), foreign.coordinates(window, pretrained))
    assert torch.equal(make_table("pairs", stage, 1), foreign.pairs(window))
    assert make_table("regions", stage, 0) is None
    mask = make_table("regions", stage, 1)
    assert mask is None if window == 16 else torch.equal(mask, foreign.regions(16, window, window // 2))


@pytest.mark.parametrize(("window", "pretrained"), [((4, 4), (3, 3)), ((4, 8), (12, 6)), ((24, 24), (12, 12))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_windows_are_read_back(window: tuple[int, int], pretrained: tuple[int, int], dtype: torch.dtype) -> None:
    """Both windows from a table of coordinates, in any type."""
    config = Swinv2Config(
        image_size=256,
        embed_dim=16,
        depths=[1],
        num_heads=[2],
        window_size=window,
        pretrained_window_sizes=[pretrained],
    )
    table = make_table("coordinates", config.stages()[0], 0)
    buffers = [Buffer("table", "coordinates", 0, 0, table.to(dtype))]
    assert read_tables(buffers, 1, (4, 4)) == SizeHints(None, [window], [pretrained])
    # A stage without a table leaves all open.
    assert read_tables(buffers, 2, (4, 4)) == SizeHints()


@pytest.mark.parametrize("image_size", [(64, 64), (128, 64), (64, 192)], ids=str)
def test_the_image_size_is_read_from_the_mask_of_a_shifted_block(image_size: tuple[int, int]) -> None:
    """Rows and columns of windows, from the regions in them; in the second stage, whose map is half as large."""
    config = Swinv2Config(image_size=image_size, embed_dim=16, depths=[1, 2], num_heads=[2, 4], window_size=4)
    stages = config.stages()
    buffers = [
        Buffer(f"{stage}.{block}.{kind}", kind, stage, block, table)
        for stage, block in ((0, 0), (1, 0), (1, 1))
        for kind in ("coordinates", "regions")
        if (table := make_table(kind, stages[stage], block)) is not None
    ]
    expected = 64 if image_size == (64, 64) else [*image_size]
    assert read_tables(buffers, 2, (4, 4)) == SizeHints(expected, [(4, 4), (4, 4)], [0, 0])


def test_a_table_of_pairs_shows_no_window(tmp_path: Path) -> None:
    """A row and a column of tokens have the same pairs, so the window is asked for; with coordinates it is read."""
    network = torchvision_network((1, 8))
    file = network.state_dict()
    source = save(file, tmp_path / "weights.pth")
    assert swinv2.load(source, trained_image_size=WIDE).config.window_size == [1, 8]
    pairs = {name: tensor for name, tensor in file.items() if not name.endswith("relative_coords_table")}
    source = save(pairs, tmp_path / "pairs.pth")
    with pytest.raises(UsageError, match="give --trained-window-size"):
        swinv2.load(source, trained_image_size=WIDE)
    assert swinv2.load(source, trained_image_size=WIDE, trained_window_size=(1, 8)).config.window_size == [1, 8]
