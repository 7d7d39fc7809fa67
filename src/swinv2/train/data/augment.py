"""Decoding and augmentation: from a stored image to a tensor.

In: the image of a `Sample`. Out: normalised pixels (channels, height, width), fp32. timm and torchvision augment; they
draw from the global random generators, which `examples.py` seeds for every image.

Source: microsoft/Swin-Transformer, data/build.py (fine-tuning, evaluation) and data/data_simmim_pt.py (pre-training).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from transformers import BitImageProcessor, ViTImageProcessor

from swinv2.errors import UsageError
from swinv2.images import read_image
from swinv2.lengths import Pair

Transform = Callable[[Any], Tensor]
"""Makes pixels from the result of `decode`."""


@dataclass(frozen=True)
class Pixels:
    """The pixels that a model takes.

    Attributes:
        size: Height and width.
        mean, std: Mean and standard deviation of each channel, for values from 0 to 1.
    """

    size: Pair
    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise UsageError(f"image_mean has {len(self.mean)} channels, image_std {len(self.std)}; make them equal.")
        if not all(deviation > 0 for deviation in self.std):
            raise UsageError(f"image_std is {list(self.std)}; expected deviations above 0.")

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.mean)

    def normalise(self) -> list[v2.Transform]:
        """The last steps of every transform: to fp32, and normalised."""
        return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(self.mean), list(self.std))]


def decode(stored: str | bytes | np.ndarray, channels: int) -> Image.Image | Tensor:
    """Reads an image: a PIL image for one or three channels, otherwise pixels (channels, H, W).

    Raises:
        BrokenImageError: It cannot be read.
        UsageError: Its channels are not the model's.
    """
    if isinstance(stored, (str, bytes)):
        return read_image(stored, channels)
    pixels = stored[:, :, None] if stored.ndim == 2 else stored
    if pixels.ndim != 3 or pixels.shape[2] != channels or pixels.dtype != np.uint8:
        raise UsageError(
            f"an image is an array {stored.shape} of {stored.dtype}; expected (H, W, {channels}) of uint8."
        )
    if channels in (1, 3):
        return Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def drawable(stored: str | bytes | np.ndarray) -> np.ndarray:
    """An image for people, (H, W, 3) of eight bits: of three channels or more the first three, otherwise grey.

    Raises:
        BrokenImageError: It cannot be read.
    """
    if isinstance(stored, (str, bytes)):
        return np.asarray(read_image(stored))
    pixels = np.atleast_3d(stored)
    return pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, :1].repeat(3, 2)


def for_pretraining(pixels: Pixels, scale: Sequence[float] = (0.67, 1.0)) -> Transform:
    """SimMIM's augmentation: a random crop of a share of the area within `scale`, resized; flipped half of the time."""
    return v2.Compose([_random_crop(pixels, scale), v2.RandomHorizontalFlip(), *pixels.normalise()])


def _random_crop(pixels: Pixels, scale: Sequence[float]) -> v2.Transform:
    """Augmentation: a random crop, resized to the model's size."""
    return v2.RandomResizedCrop(pixels.size, (scale[0], scale[1]), (3 / 4, 4 / 3), InterpolationMode.BICUBIC)


