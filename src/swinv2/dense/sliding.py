"""Semantic segmentation of images of any size, by windows that slide over them.

In: a segmenter of `heads.py`, an image as the model takes it. Out: the class of each pixel. An image is computed window
by window and finished from top to bottom, so the memory for scores depends on its width, not on its height.

Source: mmsegmentation, models/segmentors/encoder_decoder.py: places of the windows, sum of the logits, mean of the
probabilities of several sizes and flips.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from swinv2.errors import UsageError
from swinv2.lengths import Pair, as_pair

Score = Callable[[Tensor], Tensor]
"""Computes scores (B, classes, height, width) of images (B, channels, height, width)."""


def pixel_scores(model: nn.Module) -> Score:
    """The function of a segmenter of transformers that computes scores of the pixels of images.

    Args:
        model: A model with `logits`, such as UperNet, or one with masks and classes, such as Mask2Former.
    """

    def score(images: Tensor) -> Tensor:
        outputs: Any = model(images)
        if "logits" in outputs:
            scores = outputs.logits
        elif "masks_queries_logits" in outputs:
            # The last class of a query is "no object".
            classes = outputs.class_queries_logits.softmax(-1)[..., :-1]
            scores = torch.einsum("bqc,bqhw->bchw", classes, outputs.masks_queries_logits.sigmoid())
        else:
            raise UsageError(f"{type(model).__name__} is no segmenter: it has neither logits of pixels nor masks.")
        return F.interpolate(scores.float(), images.shape[2:], mode="bilinear", align_corners=False)

    return score


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """The places of windows along an axis: every `stride`, and the last one moved inside; 0 for a short axis.

    Example:

        >>> window_starts(10, 4, 4), window_starts(3, 4, 4)
        ([0, 4, 6], [0])
    """
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(index * stride + window, length) - window, 0) for index in range(count)]


def sliding_bands(
    score: Score, image: Float[Tensor, "channels height width"], window: Pair, stride: Pair
) -> Iterator[tuple[int, Float[Tensor, "classes rows width"]]]:
    """Computes the logits of an image by windows: of pixels in several windows, the mean.

    Args:
        score: Computes the logits of images, see `pixel_scores`.
        image: The image, normalised.
        window: Size (height, width) of the windows in pixels; an image that is smaller is one window.
        stride: Distance (down, across) of the windows, at most their size.

    Yields:
        The number of the first row, and the logits of some rows, from top to bottom; together all rows, each once.

    Raises:
        UsageError: The stride is larger than the window, so that pixels would be left out.
    """
    if not all(0 < step <= side for step, side in zip(stride, window, strict=True)):
        raise UsageError(f"the stride is {stride}; expected 1 to the window, {window}, so that no pixel is left out.")
    _, height, width = image.shape
    tops, lefts = window_starts(height, window[0], stride[0]), window_starts(width, window[1], stride[1])
    rows, columns = min(window[0], height), min(window[1], width)
    across = torch.zeros(width, device=image.device)
    for left in lefts:
        across[left : left + columns] += 1
    # The sum of the logits of the rows from `top` on, and the number of windows down that each of them is in.
    total, down = image.new_zeros(0), torch.zeros(rows, device=image.device)
    for top, next_top in zip(tops, [*tops[1:], height], strict=True):
        for left in lefts:
            logits = score(image[None, :, top : top + rows, left : left + columns])[0]
            if not total.numel():
                total = logits.new_zeros(len(logits), rows, width)
            total[:, :, left : left + columns] += logits
        down += 1
        done = next_top - top
        yield top, total[:, :done] / (down[:done, None] * across)
        total = torch.cat([total[:, done:], torch.zeros_like(total[:, :done])], 1)
        down = torch.cat([down[done:], torch.zeros_like(down[:done])])


@torch.inference_mode()
def segment(
    model: nn.Module,
    image: Float[Tensor, "channels height width"],
    window: int | Pair | None = None,
    stride: int | Pair | None = None,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    prepare: Callable[[Tensor], Tensor] | None = None,
) -> Integer[Tensor, "height width"]:
    """Finds the class of each pixel of an image.

    Args:
        model: See `pixel_scores`.
        image: The image, normalised, on the model's device; with `prepare`, an image as that takes it.
        window: Size in pixels of the windows that slide over the image; None for the whole image at once.
        stride: Distance of the windows in pixels; None for two thirds of the window. Both are of the image, whatever
            size `prepare` makes of it.
        scales: Sizes of the image, as factors; with several, or with `flip`, the class has the highest mean
            probability. Each needs memory for the probabilities of all pixels, which one size alone does not.
        flip: Whether to add the mirror image at each size.
        prepare: Makes what the model takes of images (B, channels, height, width), part by part: an image of eight bits
            needs a quarter of the memory. It may resize them. None if the image is normalised already.

    Returns:
        The class of each pixel, on the device of the image: eight bits up to 256 classes, otherwise 32.

    Raises:
        UsageError: The image, the windows or the scales are impossible, or the model is no segmenter or in training
            mode.
    """
    if prepare is None:
        _check_image(model, image)
    if window is None and stride is not None:
        raise UsageError(f"the stride is {stride}, but no window is given that could slide; give both.")
    if not scales or not all(scale > 0 for scale in scales):
        raise UsageError(f"the scales are {list(scales)}; expected at least one, each above 0.")
    if model.training:
        raise UsageError(f"{type(model).__name__} is in training mode; call its eval() first.")
    of_prepared, size = pixel_scores(model), (image.shape[1], image.shape[2])

    def score(views: Tensor) -> Tensor:
        scores = of_prepared(views if prepare is None else prepare(views))
        if scores.shape[2:] != views.shape[2:]:
            scores = F.interpolate(scores, views.shape[2:], mode="bilinear", align_corners=False)
        return scores.to(image.device)

    try:
        sides = None if window is None else as_pair("window", window)
        steps = sides and (as_pair("stride", stride) if stride is not None else _two_thirds(sides))
    except ValueError as error:
        raise UsageError(str(error)) from error
    if list(scales) == [1.0] and not flip:
        found: Any = None
        for top, band in sliding_bands(score, image, sides or size, steps or size):
            classes = best_classes(band)
            found = classes.new_empty(size) if found is None else found
            found[top : top + len(classes)] = classes
        return found
    # Pixels are resized after they are normalised.
    whole = image if prepare is None else prepare(image)
    shape = whole.shape[1], whole.shape[2]
    if sides is not None and steps is not None:
        sides, steps = (_scaled(each, (shape[0] / size[0], shape[1] / size[1])) for each in (sides, steps))
    views = [(scale, flips) for scale in scales for flips in ((False, True) if flip else (False,))]
    total: Any = 0.0
    for scale, flips in views:
        scaled = _scaled(shape, (scale, scale))
        view = whole if scaled == shape else F.interpolate(whole[None], scaled, mode="bilinear", antialias=True)[0]
        view = view.flip(2) if flips else view
        bands = sliding_bands(of_prepared, view, sides or scaled, steps or scaled)
        logits = torch.cat([band for _, band in bands], 1)
        logits = F.interpolate((logits.flip(2) if flips else logits)[None], size, mode="bilinear", align_corners=False)
        total = total + logits[0].softmax(0)
    return best_classes(total)


def _check_image(model: nn.Module, image: Tensor) -> None:
    """Raises an error unless a model can take an image."""
    weight = next(model.parameters(), None)
    if not isinstance(image, Tensor) or image.ndim != 3 or not image.is_floating_point():
        kind = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise UsageError(f"the image is {kind}; expected a normalised tensor of floats (channels, height, width).")
    if weight is not None and (weight.dtype, weight.device) != (image.dtype, image.device):
        raise UsageError(
            f"the image is {image.dtype} on {image.device}, the model {weight.dtype} on {weight.device}; make them "
            "equal."
        )


def _scaled(size: Pair, factors: tuple[float, float]) -> Pair:
    """A size times factors, at least a pixel."""
    return max(round(size[0] * factors[0]), 1), max(round(size[1] * factors[1]), 1)


def _two_thirds(window: Pair) -> Pair:
    """Two thirds of a window, the usual stride."""
    return max(window[0] * 2 // 3, 1), max(window[1] * 2 // 3, 1)


def best_classes(scores: Float[Tensor, "classes rows width"]) -> Integer[Tensor, "rows width"]:
    """The class of the highest score of each pixel."""
    return scores.argmax(0).to(torch.uint8 if len(scores) <= 256 else torch.int32)
