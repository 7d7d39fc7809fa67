"""UperNet answers as transformers', with fewer multiplications."""

import copy
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.upernet import modeling_upernet

import peers
from scenes import SMALL, SMALL_HEADS
from swinv2 import Swinv2Backbone, Swinv2Config
from swinv2.dense import add_head
from swinv2.dense.heads import STAGES
from swinv2.dense.resized import convolve_resized, resize
from swinv2.dense.upernet import UperNetHead

LABELS = ["road", "sky", "tree"]

pytestmark = pytest.mark.usefixtures("registered")


def expected_of(conv: nn.Conv2d, maps: list[Tensor]) -> Tensor:
    """The convolution of the resized and concatenated maps."""
    return conv(torch.cat([resize(each, maps[0].shape[2:]) for each in maps], 1))


def draw_maps(sizes: list[tuple[int, int]], is_channels_last: bool = False) -> tuple[nn.Conv2d, list[Tensor]]:
    """A convolution to 40 channels in fp64, and maps of 3, 4, 5, ... channels of these sizes."""
    torch.manual_seed(0)
    conv = nn.Conv2d(sum(3 + index for index in range(len(sizes))), 40, 3, padding=1).double()
    maps = [torch.randn(2, 3 + index, *size, dtype=torch.float64) for index, size in enumerate(sizes)]
    memory_format = torch.channels_last if is_channels_last else torch.contiguous_format
    return conv, [each.contiguous(memory_format=memory_format).requires_grad_() for each in maps]


size_of_map = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(size_of_map, min_size=1, max_size=4), is_channels_last=st.booleans())
def test_a_convolution_of_resized_maps(sizes: list[tuple[int, int]], is_channels_last: bool) -> None:
    """Smaller, larger and equal maps, and their gradients."""
    conv, maps = draw_maps(sizes, is_channels_last)
    found, expected = convolve_resized(conv, maps), expected_of(conv, maps)
    assert (found - expected).abs().max() < 1e-12
    wanted = torch.randn(expected.shape, dtype=torch.float64)
    learning = [*maps, *conv.parameters()]
    both = (torch.autograd.grad(answer, learning, wanted) for answer in (found, expected))
    for one, other in zip(*both, strict=True):
        assert (one - other).abs().max() < 1e-11


def operations(sizes: list[tuple[int, int]], channels: int) -> tuple[int, int]:
    """Those of a convolution of maps of these sizes, and those after the maps are resized."""
    conv = nn.Conv2d(channels * len(sizes), channels, 3, padding=1)
    maps = [torch.randn(1, channels, *size) for size in sizes]
    counts: list[int] = []
    for function in (convolve_resized, expected_of):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            function(conv, maps)
        counts.append(counter.get_total_flops())
    return counts[0], counts[1]


def test_it_takes_fewer_multiplications() -> None:
    """For maps of four stages. Without the matrices that resize, a third would be left."""
    ours, theirs = operations([(64, 64), (32, 32), (16, 16), (8, 8)], 256)
    assert 0.33 < ours / theirs < 0.38


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4), st.integers(1, 80))
def test_it_never_takes_more_multiplications(sizes: list[tuple[int, int]], channels: int) -> None:
    ours, theirs = operations(sizes, channels)
    assert ours <= theirs


def pair() -> tuple[nn.Module, nn.Module]:
    """Our UperNet and transformers', with the same weights and the same backbone."""
    torch.manual_seed(0)
    fields: dict[str, Any] = {**SMALL, "out_features": list(STAGES), "drop_path_rate": 0.0}
    backbone = Swinv2Backbone(Swinv2Config(**fields))
    peers.draw_weights(backbone, 1)
    ours: Any = add_head(backbone, "upernet", LABELS, **SMALL_HEADS["upernet"])
    theirs: Any = transformers.UperNetForSemanticSegmentation(copy.deepcopy(ours.config))
    theirs.load_state_dict(ours.state_dict())
    assert type(ours.decode_head) is UperNetHead
    assert type(theirs.decode_head) is modeling_upernet.UperNetHead
    return ours.eval(), theirs.eval()


def answers(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).logits


def test_half_precision() -> None:
    """Rounded to 16 bits it is as near to the answer in fp32 as transformers' is."""
    ours, theirs = pair()
    images = peers.images((64, 96), count=2)
    exact = answers(theirs, images)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (peers.difference(answers(model, images).float(), exact) for model in (ours, theirs))
    assert found < 1.5 * expected


