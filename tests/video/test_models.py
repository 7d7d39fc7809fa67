"""The network for videos: still clips against the image model, its parts, and transformers' conventions."""

from typing import Any

import pytest
import torch
from torch import Tensor

from swinv2 import (
    Swinv2Config,
    Swinv2ForImageClassification,
    inflate,
)

SIZES: dict[str, Any] = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 3], "num_labels": 5}


def image_model(seed: int = 0, **fields: Any) -> Swinv2ForImageClassification:
    """A small classifier whose every parameter is drawn: the fresh post-norms would make blocks the identity."""
    config = Swinv2Config(**(SIZES | {"image_size": 48, "window_size": 6} | fields))
    model = Swinv2ForImageClassification(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim > 1 else 0.5))
            if name.endswith("logit_scale"):
                parameter.abs_()
    return model


def clip(frames: int, height: int, width: int, batch: int = 1) -> Tensor:
    """Images (B, channels, height, width)."""
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(frames + height))


def still(images: Tensor, frames: int) -> Tensor:
    """A clip of equal frames of each image."""
    return images[:, None].repeat(1, frames, 1, 1, 1)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize(
    ("num_frames", "tubelet", "window", "frames"),
    [
        (8, 2, 4, 8),  # one window along time
        (8, 2, 2, 8),  # several, shifted
        (8, 1, 3, 8),  # the last window is not full
        (8, 2, 2, 7),  # the last patch is not full
        (8, 2, 4, 5),  # fewer frames than a window
        (8, 2, 2, 19),  # more frames than were configured
        (8, 2, 2, 1),  # one frame
        (16, 2, 1, 6),  # windows of one frame
    ],
)
@pytest.mark.parametrize("size", [(48, 48), (52, 70)], ids=str)
def test_a_still_clip_gets_the_image_models_answer(
    num_frames: int, tubelet: int, window: int, frames: int, size: tuple[int, int], mask_padding: bool, attention: str
) -> None:
    """Whatever the clip's length and the windows along time: padding frames are hidden."""
    model = image_model(mask_padding=mask_padding).double()
    images = clip(frames, *size).double()
    video_model = inflate(model, num_frames, tubelet, window)
    video_model.set_attn_implementation(attention)
    with torch.no_grad():
        expected = model(images, output_hidden_states=True)
        found = video_model(still(images, frames), output_hidden_states=True)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-9, atol=1e-9)
    for of_video, of_image in zip(found.reshaped_hidden_states, expected.reshaped_hidden_states, strict=True):
        repeated = of_image[:, :, None].expand_as(of_video)
        torch.testing.assert_close(of_video, repeated, rtol=1e-9, atol=1e-9)


def test_a_clip_in_another_order_gets_another_answer() -> None:
    """What the test above cannot show: frames see each other. The mean of an image model's answers has no order."""
    video_model = inflate(image_model(), 8, 2, 2)
    moving = torch.randn(1, 8, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answer, shuffled = (video_model(moving[:, order]).logits for order in (range(8), [0, 2, 4, 6, 1, 3, 5, 7]))
    assert (answer - shuffled).abs().max() > 1e-3