def for_finetuning(
    pixels: Pixels,
    auto_augment: str = "",
    color_jitter: float = 0.0,
    erase_probability: float = 0.0,
    scale: Sequence[float] = (0.08, 1.0),
    crop_padding: int = 0,
    flip: float = 0.5,
) -> Transform:
    """The authors' augmentation for supervised training: crop, flip, RandAugment, jitter and erasing.

    Args:
        pixels: The pixels that the model takes.
        auto_augment: timm's description of RandAugment and similar; the authors' is "rand-m9-mstd0.5-inc1".
        color_jitter: Strength of changes of brightness, contrast and saturation; not together with `auto_augment`.
        erase_probability: Probability of random erasing.
        scale: Smallest and largest share of the area that a crop takes.
        crop_padding: If not 0, images are resized, padded at each edge with this many reflected pixels and cropped at
            random, as is usual for small images; `scale` has no effect then.
        flip: Probability of a horizontal flip.

    Raises:
        UsageError: A setting has no effect, is out of its range, or needs three channels.
    """
    if color_jitter < 0 or crop_padding < 0 or not (0.0 <= erase_probability <= 1.0 and 0.0 <= flip <= 1.0):
        raise UsageError(
            f"color_jitter is {color_jitter}, crop_padding {crop_padding}, erase_probability {erase_probability} and "
            f"flip {flip}; expected values of at least 0, and probabilities of at most 1."
        )
    if auto_augment and color_jitter:
        raise UsageError("color_jitter has no effect with auto_augment, as in timm; leave one of them out.")
    if pixels.channels != 3 and (auto_augment or color_jitter):
        raise UsageError(f"auto_augment and color_jitter need 3 channels; the model has {pixels.channels}.")
    if crop_padding:
        resize = v2.Resize(pixels.size, InterpolationMode.BICUBIC)
        steps: list[Any] = [resize, v2.RandomCrop(pixels.size, crop_padding, padding_mode="reflect")]
    else:
        steps = [_random_crop(pixels, scale)]
    steps.append(v2.RandomHorizontalFlip(flip))
    if auto_augment:
        from timm.data.auto_augment import auto_augment_transform, rand_augment_transform

        hints = {
            "translate_const": int(min(pixels.size) * 0.45),
            "img_mean": tuple(min(255, round(255 * mean)) for mean in pixels.mean),
            "interpolation": Image.Resampling.BICUBIC,
        }
        make = rand_augment_transform if auto_augment.startswith("rand") else auto_augment_transform
        try:
            steps.append(_limit_posterizing(make(auto_augment, hints)))
        # timm's errors for an invalid description.
        except (AssertionError, ValueError, KeyError) as error:
            raise UsageError(
                f"auto_augment is {auto_augment!r}, which timm cannot read ({error}); expected a description "
                "such as rand-m9-mstd0.5-inc1."
            ) from error
    if color_jitter:
        steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
    steps += pixels.normalise()
    if erase_probability:
        from timm.data.random_erasing import RandomErasing

        steps.append(RandomErasing(erase_probability, mode="pixel", max_count=1, device="cpu"))
    return v2.Compose(steps)


def _limit_posterizing(augment: Any) -> Any:
    """Fixes timm's posterizing: at full strength it keeps 0 bits, for which Pillow 13 raises an error."""
    from timm.data.auto_augment import posterize

    operations = augment.ops if hasattr(augment, "ops") else [each for policy in augment.policy for each in policy]
    for operation in operations:
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterize_safely
    return augment


def _posterize_safely(image: Image.Image, bits: int, **rest: Any) -> Image.Image:
    """Augmentation: posterizing that keeps one bit at least."""
    return image if bits >= 8 else ImageOps.posterize(image, max(bits, 1))


def for_evaluation(pixels: Pixels, crop_ratio: float | None = None) -> Transform:
    """The transform of evaluation, without randomness: the model's saved image processor; see `make_processor`."""
    return partial(process_image, make_processor(pixels, crop_ratio))


def process_image(processor: Any, image: Image.Image | Tensor) -> Tensor:
    """Runs the image processor on one image, for evaluation."""
    # Not every version of transformers finds the dimension of four channels by itself.
    return processor(image, input_data_format="channels_first", return_tensors="pt")["pixel_values"][0]


def make_processor(pixels: Pixels, crop_ratio: float | None = None) -> Any:
    """Builds transformers' image processor for a model.

    Args:
        pixels: The pixels that the model takes.
        crop_ratio: Side of the centre crop as a share of the shorter side; None to resize images to the model's size
            instead of cropping.

    Raises:
        UsageError: The ratio is out of its range, or the model is not square.
    """
    height, width = pixels.size
    # A grey image stays grey.
    common: Any = {"resample": 3, "do_convert_rgb": pixels.channels == 3}
    common |= {"image_mean": list(pixels.mean), "image_std": list(pixels.std)}
    if crop_ratio is None:
        return ViTImageProcessor(size={"height": height, "width": width}, **common)
    if not 0.0 < crop_ratio <= 1.0:
        raise UsageError(f"crop_ratio is {crop_ratio}; expected above 0 and at most 1.")
    if height != width:
        raise UsageError(f"crop_ratio needs a square model; this one takes {height} x {width}.")
    return BitImageProcessor(
        size={"shortest_edge": int(height / crop_ratio)}, crop_size={"height": height, "width": width}, **common
    )
