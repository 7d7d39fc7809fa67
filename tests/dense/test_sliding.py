"""Windows that slide over an image give the numbers of a written-out reference, in bounded memory."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput

import peers
from swinv2 import Swinv2Backbone, Swinv2Config
from swinv2.dense import add_head
from swinv2.dense.sliding import segment, sliding_bands, window_starts
from swinv2.errors import UsageError

CLASSES = 5


class Segmenter(nn.Module):
    """Scores that depend on the place in the window, so that each window gives others; in half the size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, CLASSES, 7, stride=2, padding=3)
        self.eval()

    def forward(self, images: Tensor) -> ModelOutput:
        return ModelOutput(logits=self.layer(images) + torch.linspace(0, 1, -(-images.shape[3] // 2)))


def reference(model: nn.Module, image: Tensor, window: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """mmsegmentation's loop, written out: sum of the logits of all windows, divided by their number."""
    _, height, width = image.shape
    total, count = torch.zeros(CLASSES, height, width), torch.zeros(height, width)
    for row, column in itertools.product(
        range(max(height - window[0] + stride[0] - 1, 0) // stride[0] + 1),
        range(max(width - window[1] + stride[1] - 1, 0) // stride[1] + 1),
    ):
        bottom, right = min(row * stride[0] + window[0], height), min(column * stride[1] + window[1], width)
        top, left = max(bottom - window[0], 0), max(right - window[1], 0)
        logits = model(image[None, :, top:bottom, left:right]).logits
        total[:, top:bottom, left:right] += F.interpolate(logits, (bottom - top, right - left), mode="bilinear")[0]
        count[top:bottom, left:right] += 1
    return total / count


@pytest.mark.parametrize("stride", [(20, 20), (32, 24), (7, 11)])
@pytest.mark.parametrize("size", [(100, 70), (32, 24), (20, 200), (33, 25)])
def test_windows_are_those_of_the_reference(size: tuple[int, int], stride: tuple[int, int]) -> None:
    model, image, window = Segmenter(), peers.images(size)[0], (32, 24)
    with torch.no_grad():
        expected = reference(model, image, window, stride)
        score = lambda images: F.interpolate(model(images).logits, images.shape[2:], mode="bilinear")  # noqa: E731
        bands = list(sliding_bands(score, image, window, stride))
    assert [first for first, _ in bands] == window_starts(size[0], 32, stride[0])
    assert (torch.cat([band for _, band in bands], 1) - expected).abs().max() < 1e-5
    found = segment(model, image, window, stride)
    assert found.dtype == torch.uint8
    assert torch.equal(found.long(), expected.argmax(0))


def test_a_window_of_the_whole_image_is_the_whole_image() -> None:
    model, image = Segmenter(), peers.images((50, 70))[0]
    whole = segment(model, image)
    assert torch.equal(whole, segment(model, image, (50, 70)))
    assert torch.equal(whole, segment(model, image, 200, 100))
    assert not torch.equal(whole, segment(model, image, 32))


@pytest.mark.parametrize("window", [None, 32])
def test_several_sizes_and_mirror_images(window: int | None) -> None:
    model, image = Segmenter(), peers.images((60, 44))[0]
    total = torch.zeros(CLASSES, 60, 44)
    with torch.no_grad():
        for scale, is_mirrored in itertools.product((0.5, 1.0, 1.5), (False, True)):
            size = round(60 * scale), round(44 * scale)
            view = image if scale == 1 else F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
            view = view.flip(2) if is_mirrored else view
            sides = (window, window) if window else size
            logits = reference(model, view, sides, tuple(side * 2 // 3 for side in sides) if window else size)
            logits = logits.flip(2) if is_mirrored else logits
            total += F.interpolate(logits[None], (60, 44), mode="bilinear")[0].softmax(0)
    found = segment(model, image, window, scales=(0.5, 1.0, 1.5), flip=True)
    assert (found.long() == total.argmax(0)).float().mean() > 0.999


def test_memory_does_not_grow_with_the_height() -> None:
    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Any:
            return ModelOutput(logits=images.new_ones(1, 150, 1, 1) * torch.arange(150.0).view(1, -1, 1, 1))

    shapes: list[int] = []
    for _, band in sliding_bands(
        lambda images: Constant()(images).logits.expand(-1, -1, *images.shape[2:]),
        torch.zeros(1, 1, 1).expand(3, 4000, 64),
        (64, 64),
        (48, 48),
    ):
        shapes.append(band.shape[1])
    assert sum(shapes) == 4000
    assert max(shapes) == 64
    assert (segment(Constant().eval(), torch.zeros(3, 500, 64), 64) == 149).all()


@pytest.mark.parametrize("head", ["upernet", "mask2former"])
def test_segmenters_of_transformers(head: str, registered: None) -> None:
    config = Swinv2Config(
        image_size=64, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    fields = {"hidden_size": 8, "auxiliary_channels": 4}
    if head == "mask2former":
        fields = {"hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32, "num_attention_heads": 2}
    model = peers.draw_weights(add_head(Swinv2Backbone(config), head, ["a", "b", "c"], **fields)).eval()
    image = peers.images((64, 96))[0]
    found = segment(model, image)
    assert found.shape == (64, 96)
    if head == "upernet":
        expected = model(image[None]).logits[0].argmax(0)
    else:
        from transformers import Mask2FormerImageProcessor

        with torch.no_grad():
            outputs = model(image[None])
        expected = Mask2FormerImageProcessor().post_process_semantic_segmentation(outputs, [(64, 96)])[0]
    # transformers' post-processing goes by way of 384 x 384 pixels.
    assert (found.long() == expected).float().mean() > (0.999 if head == "upernet" else 0.95)
    assert segment(model, image, 48).shape == (64, 96)


def test_what_is_impossible() -> None:
    model, image = Segmenter(), torch.zeros(3, 40, 40)
    with pytest.raises(UsageError, match=r"the stride is \(20, 20\); expected 1 to the window, \(16, 16\)"):
        segment(model, image, 16, 20)
    for window, stride, sentence in (
        (16, 0, "stride is 0"),
        (-1, None, "window is -1"),
        (None, 8, "the stride is 8, but no window is given that could slide"),
    ):
        with pytest.raises(UsageError, match=sentence):
            segment(model, image, window, stride)
    for wrong in (image.numpy(), image[None], image.to(torch.uint8)):
        with pytest.raises(UsageError, match=r"the image is .*; expected a normalised tensor of floats"):
            segment(model, wrong)
    with pytest.raises(UsageError, match=r"the image is torch\.float64 on cpu, the model torch\.float32 on cpu; make"):
        segment(model, image.double())
    with pytest.raises(UsageError, match=r"the scales are \[0\]; expected at least one, each above 0"):
        segment(model, image, scales=[0])
    with pytest.raises(UsageError, match=r"Segmenter is in training mode; call its eval\(\) first"):
        segment(Segmenter().train(), image)
    with pytest.raises(UsageError, match="Lambda is no segmenter: it has neither logits"):
        segment(
            type("Lambda", (nn.Module,), {"forward": lambda self, images: ModelOutput(boxes=images)})().eval(), image
        )
