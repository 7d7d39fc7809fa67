"""Files that are made to hurt whoever reads them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from serving.clients import encode


def png(width: int, height: int, *chunks: tuple[bytes, bytes], data: bytes = b"") -> bytes:
    """A PNG of a size, with further chunks in front of its pixels, of which most are missing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    all_chunks = [(b"IHDR", header), *chunks, (b"IDAT", data or zlib.compress(bytes(1000))), (b"IEND", b"")]
    checked = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in all_chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(checked)


def bmp(width: int, height: int, compression: int = 0, pixels: bytes = b"") -> bytes:
    """A BMP of a size."""
    offset = 54 + 1024
    head = b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, len(pixels), 0, 0, 256, 0)
    return head + info + bytes(1024) + pixels


def large_jpeg() -> bytes:
    """A JPEG whose header says 65,000 x 65,000 pixels."""
    data = encode(Image.new("RGB", (16, 16)), "JPEG")
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", 65000, 65000) + data[place + 4 :]


def many_scans(count: int = 3000) -> bytes:
    """A progressive JPEG with its last scan many times: small, and slow to decode."""
    data = encode(Image.effect_noise((1200, 1200), 60), "JPEG", progressive=True, quality=30)
    begin = data.rindex(b"\xff\xda")
    scan = data[begin:-2][:200]
    return data[:begin] + scan * count + b"\xff\xd9"


def tiff_with_a_large_tile(side: int = 10000) -> bytes:
    """A TIFF of 10 x 10 pixels in a tile of 100 million."""
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(side * 100)) for _ in range(side // 100)) + packer.flush()
    values = {256: 10, 257: 10, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 0, 325: len(data)}
    values[324] = 8 + 2 + 12 * len(values) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4) + data


def avif_that_lies() -> bytes:
    """An AVIF of 3000 x 3000 pixels whose header says 10 x 10; of WebP if PIL has no AVIF."""
    try:
        data = encode(Image.new("RGB", (3000, 3000)), "AVIF", speed=10)
    except (KeyError, OSError):
        return b"\0\0\0 ftypavif" + bytes(100)
    place = data.index(b"ispe") + 8
    return data[:place] + struct.pack(">II", 10, 10) + data[place + 8 :]


def icon_with_a_large_png() -> bytes:
    """An ICO of 16 x 16 pixels with a PNG of many in it."""
    inside = png(12000, 12000)
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inside), 22) + inside


def circular_exif() -> bytes:
    """A JPEG whose EXIF directories refer to each other."""
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<HHII", 0x0112, 3, 1, 99)
    tiff = b"II*\0" + struct.pack("<IH", 8, 2) + entry + struct.pack("<I", 8)
    return encode(Image.new("RGB", (20, 20)), "JPEG", exif=b"Exif\0\0" + tiff)


def long_animation(frames: int = 300) -> bytes:
    """A GIF of many frames."""
    colours = [Image.new("P", (8, 8), index % 250) for index in range(frames)]
    return encode(colours[0], "GIF", save_all=True, append_images=colours[1:], optimize=False)


def noise(kind: str) -> bytes:
    """A valid file of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    return encode(Image.fromarray(pixels), kind)


def zip_bomb() -> bytes:
    """A ZIP archive of zeros."""
    import zipfile

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0", bytes(10_000_000))
    return file.getvalue()
