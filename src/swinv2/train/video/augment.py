"""Augmentation of clips: every frame of a clip is changed alike.

In: a clip (frames, channels, height, width) of eight bits. Out: normalised pixels of the same shape, fp32. torchvision
augments; it draws from torch's global generator, which `data/examples.py` seeds for every clip.

Source: SwinTransformer/Video-Swin-Transformer, configs/recognition/swin.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from swinv2.errors import UsageError
from swinv2.train.data.augment import Pixels

ERASED_AREA, ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)
"""Share of the area, and ratio of the sides, of an erased rectangle; timm's values."""

STRENGTHS = 31
"""Strengths of RandAugment: 0 to 30."""


class Reverse(v2.Transform):
    """Augmentation: plays a clip backward.

    Args:
        probability: How often.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, clip: Tensor) -> Tensor:
        """The clip, or its frames in reverse order."""
        return clip.flip(0) if float(torch.rand(())) < self.probability else clip


def for_clips(
    pixels: Pixels,
    scale: Sequence[float] = (0.08, 1.0),
    flip: float = 0.5,
    reverse: float = 0.0,
    color_jitter: float = 0.0,
    rand_augment: Sequence[int] = (),
    erase_probability: float = 0.0,
) -> Callable[[Tensor], Tensor]:
    """Video Swin's augmentation: crop and flip, if wanted RandAugment and erasing.

    Args:
        pixels: The pixels that the model takes.
        scale: Smallest and largest share of the area that a crop takes.
        flip: Probability that a clip is mirrored, left for right.
        reverse: Probability that a clip is played backward.
        color_jitter: Strength of changes of brightness, contrast and saturation.
        rand_augment: Number of operations and strength (0 to 30) of torchvision's RandAugment; empty for none. It
            mirrors neither space nor time.
        erase_probability: Probability that a rectangle, the same in all frames, is erased.

    Raises:
        UsageError: A setting is out of its range.
    """
    for name, share in {"flip": flip, "reverse": reverse, "erase_probability": erase_probability}.items():
        if not 0.0 <= share <= 1.0:
            raise UsageError(f"{name} is {share}; expected a probability.")
    if color_jitter < 0:
        raise UsageError(f"color_jitter is {color_jitter}; expected at least 0.")
    if rand_augment and (len(rand_augment) != 2 or rand_augment[0] < 1 or not 0 <= rand_augment[1] < STRENGTHS):
        raise UsageError(
            f"rand_augment is {list(rand_augment)}; expected the number of operations and their strength from 0 to "
            f"{STRENGTHS - 1}, such as 4 7."
        )
    bilinear = InterpolationMode.BILINEAR
    steps: list[Any] = [
        v2.RandomResizedCrop(pixels.size, (scale[0], scale[1]), (3 / 4, 4 / 3), bilinear, antialias=True),
        v2.RandomHorizontalFlip(flip),
        Reverse(reverse),
    ]
    if rand_augment:
        steps.append(v2.RandAugment(rand_augment[0], rand_augment[1], STRENGTHS, bilinear))
    if color_jitter:
        steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
    # Not `pixels.normalise()`: the clip is a tensor already.
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(pixels.mean), list(pixels.std))]
    if erase_probability:
        # After the normalisation, 0 is the mean colour.
        steps.append(v2.RandomErasing(erase_probability, ERASED_AREA, ERASED_RATIO))
    return v2.Compose(steps)
