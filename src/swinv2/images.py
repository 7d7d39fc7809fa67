"""Finds image files, and reads their pixels from any format.

In: names of files and folders, and globs. Out: paths, and upright images of eight bits, RGB or grey. This module knows
no model: it neither resizes nor normalises.

A file that cannot be read raises no exception: it becomes a `BrokenImage` with a reason, and the other files are read.

Colour profiles are not applied, as in transformers and torchvision. An animation is read as its first frame.
"""

import contextlib
import functools
import glob
import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from swinv2.errors import UsageError

_NEEDS_PLUGIN = {".heic": "pillow-heif", ".heif": "pillow-heif", ".jxl": "pillow-jxl-plugin"}

# PIL lists these formats too, but cannot read their pixels by itself.
_NO_PIXELS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF")

SUFFIXES = _NEEDS_PLUGIN.keys() | {
    suffix for suffix, kind in Image.registered_extensions().items() if kind not in _NO_PIXELS
}
"""Suffixes of the images inside a folder. HEIF and JPEG XL are included although PIL alone cannot read them, so that
such a photo is reported instead of left out. A file that the user names is read whatever its suffix."""

# The exceptions that PIL's decoders raised on some 90,000 damaged files of 20 formats, and those in their source code.
# Some are faults of PIL: a whole ICNS file with a palette raises AssertionError.
_DECODING_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    TypeError,
    ValueError,
    SyntaxError,
    RuntimeError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


_SAFE_FORMATS = ("BMP", "GIF", "JPEG", "MPO", "PNG", "WEBP")
"""PIL's names of the formats that are read of untrusted images. What is decoded of them has the size in the header. In
a TIFF, a tile may be larger than the image (870 KB took 870 MB, for an image of 10 x 10 pixels), and in an AVIF the
frame (2 KB took 300 MB). EPS starts another program."""

_MOST_SCANS = 100
"""Scans of a JPEG. Encoders write about ten; each needs few bytes, and the time of a pass over all pixels."""

_JPEG_MARKER, _START_OF_SCAN, _END_OF_IMAGE = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]"), 0xDA, 0xD9
"""The markers of a JPEG that a length follows, and the last one."""

_BMP_RUN_LENGTHS = (1, 2)
"""Compressions of a BMP whose decoder is in Python: it would keep other threads waiting."""

_MOST_ELONGATED = 100
"""Longer side over shorter side. Some image processors give the shorter side a length and keep the shape."""


class BrokenImageError(ValueError):
    """A file has no image that can be read; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class ImageLimits:
    """Limits for untrusted images, which are checked before pixels are decoded.

    Only the formats of the web are read: BMP, GIF, JPEG, PNG and WebP. Images whose decoding takes far more time than
    their size says are refused, and those with a side that is more than 100 times the other one.

    Attributes:
        pixels: The largest number of pixels of an image, at most PIL's hard limit, see `read_image`.
    """

    pixels: int


@dataclass(frozen=True)
class BrokenImage:
    """A file that was skipped.

    Attributes:
        path: The file.
        reason: Why it could not be read, in a few words.
    """

    path: Path
    reason: str


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, such as macOS's "._photo.jpg"."""
    return name.startswith(".")


def is_image_name(name: str) -> bool:
    """Whether a file found in a folder has the suffix of an image and is not hidden."""
    return not is_hidden(name) and Path(name).suffix.lower() in SUFFIXES


def find_images(
    inputs: Iterable[str | Path], is_named: Callable[[str], bool] = is_image_name, kind: str = "image"
) -> tuple[list[Path], list[BrokenImage]]:
    """Finds images, or files of another kind.

    Args:
        inputs: Files, whatever their suffix; folders, which are searched, with their subfolders and the folders that
            links name, for files with the suffix of an image that are not hidden; globs ("**" for any depth).
        is_named: Whether a file in a folder is wanted, by its name.
        kind: What the files are, in the singular, for the message.

    Returns:
        The images, each file once, in the order of the inputs and by name within each input; and the inputs that do
        not exist.

    Raises:
        UsageError: No image was found.
    """
    inputs = [str(item) for item in inputs]
    found: dict[str, Path] = {}
    broken = []
    for item in inputs:
        path = Path(item)
        if path.is_dir():
            matches = files_inside(path, is_named)
        elif os.path.lexists(path):
            matches = [path]
        elif glob.has_magic(item):
            matches = _images_matching(item, is_named)
        else:
            is_address = re.match(r"(https?|ftp|s3|gs)://", item)
            reason = "an address, not a file; download it first" if is_address else "no such file or folder"
            broken.append(BrokenImage(path, reason))
            continue
        for match in matches:
            found.setdefault(os.path.realpath(match), match)
    if not found:
        if not inputs:
            raise UsageError(f"no {kind} was given; name files, folders or globs.")
        reasons = {str(image.path): f" ({image.reason})" for image in broken}
        given = ", ".join(repr(item) + reasons.get(str(Path(item)), "") for item in inputs)
        raise UsageError(
            f"no {kind} was found in {given}. Name {kind} files, folders with {kind}s, or globs that match {kind}s."
        )
    return list(found.values()), broken


