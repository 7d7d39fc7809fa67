"""What tests of conversions share: files to convert, damage to them, and what holds of a conversion."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import peers
import swinv2
from swinv2.convert import convert
from swinv2.errors import UsageError
from swinv2.zoo import Checkpoint

TOLERANCE = 1e-5
"""Of an answer, in units of the distance between two images' answers."""

WIDE = (64, 128)
"""Pixels; maps of 16 x 32 and 8 x 16 tokens."""

NAMED = "swinv2_x_patch4_window4_64.pth"
"""A published name, which tells the sizes of the usual small file."""

File = dict[str, Tensor]
Damage = Callable[[File], object]


def save(tensors: Any, path: Path) -> str:
    torch.save(tensors, path)
    return str(path)


def check_tensors(ours: File, theirs: File) -> None:
    """The same names with the same numbers of the same type, to the bit."""
    assert sorted(ours) == sorted(theirs)
    differing = [
        name for name in ours if ours[name].dtype != theirs[name].dtype or not torch.equal(ours[name], theirs[name])
    ]
    assert differing == []


def check_answers(ours: nn.Module, theirs: Callable[[Tensor], Tensor], size: tuple[int, int] = (64, 64)) -> None:
    """The logits of both, within the tolerance."""
    pictures = peers.images(size)
    with torch.no_grad():
        assert peers.difference(ours(pictures).logits, theirs(pictures)) < TOLERANCE


def refused(source: Path | str, tmp_path: Path, **arguments: Any) -> str:
    """Converts, which is refused with one sentence or two, and leaves everything as it was."""
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(UsageError) as caught:
        convert(str(source), tmp_path / "out", **arguments)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith((".", ".)"))
    return sentence


def leave_out(name: str) -> Damage:
    return lambda file: file.pop(name)


def put(name: str, tensor: Tensor) -> Damage:
    return lambda file: file.__setitem__(name, tensor)


def fill(name: str, value: float) -> Damage:
    """The last number."""
    return lambda file: file[name].view(-1)[-1:].fill_(value)


def change(name: str, change: Callable[[Tensor], Tensor]) -> Damage:
    return lambda file: file.__setitem__(name, change(file[name]))


def timm_name(checkpoint: Checkpoint) -> str:
    """timm's name of the same weights, from the source that both name."""
    for name in timm.list_models("swinv2_*", pretrained=True):
        if timm.get_pretrained_cfg(name).url == checkpoint.source:
            return name
    raise AssertionError(checkpoint.source)


def torchvision_network(window: tuple[int, int]) -> nn.Module:
    """torchvision's own, with biases of keys that are zero, as those of trained networks."""
    network = peers.torchvision_model(
        embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=list(window), num_classes=5
    )
    for name, parameter in network.named_parameters():
        if name.endswith("qkv.bias"):
            parameter.data.view(3, -1)[1].zero_()
    return network


def model_with(
    window: Any, image_size: int | tuple[int, int] = 64, depths: Sequence[int] = (1, 1)
) -> swinv2.Swinv2ForImageClassification:
    """At 64 pixels its maps are 16 and 8 tokens wide, and 4 and 2."""
    heads = [2 << index for index in range(len(depths))]
    config = swinv2.Swinv2Config(
        embed_dim=16, depths=depths, num_heads=heads, image_size=image_size, window_size=window, num_labels=5,
        pretrained_window_sizes=[0] * len(depths),
    )  # fmt: skip
    return peers.draw_weights(swinv2.Swinv2ForImageClassification(config).eval())
