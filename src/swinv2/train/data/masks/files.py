"""Reads a mask as it is stored: the indices of a palette, grey values, or what colours stand for.

In: an image file, its contents, or values, and possibly a table of colours. Out: an integer for each pixel. It knows no
class and no value that is ignored; `dataset.py` translates the integers.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from swinv2.errors import UsageError
from swinv2.images import open_image

_GREY_STEPS = {"L;2": 85, "L;4": 17}
"""PIL stretches the values of grey images of two and four bits to 0 to 255, by these factors."""


def stored_values(mask: str | bytes | np.ndarray, name: str, colours: Mapping[int, int] | None = None) -> np.ndarray:
    """Reads a mask as it is stored: the indices of a palette, grey values, or what colours stand for.

    Args:
        mask: Path or contents of an image file, or values (H, W).
        name: The mask's name in messages.
        colours: The value that each colour 0xRRGGBB stands for. Unless all of them are grey, a grey mask has values and
            no colours.

    Returns:
        (H, W), integers.

    Raises:
        BrokenImageError: The mask's file cannot be read.
        UsageError: The file is no mask, or a colour is not in the table.
    """
    pixels = mask if isinstance(mask, np.ndarray) else _decode(mask, name, colours)
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    pixels = pixels.astype(np.uint8) if pixels.dtype == bool else pixels
    is_mask = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype.kind not in "iu" or not is_mask or not pixels.size:
        raise UsageError(
            f"{name} has {pixels.dtype} values of the shape {pixels.shape}; expected integers (height, "
            "width), the class of each pixel. Save it as a PNG of one channel."
        )
    if colours is not None and (pixels.ndim == 3 or all(_is_grey(colour) for colour in colours)):
        return _values_of_colours(pixels, colours, name)
    if pixels.ndim == 2:
        return pixels
    if (pixels == pixels[..., :1]).all():
        return pixels[..., 0]
    raise UsageError(
        f"{name} is a mask in colours, and no table says which class a colour is; put a file "
        "class_dict.csv into the folder of the data, with the header name,r,g,b and a line for each class, or save the "
        "masks with one channel, the class of each pixel."
    )


def _decode(mask: str | bytes, name: str, colours: Mapping[int, int] | None) -> np.ndarray:
    """The pixels of a file, (H, W) or (H, W, 3). A palette is applied only if there is a table of colours."""
    with open_image(mask) as image:
        step, kind = _GREY_STEPS.get(_raw_mode(image), 1), image.format
        image.load()
        has_palette = image.mode in ("P", "PA") and colours is not None
        is_other = image.mode in ("CMYK", "YCbCr", "LAB", "HSV")
        pixels = np.asarray(image.convert("RGB") if has_palette or is_other else image)
    if kind in ("JPEG", "MPO"):
        raise UsageError(
            f"{name} is a mask in JPEG, which changes values at the borders of the classes; expected PNG. Export the "
            "masks again as PNG, or if there are only black and white, make them so at the value 128 and save PNG."
        )
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        # The last channel is transparency.
        pixels = pixels[..., : pixels.shape[2] - 1]
    return pixels // step if step > 1 else pixels


def _raw_mode(image: Image.Image) -> str:
    """How the pixels are packed in a file that is not loaded yet, such as "L;4"."""
    tile = getattr(image, "tile", None)
    arguments: Any = tile[0][3] if tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _values_of_colours(pixels: np.ndarray, colours: Mapping[int, int], name: str) -> np.ndarray:
    """What the colours of pixels, (H, W, 3) or grey (H, W), stand for."""
    wide = pixels.astype(np.int64)
    packed = wide * 0x010101 if pixels.ndim == 2 else wide @ np.array([0x10000, 0x100, 1])
    known = np.array(sorted(colours))
    place = np.minimum(np.searchsorted(known, packed), len(known) - 1)
    wrong = packed[known[place] != packed]
    if wrong.size:
        colour = int(wrong.min())
        shown = ", ".join(str(colour >> bits & 255) for bits in (16, 8, 0))
        raise UsageError(
            f"{name} has the colour ({shown}) in {int((wrong == colour).sum()):,} pixels, and the table of colours has "
            f"{len(known)} others; add the colour to the table, or save the mask without smoothing of its borders."
        )
    return np.array([colours[colour] for colour in known.tolist()])[place]


def _is_grey(colour: int) -> bool:
    """Whether a colour has equal red, green and blue."""
    return colour == (colour & 255) * 0x010101
