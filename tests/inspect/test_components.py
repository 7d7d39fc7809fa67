"""Principal components: the right ones, with the same signs every time."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from swinv2.inspect.components import as_colours, draw_components, principal_components


def known_map() -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """A map made of three directions, with their scores."""
    random = np.random.default_rng(0)
    directions = np.linalg.qr(random.normal(size=(10, 3)))[0].T
    directions *= np.sign(directions[np.arange(3), np.abs(directions).argmax(1)])[:, None]
    scores = random.normal(size=(30, 3))
    # Of mean 0 and at right angles to each other, with spreads of their own.
    scores = np.linalg.qr(scores - scores.mean(0))[0] * np.array([5.0, 2.0, 1.0])
    tokens = scores @ directions + 7.0
    return torch.from_numpy(tokens).view(5, 6, 10), scores.reshape(5, 6, 3), directions


def test_known_components_are_found() -> None:
    feature_map, scores, _ = known_map()
    found = principal_components(feature_map)
    np.testing.assert_allclose(found.scores, scores, atol=1e-10)
    np.testing.assert_allclose(found.shares, np.array([25, 4, 1]) / 30, atol=1e-10)
    assert found.channels == 10


def test_signs_do_not_depend_on_chance() -> None:
    """The map of a rotated image has the same colours at the same tokens; a shift of all tokens changes nothing."""
    feature_map, _, _ = known_map()
    once = principal_components(feature_map).scores
    turned = principal_components(feature_map.flip(0, 1)).scores
    np.testing.assert_allclose(turned[::-1, ::-1], once, atol=1e-9)
    np.testing.assert_allclose(principal_components(feature_map + 3.0).scores, once, atol=1e-9)
    np.testing.assert_allclose(
        principal_components(feature_map.transpose(0, 1)).scores, once.transpose(1, 0, 2), atol=1e-9
    )


def test_maps_with_fewer_components_than_colours() -> None:
    one = principal_components(torch.ones(1, 1, 8))
    assert (one.scores == 0).all()
    assert (one.shares == 0).all()
    assert (as_colours(one.scores) == 0.5).all()
    two = principal_components(torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]))
    assert two.shares[0] == 1
    assert two.scores.shape == (1, 2, 3)


def test_colours_span_the_middle_of_the_scores() -> None:
    scores = np.zeros((10, 10, 3))
    scores[..., 0] = np.arange(100).reshape(10, 10)
    scores[..., 1] = -scores[..., 0]
    colours = as_colours(scores)
    assert colours.min() == 0
    assert colours.max() == 1
    np.testing.assert_allclose(colours[..., 0] + colours[..., 1], 1.0, atol=1e-12)
    assert (colours[..., 2] == 0.5).all()


def test_figures_of_wide_and_odd_maps(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    maps = {"stem": principal_components(torch.randn(5, 9, 4, generator=random))}
    maps["stage1"] = principal_components(torch.randn(3, 5, 4, generator=random))
    rgb = np.zeros((19, 35, 3), np.uint8)
    draw_components(maps, rgb, {"stem": (4, 4), "stage1": (8, 8)}, tmp_path / "features.png", "title")
    with Image.open(tmp_path / "features.png") as image:
        assert image.size > (300, 300)