def watch(model: Any) -> list[Any]:
    """Notes the calls of the convolution that is computed in parts."""
    calls: list[Any] = []
    model.decode_head.fpn_bottleneck.conv.register_forward_hook(lambda *call: calls.append(call))
    return calls


def watch_both(model: Any) -> list[Any]:
    """Notes the calls of the whole block, and those of the one in the pooling."""
    calls: list[Any] = []
    model.decode_head.fpn_bottleneck.register_forward_hook(lambda *call: calls.append(call))
    model.decode_head.bottleneck.register_forward_hook(lambda *call: calls.append(call))
    return calls


@pytest.mark.parametrize("watcher", [watch, watch_both])
def test_hooks_are_called(watcher: Callable[[Any], list[Any]]) -> None:
    """Grad-CAM, for example, reads the maps that go through a module."""
    ours, theirs = pair()
    images = peers.images((64, 96))
    expected = answers(theirs, images)
    found = [watcher(model) for model in (ours, theirs)]
    assert peers.difference(answers(ours, images), expected) < 1e-5
    answers(theirs, images)
    assert len(found[0]) == len(found[1]) > 0


# peft asks transformers by an old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_lora_on_the_convolution() -> None:
    ours, theirs = pair()
    images = peers.images((64, 96))
    before = answers(ours, images)
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["fpn_bottleneck.conv", "bottleneck.conv"], init_lora_weights=False)
    adapted = peft.get_peft_model(theirs, config)  # type: ignore[arg-type]
    ours_adapted = peft.get_peft_model(ours, copy.deepcopy(config))  # type: ignore[arg-type]
    ours_adapted.load_state_dict(adapted.state_dict())
    found = answers(ours_adapted, images)
    assert peers.difference(found, answers(adapted, images)) < 1e-5
    assert peers.difference(found, before) > 1e-3


@pytest.mark.parametrize("has_labels", [False, True])
@pytest.mark.parametrize("is_training", [False, True])
def test_outputs(has_labels: bool, is_training: bool) -> None:
    """Everything that transformers' model returns, and the same statistics of its batch norms."""
    models = [model.train(is_training) for model in pair()]
    images = peers.images((64, 96), count=2)
    labels = {"labels": torch.arange(2 * 64 * 96).reshape(2, 64, 96) // 100 % 3} if has_labels else {}
    found, expected = (
        model(images, output_hidden_states=True, output_attentions=True, **labels).to_tuple() for model in models
    )
    # The loss, the logits, and of the stages the maps and the attention.
    assert len(found) == len(expected) == 3 + has_labels
    flat = [[*answer[:-2], *answer[-2], *answer[-1]] for answer in (found, expected)]
    for one, other in zip(*flat, strict=True):
        assert torch.allclose(one, other, atol=1e-5, rtol=1e-5)
    for one, other in zip(*(model.buffers() for model in models), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    tuples = [model(images, return_dict=False, output_attentions=True) for model in models]
    assert peers.difference(tuples[0][0], tuples[1][0]) < 1e-5
    # transformers leaves them out.
    assert [len(each) for each in tuples] == [2, 1]


def test_an_answer_alone_needs_no_auxiliary_head() -> None:
    ours: Any = pair()[0]
    ours.auxiliary_head = None
    images = peers.images((64, 96))
    assert peers.difference(answers(ours, images), answers(pair()[0], images)) == 0


def test_blocks_of_another_kind_are_called() -> None:
    ours: Any = pair()[0]
    ours.decode_head.bottleneck = nn.Conv2d(ours.decode_head.bottleneck.conv.in_channels, 16, 1)
    ours.decode_head.fpn_bottleneck = nn.Sequential(ours.decode_head.fpn_bottleneck)
    assert answers(ours, peers.images((64, 96))).shape == (2, 3, 64, 96)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits(dtype: torch.dtype) -> None:
    ours, theirs = pair()
    images = peers.images((64, 96), count=2)
    exact = answers(theirs, images)
    found, expected = (answers(model.to(dtype), images.to(dtype)).float() for model in (ours, theirs))
    assert peers.difference(found, exact) < 1.5 * peers.difference(expected, exact) + 1e-3
