"""Amplitudes: the numbers of hooks set here, and of variances by definition."""

import json
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from swinv2 import Swinv2Config, Swinv2Model
from swinv2.inspect import amplitudes
from swinv2.inspect.amplitudes import Amplitude, Amplitudes, Variance, draw_amplitudes
from swinv2.inspect.observation import blocks_of, observe


def make_model(**fields: object) -> Swinv2Model:
    torch.manual_seed(0)
    size = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2, 3], "num_heads": [1, 2], "window_size": 4}
    config = Swinv2Config(**{**size, **fields})
    config._attn_implementation = "eager"
    model = Swinv2Model(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def channel_variance(maps: list[torch.Tensor]) -> float:
    tokens = torch.cat([feature_map.flatten(0, 2) for feature_map in maps]).double()
    return float(tokens.var(0, unbiased=False).mean())


def test_variance_is_that_of_all_maps_together() -> None:
    maps = [torch.randn(2, 3, size, 5) + 4 for size in (3, 7)]
    variance = Variance()
    for feature_map in maps:
        variance.add(feature_map)
    assert variance.value() == pytest.approx(channel_variance(maps), rel=1e-12)


def test_amplitudes_are_those_of_independent_hooks() -> None:
    """Hooks on the blocks and on the norms that end their branches, in the form that one uses otherwise."""
    model = make_model(extra_norm_period=2)
    images = [torch.randn(1, 3, 32, 32), torch.randn(1, 3, 30, 42)]
    found = Amplitudes()
    for image in images:
        found.add(observe(model, image))
    measured = found.measured()
    assert not any(module._forward_hooks for module in model.modules())

    seen: dict[tuple[int, int, str], list[torch.Tensor]] = {}
    for stage, number, block in blocks_of(model):
        parts = {"main": block, "attention": block.layernorm_before, "mlp": block.layernorm_after}
        for name, part in parts.items():
            kept = seen.setdefault((stage, number, name), [])
            part.register_forward_hook(
                lambda module, inputs, output, kept=kept: kept.append(
                    output[0] if isinstance(output, tuple) else output
                )
            )
    with torch.no_grad():
        for image in images:
            model(image)
    assert [(each.stage, each.block) for each in measured] == [(0, 0), (1, 1), (1, 2), (2, 1), (2, 2), (2, 3)]
    assert measured[0].attention is None
    for each in measured[1:]:
        for name in ("main", "attention", "mlp"):
            expected = channel_variance(seen[each.stage, each.block, name])
            assert getattr(each, name) == pytest.approx(expected, rel=1e-5)


def test_a_block_adds_its_branches() -> None:
    seen = observe(make_model(), torch.randn(2, 3, 32, 32))
    before = seen.embedded
    for trace in seen.blocks[:2]:
        torch.testing.assert_close(before + trace.attention + trace.mlp, trace.after)
        before = trace.after
    assert set(seen.stage_maps()) == {"stem", "stage1", "stage2"}
    assert [(each.stage, each.block, each.plan.shift) for each in seen.attentions] == [(1, 2, (2, 2)), (2, 3, (0, 0))]
    assert seen.attentions[0].weights.shape == (2 * 16, 1, 16, 16)


def drawn_lines(monkeypatch: pytest.MonkeyPatch, *arguments: object, **options: object) -> tuple[Figure, list]:
    figures: list[Figure] = []
    save = amplitudes.save
    monkeypatch.setattr(amplitudes, "save", lambda figure, path: (figures.append(figure), save(figure, path)))
    draw_amplitudes(*arguments, **options)
    return figures[0], figures[0].axes[0].lines


def test_points_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = [Amplitude(0, 0, 0.5, None, None), Amplitude(1, 1, 2.0, 0.0, 0.25), Amplitude(2, 1, 10.0, 3.0, 4.0)]
    figure, lines = drawn_lines(monkeypatch, {"model": measured}, tmp_path / "a.png", "a $title")
    axes = figure.axes[0]
    curves = {line.get_label(): line.get_xydata().tolist() for line in lines if not line.get_label().startswith("_")}
    assert curves == {
        "map after the block": [[0, 0.5], [1, 2.0], [2, 10.0]],
        # A branch that adds nothing has no place on a logarithmic axis.
        "added by attention": [[2, 3.0]],
        "added by MLP": [[1, 0.25], [2, 4.0]],
    }
    assert axes.get_yscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["patches", "1.1", "2.1"]
    assert [text.get_text() for text in axes.texts] == ["stage 1", "stage 2"]
    monkeypatch.undo()
    _, lines = drawn_lines(monkeypatch, {"a": measured, "b": measured}, tmp_path / "b.png", "title", has_branches=False)
    assert [line.get_label() for line in lines][:2] == ["a", "b"]
    assert json.dumps([each.position for each in measured]) == '["patches", "1.1", "2.1"]'