def images_inside(folder: Path, already: Iterable[Path] = ()) -> list[Path]:
    """The images in a folder and its subfolders, without hidden ones, by name; see `files_inside`."""
    return files_inside(folder, is_image_name, already)


def files_inside(folder: Path, is_wanted: Callable[[str], bool], already: Iterable[Path] = ()) -> list[Path]:
    """Files in a folder and its subfolders, by name. Hidden folders are not searched; links to folders are followed.

    Args:
        folder: The folder.
        is_wanted: Whether a file with this name is wanted.
        already: Folders that are not searched.
    """
    places = _folders_below(folder, already)
    found = [Path(place, name) for place, names in places for name in names if is_wanted(name)]
    # As paths are compared, but ten times as fast.
    return sorted(found, key=lambda path: path.parts)


def _folders_below(folder: str | Path, already: Iterable[Path] = ()) -> Iterator[tuple[str, list[str]]]:
    """A folder and all folders in it, each with the names of its files, without hidden folders. Links to folders are
    followed; a folder comes once, so links that form a circle end."""
    searched = {os.path.realpath(path) for path in already}
    for place, folders, names in os.walk(folder, followlinks=True):
        actual = os.path.realpath(place)
        is_new = actual not in searched
        searched.add(actual)
        folders[:] = sorted(name for name in folders if is_new and not is_hidden(name))
        if is_new:
            yield place, names


def _images_matching(pattern: str, is_named: Callable[[str], bool]) -> list[Path]:
    """The images that match a glob, and those in matching folders."""
    found = []
    for name in sorted(_names_matching(pattern)):
        path = Path(name)
        if path.is_dir():
            # "**" matches a folder and also its files, so the folder is searched only for other globs.
            found += [] if "**" in pattern else files_inside(path, is_named)
        elif is_named(path.name) or Path(pattern).suffix not in ("", ".*"):
            found.append(path)
    return found


def _names_matching(pattern: str) -> list[str]:
    """The files and folders that match a glob. `glob.glob` alone hardly ends if links form circles."""
    head, *tail = re.split(r"(?:^|(?<=/))\*\*(?:/|$)", pattern, maxsplit=1)
    if not tail:
        return glob.glob(pattern, recursive=True)
    places = [place for base in (glob.glob(head) if head else ["."]) for place, _ in _folders_below(base)]
    return [name for place in places for name in _names_matching(os.path.join(glob.escape(place), tail[0] or "*"))]


def read_image(source: str | Path | bytes, channels: int = 3, limits: ImageLimits | None = None) -> Image.Image:
    """Reads a file as an upright image of eight bits.

    Transparent parts become white. Grey of more than eight bits is scaled so that white stays white, see `grey_to_rgb`.
    An image may have as many pixels as PIL's hard limit, twice `PIL.Image.MAX_IMAGE_PIXELS` (179 million by default);
    it is read without a warning. Set that number to read larger images.

    Args:
        source: The file, or its bytes.
        channels: 3 for RGB; 1 for grey (PIL's mode "L"), to which colours are converted.
        limits: Limits for an untrusted image.

    Raises:
        BrokenImageError: The file is missing, may not be read, is not an image, is damaged or incomplete, or the image
            is too large or beyond `limits`.
        UsageError: Files are not read with so many channels.
    """
    if channels not in (1, 3):
        raise UsageError(
            f"the model takes {channels} channels, but an image file has 3, or 1 as grey. Give it arrays (H, W, "
            f"{channels}): as tensors in Python or, to train and evaluate, in a data set."
        )
    with open_image(source, limits) as image:
        image.load()
        rgb = to_rgb(upright(image))
        return rgb.convert("L") if channels == 1 else rgb


