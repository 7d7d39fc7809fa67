"""Padding, shift, windows, masks and merging against torchvision's Video Swin Transformer.

torchvision has the network of V1: norms before the branches, dot products, a table as position bias. Here is that
network with this package's geometry; where the answers agree, the geometry does.
"""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.video.swin_transformer import PatchMerging as TheirMerging
from torchvision.models.video.swin_transformer import SwinTransformer3d

from swinv2 import Swinv2VideoConfig
from swinv2.layers.patches import PatchMerging
from swinv2.ops import windows
from swinv2.ops.backends import EAGER
from swinv2.ops.coordinates import relative_coordinates
from swinv2.ops.reference import expand_bias
from swinv2.ops.windows import WindowPlan

SIZES: dict[str, Any] = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 3]}
WINDOW = (2, 3, 4)


def network() -> Any:
    """torchvision's network, small, with drawn weights."""
    torch.manual_seed(0)
    made = SwinTransformer3d([2, 4, 4], window_size=[*WINDOW], num_classes=3, **SIZES).double().eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def attend(block: Any, x: Tensor) -> Tensor:
    """torchvision's attention of V1, in windows of this package."""
    theirs, grid = block.attn, tuple(x.shape[1:-1])
    window = tuple(map(min, theirs.window_size, grid))
    shift = tuple(0 if length <= side else by for length, side, by in zip(grid, window, theirs.shift_size, strict=True))
    plan = WindowPlan(grid, window, shift)
    tiles = windows.partition(windows.shift(windows.pad(x, plan), plan), plan.window)
    query, key, value = theirs.qkv(tiles).unflatten(-1, (3, theirs.num_heads, -1)).permute(2, 0, 3, 1, 4)
    full = [2 * length - 1 for length in theirs.window_size]
    table = theirs.relative_position_bias_table.T.unflatten(1, full)
    # The relative positions of a smaller window are in the middle of the table.
    middle = [slice(all_ - own, all_ + own - 1) for all_, own in zip(theirs.window_size, window, strict=True)]
    logits = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5 + expand_bias(table[:, *middle], window)
    hidden = plan.hidden_pairs(x.device)
    if hidden is not None:
        logits = logits.unflatten(0, (-1, len(hidden))).masked_fill(hidden[:, None], float("-inf")).flatten(0, 1)
    attended = (logits.softmax(-1) @ value).transpose(1, 2).flatten(2)
    merged = windows.merge(theirs.proj(attended), plan.window, plan.padded_grid)
    return windows.crop(windows.unshift(merged, plan), plan)


def merge(theirs: Any, x: Tensor) -> Tensor:
    """torchvision's merging of V1, whose norm is before the linear layer, by the tokens that this package's joins."""
    config = Swinv2VideoConfig(num_frames=4, image_size=64, **SIZES)
    ours: Any = PatchMerging(config.stages()[0])
    ours.reduction, ours.norm = nn.Sequential(theirs.norm, theirs.reduction), nn.Identity()
    return ours(x, EAGER)


def answer(network: Any, videos: Tensor) -> Tensor:
    """torchvision's network with this package's geometry."""
    x = network.patch_embed(videos)
    for stage in network.features:
        if isinstance(stage, TheirMerging):
            x = merge(stage, x)
            continue
        for block in stage:
            x = x + attend(block, block.norm1(x))
            x = x + block.mlp(block.norm2(x))
    return network.head(network.norm(x).mean((1, 2, 3)))


@pytest.mark.parametrize(
    "size",
    [
        (4, 48, 64),  # whole windows
        (8, 44, 68),  # padding in space
        (4, 28, 36),  # maps of odd size
        (2, 48, 64),  # one window along time
    ],
    ids=str,
)
def test_the_geometry_is_torchvisions(size: tuple[int, int, int]) -> None:
    """Where no map is smaller than a window in height or width, and windows along time are full."""
    made, videos = network(), torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(answer(made, videos), made(videos), rtol=1e-9, atol=1e-9)


def test_torchvision_takes_wrong_biases_where_a_map_is_smaller_than_its_window() -> None:
    """It takes the first rows and columns of the matrix of a full window, which are other pairs of tokens."""
    made, videos = network(), torch.randn(1, 3, 4, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        assert (answer(made, videos) - made(videos)).abs().max() > 1e-3
        attention = made.features[2][0].attn if len(made.features) > 2 else made.features[0][0].attn
        small = (2, 2, 2)
        theirs = attention.get_relative_position_bias(small)[0]
        full = attention.get_relative_position_bias(list(WINDOW))[0]
        tokens = torch.arange(2 * 3 * 4).view(WINDOW)[:, :2, :2].flatten()
        right = full[:, tokens][:, :, tokens]
    wrong = (theirs != right).any(0).double().mean()
    assert wrong > 0.5


@pytest.mark.parametrize("small", [(2, 2, 2), (1, 3, 4), (2, 3, 1)], ids=str)
def test_a_smaller_window_has_the_biases_of_the_same_pairs(small: tuple[int, int, int]) -> None:
    """What is wrong there is right here: a pair's coordinates are those of its distance, in a window of any size."""
    tokens = torch.arange(2 * 3 * 4).view(WINDOW)[tuple(map(slice, small))].flatten()
    pairs = [expand_bias(relative_coordinates(window, WINDOW).movedim(-1, 0), window) for window in (WINDOW, small)]
    assert torch.equal(pairs[1], pairs[0][:, tokens][:, :, tokens])


def test_the_network_of_these_tests_is_torchvisions() -> None:
    """A copy of the answer with torchvision's own attention shows that only the geometry was replaced."""
    made, videos = network(), torch.randn(1, 3, 4, 48, 64, dtype=torch.float64)
    x = made.patch_embed(videos)
    block = copy.deepcopy(made.features[0][1])
    with torch.no_grad():
        expected = x + block.attn(block.norm1(x))
        expected = expected + block.mlp(block.norm2(expected))
        torch.testing.assert_close(expected, block(x))
        torch.testing.assert_close(x + attend(block, block.norm1(x)), x + block.attn(block.norm1(x)))
        assert F.mse_loss(x, expected) > 0
