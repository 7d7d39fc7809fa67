"""Graphs of a model: torch.export, ONNX, torch.jit, OpenVINO. With and without gradients, in every backend, run with
another number of images than they were made with.

What is in a graph depends on the model alone, not on the mode, on how images lie in memory, or on how many there are.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import peers
from swinv2 import Swinv2Config, Swinv2ForImageClassification

# What torch and the converters do themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.parametrize("backend", [pytest.param("eager", marks=pytest.mark.slow), "sdpa"]),
]
with_both_modes = pytest.mark.parametrize(
    "is_recording",
    [pytest.param(True, id="gradients"), pytest.param(False, id="no_gradients", marks=pytest.mark.slow)],
)


def build(backend: str) -> Any:
    """Shifted windows, padding of the image and of windows, and a merging of an odd map."""
    torch.manual_seed(0)
    config = Swinv2Config(image_size=27, embed_dim=8, depths=[2, 1], num_heads=[1, 2], window_size=4, num_labels=3)
    return peers.draw_weights(Swinv2ForImageClassification._from_config(config, attn_implementation=backend)).eval()


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 27, 26, generator=torch.Generator().manual_seed(count))


def logits(model: Any, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model(pixels).logits


def operations(model: Any, pixels: Tensor) -> Counter[str]:
    exported = torch.export.export(model, (pixels,)).run_decompositions({})
    return Counter(str(node.target) for node in exported.graph.nodes if node.op == "call_function")


def test_one_graph_whatever_the_mode_and_the_images(backend: str) -> None:
    model, found = build(backend), {}
    ways = [(True, 2, torch.contiguous_format), (False, 2, torch.contiguous_format), (True, 1, torch.contiguous_format)]
    for is_recording, count, layout in [*ways, (True, 2, torch.channels_last)]:
        with torch.set_grad_enabled(is_recording):
            pixels = images(count).contiguous(memory_format=layout)
            found[is_recording, count, layout] = operations(model, pixels)
    first = next(iter(found.values()))
    for way, counted in found.items():
        assert counted == first, (way, counted - first, first - counted)
    assert not any("swinv2" in name for name in first)


@with_both_modes
def test_export_and_another_number_of_images(backend: str, is_recording: bool) -> None:
    model, batch = build(backend), torch.export.Dim("batch", min=1, max=64)
    with torch.set_grad_enabled(is_recording):
        exported = torch.export.export(model, (images(2),), dynamic_shapes=({0: batch},)).run_decompositions({})
    for count in (1, 3):
        answer = exported.module()(images(count)).logits
        torch.testing.assert_close(answer, logits(model, images(count)), rtol=1e-4, atol=1e-5)


@with_both_modes
def test_onnx_and_another_number_of_images(backend: str, is_recording: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, batch, file = build(backend), torch.export.Dim("batch", min=1, max=64), str(tmp_path / "model.onnx")
    with torch.set_grad_enabled(is_recording):
        torch.onnx.export(model, (images(2),), file, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    session = runtime.InferenceSession(file)
    for count in (1, 3):
        (answer,) = session.run(None, {session.get_inputs()[0].name: images(count).numpy()})
        torch.testing.assert_close(torch.from_numpy(answer), logits(model, images(count)), rtol=1e-4, atol=1e-5)


@with_both_modes
def test_a_trace_by_torch_jit_is_checked(backend: str, is_recording: bool) -> None:
    """torch traces twice and compares: the second way is the first. The graph runs where gradients are the other."""
    model = build(backend)
    with torch.set_grad_enabled(is_recording):
        expected = model(images(2)).logits  # whatever is remembered is remembered now
        traced = torch.jit.trace(model, images(2), strict=False)
    with torch.set_grad_enabled(not is_recording):
        torch.testing.assert_close(traced(images(2))["logits"], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(images(2)).logits, expected, rtol=1e-4, atol=1e-5)


@with_both_modes
@pytest.mark.parametrize("size", [(27, 26), (32, 32)], ids=["padded", "whole"])
def test_openvino_and_another_number_of_images(size: tuple[int, int], backend: str, is_recording: bool) -> None:
    openvino = pytest.importorskip("openvino")
    model, (two, three) = build(backend), (torch.randn(count, 3, *size) for count in (2, 3))
    with torch.set_grad_enabled(is_recording):
        converted = openvino.convert_model(model, example_input=two)
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answer = torch.from_numpy(compiled(three.numpy())[0])
    torch.testing.assert_close(answer, logits(model, three), rtol=1e-4, atol=1e-4)