@contextlib.contextmanager
def open_image(source: str | Path | bytes, limits: ImageLimits | None = None) -> Iterator[Image.Image]:
    """Opens a file as PIL's image, without PIL's warnings, and closes it behind the block.

    Args:
        source: The file, or its bytes.
        limits: Limits for an untrusted image.

    Raises:
        BrokenImageError: The file cannot be opened, or its image is beyond `limits`; or the block raises an error as
            PIL's decoders do.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else Path(source)
    # PIL warns about metadata that is not used here, and about sizes between its soft and its hard limit.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(file, formats=None if limits is None else _safe_formats()) as image:
                if limits is not None:
                    _refuse_bomb(image, source, limits)
                yield image
        except BrokenImageError:
            raise
        except _DECODING_ERRORS as error:
            raise BrokenImageError(_why_unreadable(file, error, limits)) from error


@functools.cache
def _safe_formats() -> list[str]:
    """Those of `_SAFE_FORMATS` that the installed PIL has."""
    Image.init()
    return [name for name in _SAFE_FORMATS if name in Image.OPEN]


def _refuse_bomb(image: Image.Image, source: str | Path | bytes, limits: ImageLimits) -> None:
    """Raises an error if an image, of which only the header was read, is beyond the limits.

    Raises:
        BrokenImageError: The reason.
    """
    width, height = image.size
    if width * height > limits.pixels:
        raise BrokenImageError(f"it has {width * height:,} pixels; the limit is {limits.pixels:,}; make it smaller")
    if max(width, height) > _MOST_ELONGATED * min(width, height):
        raise BrokenImageError(
            f"it has {width} x {height} pixels; a side may be {_MOST_ELONGATED} times the other one at most"
        )
    if image.format in ("JPEG", "MPO"):
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        if _has_many_scans(data):
            raise BrokenImageError(f"a JPEG of more than {_MOST_SCANS} scans; save it again")
    if image.format == "BMP" and image.info.get("compression") in _BMP_RUN_LENGTHS:
        raise BrokenImageError("a BMP with run lengths, which is not read here; save it as PNG")


def _has_many_scans(data: bytes) -> bool:
    """Whether a JPEG has more than `_MOST_SCANS`."""
    scans, position = 0, 2
    while scans <= _MOST_SCANS and (found := _JPEG_MARKER.search(data, position)):
        marker, position = data[found.end() - 1], found.end()
        if marker == _END_OF_IMAGE:
            return False
        scans += marker == _START_OF_SCAN
        position += int.from_bytes(data[position : position + 2], "big")
    return scans > _MOST_SCANS


def _why_unreadable(file: Path | io.BytesIO, error: Exception, limits: ImageLimits | None = None) -> str:
    """A sentence that says why an image cannot be read."""
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) if limits is None else limits.pixels
        return f"it has more than {most:,} pixels, the limit; make it smaller"
    if isinstance(error, UnidentifiedImageError):
        is_path = isinstance(file, Path)
        if limits is not None and (is_path or file.getvalue()):
            return "not an image in a format that is read here: BMP, GIF, JPEG, PNG or WebP"
        if (file.is_file() and file.stat().st_size == 0) if is_path else not file.getvalue():
            return "the file is empty"
        plugin = _NEEDS_PLUGIN.get(file.suffix.lower()) if is_path else None
        return f"PIL cannot read it without {plugin}; convert it to JPEG or PNG" if plugin else "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"damaged: {str(error).strip() or type(error).__name__}"


def upright(image: Image.Image) -> Image.Image:
    """Turns an image as its EXIF data says."""
    # If the EXIF data is damaged, the pixels may still be intact: the image is then returned as it is stored.
    with contextlib.suppress(*_DECODING_ERRORS):
        # PIL keeps the EXIF data that it has read once. Without the entries in `info` it does not write them again,
        # which would fail for an unusual entry.
        image.getexif()
        for name in ("exif", "Raw profile type exif"):
            image.info.pop(name, None)
        ImageOps.exif_transpose(image, in_place=True)
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any PIL mode to eight-bit RGB; transparent parts become white."""
    if image.mode.startswith("I") or image.mode == "F":
        return grey_to_rgb(np.asarray(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    # A conversion would copy it.
    return image if image.mode == "RGB" else image.convert("RGB")


def grey_to_rgb(values: np.ndarray) -> Image.Image:
    """Scales grey of more than eight bits to eight bits.

    A file does not say which value is white, and PIL sometimes uses a 32-bit mode for a 16-bit image. White is the
    first of these values that no pixel exceeds: 65,535 or 2^31 for integers; 1, 255, 65,535 or the brightest pixel for
    floats. Negative values and NaN become black.

    Args:
        values: Grey (H, W), integers of 16 or 32 bits, or floats.

    Example:

        >>> import numpy as np
        >>> grey_to_rgb(np.array([[0.0, 0.5, 1.0]])).getpixel((1, 0))
        (128, 128, 128)
    """
    is_integer = values.dtype.kind in "iu"
    highest = float(np.finfo(np.float32).max)
    grey = np.nan_to_num(np.asarray(values, np.float32), nan=0.0, posinf=highest, neginf=0.0)
    brightest = float(grey.max())
    whites = (65535.0, 2.0**31) if is_integer else (1.0, 255.0, 65535.0, brightest)
    white = next(value for value in whites if brightest <= value)
    return Image.fromarray(np.clip(grey / white * 255 + 0.5, 0, 255).astype(np.uint8)).convert("RGB")


def read_or_skip(path: Path, channels: int = 3) -> Image.Image | BrokenImage:
    """Reads a file with `read_image`, or returns the reason why it cannot be read."""
    try:
        return read_image(path, channels)
    except BrokenImageError as error:
        return BrokenImage(path, str(error))
