"""From a stored image to the tensor that a model learns from.

In: an image as `dataset.py` has it. Out: normalised pixels (channels, height, width), fp32. Augmentation is timm's
and torchvision's; chance comes from the global generators, which `examples.py` seeds for every image.

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
"""Takes what `decode` returns."""


@dataclass(frozen=True)
class Pixels:
    """What pixels a model takes.

    Attributes:
        size: Height and width.
        mean, std: Of each channel, of values from 0 to 1.
    """

    size: Pair
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise UsageError(f"image_mean has {len(self.mean)} channels and image_std {len(self.std)}; give as many.")
        if not all(deviation > 0 for deviation in self.std):
            raise UsageError(f"image_std is {list(self.std)}; expected deviations above 0.")

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.mean)

    def normalise(self) -> list[v2.Transform]:
        """The last steps of every transform."""
        return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(self.mean), list(self.std))]


def decode(stored: str | bytes | np.ndarray, channels: int) -> Image.Image | Tensor:
    """Reads an image: a PIL image for one or three channels, otherwise pixels (channels, H, W).

    Raises:
        BrokenImageError: It cannot be read.
        UsageError: It has other channels than the model.
    """
    if isinstance(stored, (str, bytes)):
        if channels not in (1, 3):
            raise UsageError(f"an image file has 3 channels, or 1 as grey; {channels} need arrays (H, W, {channels}).")
        image = read_image(stored)
        return image.convert("L") if channels == 1 else image
    pixels = stored[:, :, None] if stored.ndim == 2 else stored
    if pixels.ndim != 3 or pixels.shape[2] != channels or pixels.dtype != np.uint8:
        raise UsageError(
            f"an image is an array {stored.shape} of {stored.dtype}; expected (H, W, {channels}) of uint8."
        )
    if channels in (1, 3):
        return Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def for_pretraining(pixels: Pixels, scale: Sequence[float] = (0.67, 1.0)) -> Transform:
    """SimMIM's: a random crop of `scale` of the area, resized, and flipped half of the time."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(pixels.size, (scale[0], scale[1]), (3 / 4, 4 / 3), InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            *pixels.normalise(),
        ]
    )


def for_finetuning(
    pixels: Pixels,
    auto_augment: str = "",
    color_jitter: float = 0.0,
    erase_probability: float = 0.0,
    scale: Sequence[float] = (0.08, 1.0),
    crop_padding: int = 0,
) -> Transform:
    """The authors' for supervised training: timm's crop, flip, RandAugment, jitter and erasing.

    Args:
        pixels: What the model takes.
        auto_augment: timm's description of RandAugment and its kind; the authors' is "rand-m9-mstd0.5-inc1".
        color_jitter: Strength of brightness, contrast and saturation; without effect beside `auto_augment`.
        erase_probability: Of random erasing.
        scale: Smallest and largest share of the area that a crop takes.
        crop_padding: If not 0, images are resized and cropped at random after reflecting so many pixels at each
            edge, as one does with small ones, and `scale` has no effect.

    Raises:
        UsageError: Settings that would have no effect together, that need colours, or that are impossible.
    """
    if color_jitter < 0 or crop_padding < 0 or not 0.0 <= erase_probability <= 1.0:
        raise UsageError(
            f"color_jitter is {color_jitter}, crop_padding {crop_padding} and erase_probability {erase_probability}; "
            "expected none below 0, and no probability above 1."
        )
    if auto_augment and color_jitter:
        raise UsageError("color_jitter has no effect with auto_augment, as in timm; leave one of them out.")
    if pixels.channels != 3 and (auto_augment or color_jitter):
        raise UsageError(f"auto_augment and color_jitter need 3 channels; the model has {pixels.channels}.")
    if crop_padding:
        resize = [v2.Resize(pixels.size, InterpolationMode.BICUBIC)]
        crop = [*resize, v2.RandomCrop(pixels.size, crop_padding, padding_mode="reflect")]
    else:
        crop = [v2.RandomResizedCrop(pixels.size, (scale[0], scale[1]), (3 / 4, 4 / 3), InterpolationMode.BICUBIC)]
    steps: list[Any] = [*crop, v2.RandomHorizontalFlip()]
    if auto_augment:
        from timm.data.auto_augment import auto_augment_transform, rand_augment_transform

        middle = tuple(min(255, round(255 * mean)) for mean in pixels.mean)
        hints = {
            "translate_const": int(min(pixels.size) * 0.45),
            "img_mean": middle,
            "interpolation": Image.Resampling.BICUBIC,
        }
        make = rand_augment_transform if auto_augment.startswith("rand") else auto_augment_transform
        try:
            steps.append(_keep_a_bit(make(auto_augment, hints)))
        # timm's ways to say no.
        except (AssertionError, ValueError, KeyError) as error:
            raise UsageError(
                f"auto_augment is {auto_augment!r}, which timm does not understand ({error}); expected a description "
                "such as rand-m9-mstd0.5-inc1."
            ) from error
    if color_jitter:
        steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
    steps += pixels.normalise()
    if erase_probability:
        from timm.data.random_erasing import RandomErasing

        steps.append(RandomErasing(erase_probability, mode="pixel", max_count=1, device="cpu"))
    return v2.Compose(steps)


def _keep_a_bit(augment: Any) -> Any:
    """Fixes timm's posterizing, which at full strength asks Pillow for no bit at all; Pillow 13 refuses that."""
    from timm.data.auto_augment import posterize

    operations = augment.ops if hasattr(augment, "ops") else [each for policy in augment.policy for each in policy]
    for operation in operations:
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterize
    return augment


def _posterize(image: Image.Image, bits: int, **rest: Any) -> Image.Image:
    return image if bits >= 8 else ImageOps.posterize(image, max(bits, 1))


def for_evaluation(pixels: Pixels, crop_ratio: float | None = None) -> Transform:
    """Without chance, and what the model will serve: the image processor that is saved beside it; see
    `make_processor`."""
    return partial(_process, make_processor(pixels, crop_ratio))


def _process(processor: Any, image: Image.Image | Tensor) -> Tensor:
    # Not every version sees by itself where four channels are.
    return processor(image, input_data_format="channels_first", return_tensors="pt")["pixel_values"][0]


def make_processor(pixels: Pixels, crop_ratio: float | None = None) -> Any:
    """Builds transformers' image processor for a model.

    Args:
        pixels: What the model takes.
        crop_ratio: None to resize images to the model's size; otherwise they are resized so that the centre that is cut
            out is this share of the shorter side.

    Raises:
        UsageError: There is no such crop.
    """
    height, width = pixels.size
    common: dict[str, Any] = {
        "resample": 3,
        "image_mean": list(pixels.mean),
        "image_std": list(pixels.std),
        # A grey image stays grey.
        "do_convert_rgb": pixels.channels == 3,
    }
    if crop_ratio is None:
        return ViTImageProcessor(size={"height": height, "width": width}, **common)
    if not 0.0 < crop_ratio <= 1.0:
        raise UsageError(f"crop_ratio is {crop_ratio}; expected above 0 and at most 1.")
    if height != width:
        raise UsageError(f"crop_ratio needs a square model; this one takes {height} x {width}.")
    return BitImageProcessor(
        size={"shortest_edge": int(height / crop_ratio)}, crop_size={"height": height, "width": width}, **common
    )
