"""Every kind of image that a camera or the web yields, made by PIL, and every way in which a file can be broken."""

import io
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from swinv2.errors import UsageError
from swinv2.images import SUFFIXES, BrokenImageError, ImageLimits, find_images, grey_to_rgb, read_image

RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def halves(
    mode: str = "RGB", size: tuple[int, int] = (20, 10), left: object = RED, right: object = BLUE
) -> Image.Image:
    """An image whose left half has one colour and whose right half another."""
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, size[0], size[1]))
    return image


def close(pixel: object, expected: tuple[int, int, int], tolerance: int = 3) -> bool:
    return bool(np.abs(np.subtract(pixel, expected)).max() <= tolerance)


def read(folder: Path, image: Image.Image, name: str, **options: object) -> Image.Image:
    image.save(folder / name, **options)
    result = read_image(folder / name)
    assert result.mode == "RGB"
    return result


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp", "a.ppm", "a.tga", "a.gif", "a.jp2", "a.ico"])
def test_formats_give_the_same_pixels(tmp_path: Path, name: str) -> None:
    options = {"lossless": True} if name.endswith("webp") else {}
    result = read(tmp_path, halves(size=(32, 32)), name, **options)
    assert result.size == (32, 32)
    assert close(result.getpixel((1, 5)), RED)
    assert close(result.getpixel((30, 5)), BLUE)


@pytest.mark.parametrize(
    ("orientation", "upper_left", "size"),
    [
        (1, RED, (20, 10)),
        (2, BLUE, (20, 10)),
        (3, BLUE, (20, 10)),
        (4, RED, (20, 10)),
        (5, RED, (10, 20)),
        (6, RED, (10, 20)),
        (7, BLUE, (10, 20)),
        (8, BLUE, (10, 20)),
    ],
)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_exif_orientation_sets_the_image_upright(
    tmp_path: Path, orientation: int, upper_left: tuple[int, int, int], size: tuple[int, int], name: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {".jpg": {"quality": 95, "subsampling": 0}, ".webp": {"lossless": True}}.get(name[1:], {})
    result = read(tmp_path, halves(), name, exif=exif, **options)
    assert result.size == size
    assert close(result.getpixel((0, 0)), upper_left, 8)


def test_exif_that_cannot_be_written_turns_the_image_all_the_same(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    halves().save(tmp_path / "a.jpg", exif=exif)
    # The resolution, a fraction, becomes a text, which PIL reads and does not write.
    data = (tmp_path / "a.jpg").read_bytes()
    assert data.count(b"\x1a\x01\x05\x00") + data.count(b"\x01\x1a\x00\x05") == 1
    data = data.replace(b"\x1a\x01\x05\x00", b"\x1a\x01\x02\x00").replace(b"\x01\x1a\x00\x05", b"\x01\x1a\x00\x02")
    (tmp_path / "a.jpg").write_bytes(data)
    with Image.open(tmp_path / "a.jpg") as image, pytest.raises((TypeError, AttributeError, ValueError)):
        ImageOps.exif_transpose(image)
    assert read_image(tmp_path / "a.jpg").size == (10, 20)


def test_damaged_exif_leaves_a_valid_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    halves().save(data, "WEBP", lossless=True, exif=exif)
    (tmp_path / "a.webp").write_bytes(data.getvalue().replace(b"II*\0", b"QQ*\0").replace(b"MM\0*", b"QQ\0*"))
    assert read_image(tmp_path / "a.webp").size == (20, 10)


def test_grey_and_bilevel(tmp_path: Path) -> None:
    assert read(tmp_path, halves("L", left=10, right=200), "grey.png").getpixel((15, 0)) == (200, 200, 200)
    assert read(tmp_path, halves("1", left=0, right=1), "bilevel.png").getpixel((15, 0)) == WHITE


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    transparent = halves("RGBA", left=(255, 0, 0, 255), right=(0, 0, 0, 0))
    for name in ("alpha.png", "alpha.tif"):
        result = read(tmp_path, transparent, name)
        assert (result.getpixel((0, 0)), result.getpixel((19, 0))) == (RED, WHITE)
    half = read(tmp_path, halves("RGBA", left=(0, 0, 0, 128), right=(0, 0, 0, 255)), "half.png")
    assert close(half.getpixel((0, 0)), (127, 127, 127))
    grey = read(tmp_path, halves("LA", left=(100, 255), right=(100, 0)), "grey.png")
    assert (grey.getpixel((0, 0)), grey.getpixel((19, 0))) == ((100, 100, 100), WHITE)


def test_palettes(tmp_path: Path) -> None:
    image = Image.new("P", (20, 10), 0)
    image.putpalette([255, 0, 0, 0, 0, 255, 9, 9, 9])
    image.paste(1, (10, 0, 20, 10))
    plain = read(tmp_path, image, "palette.png")
    assert (plain.getpixel((0, 0)), plain.getpixel((19, 0))) == (RED, BLUE)
    one = read(tmp_path, image, "one_transparent.png", transparency=1)
    assert (one.getpixel((0, 0)), one.getpixel((19, 0))) == (RED, WHITE)
    by_bytes = read(tmp_path, image, "bytes.png", transparency=bytes([0, 255]))
    assert (by_bytes.getpixel((0, 0)), by_bytes.getpixel((19, 0))) == (WHITE, BLUE)


def test_transparent_colour_without_a_palette(tmp_path: Path) -> None:
    colour = read(tmp_path, halves(), "colour.png", transparency=BLUE)
    assert (colour.getpixel((0, 0)), colour.getpixel((19, 0))) == (RED, WHITE)
    grey = read(tmp_path, halves("L", left=10, right=20), "grey.png", transparency=20)
    assert (grey.getpixel((0, 0)), grey.getpixel((19, 0))) == ((10, 10, 10), WHITE)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    result = read(tmp_path, halves("CMYK", left=(0, 255, 255, 0), right=(255, 255, 0, 0)), "a.jpg", quality=95)
    assert close(result.getpixel((2, 2)), RED, 12)
    assert close(result.getpixel((17, 2)), BLUE, 12)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_keep_their_brightness(tmp_path: Path, name: str) -> None:
    values = np.array([[0, 257 * 40, 257 * 128, 65535]], dtype=np.uint16)
    result = read(tmp_path, Image.fromarray(values), name)
    assert [result.getpixel((column, 0))[0] for column in range(4)] == [0, 40, 128, 255]


def test_thirty_two_bits_keep_their_brightness(tmp_path: Path) -> None:
    integers = read(tmp_path, Image.fromarray(np.array([[-5, 2**30, 2**31 - 1]], dtype=np.int32)), "integers.tif")
    assert [integers.getpixel((column, 0))[0] for column in range(3)] == [0, 128, 255]
    floats = np.array([[0.0, 0.5, 1.0, np.nan]], dtype=np.float32)
    result = read(tmp_path, Image.fromarray(floats), "floats.tif")
    assert [result.getpixel((column, 0))[0] for column in range(4)] == [0, 128, 255, 0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 65535]], dtype=np.int32), 255),
        (np.array([[0, 255]], dtype=np.uint16), 1),
        (np.array([[0.0, 1.0]]), 255),
        (np.array([[0.0, 255.0]]), 255),
        (np.array([[0.0, 100.0]]), 100),
        (np.array([[0.0, 65535.0]]), 255),
        (np.array([[0.0, 1e9]]), 255),
        (np.array([[-1.0, 0.0]]), 0),
    ],
)
def test_white_of_grey(values: np.ndarray, expected: int) -> None:
    assert grey_to_rgb(values).getpixel((1, 0)) == (expected,) * 3


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (1, 1), 77), 77),
        (Image.fromarray(np.full((1, 1), 257 * 77, np.uint16)), 77),
        (Image.new("RGB", (1, 1), (255, 0, 0)), 76),
    ],
    ids=["eight bits", "sixteen bits", "red"],
)
def test_one_channel_is_grey(tmp_path: Path, image: Image.Image, expected: int) -> None:
    image.save(tmp_path / "a.png")
    grey = read_image(tmp_path / "a.png", 1)
    assert (grey.mode, grey.getpixel((0, 0))) == ("L", expected)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_channels_are_in_no_file(channels: int) -> None:
    with pytest.raises(UsageError, match=f"the model takes {channels} channels, but an image file has 3, or 1 as grey"):
        read_image(b"", channels)


def test_big_endian_grey() -> None:
    values = np.array([[0, 257 * 40]], dtype=np.uint16)
    image = Image.frombytes("I;16B", (2, 1), values.astype(">u2").tobytes())
    assert grey_to_rgb(np.asarray(image)).getpixel((1, 0)) == (40, 40, 40)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_animations_give_their_first_frame(tmp_path: Path, name: str) -> None:
    first, second = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)
    options = {"lossless": True} if name.endswith("webp") else {}
    result = read(tmp_path, first, name, save_all=True, append_images=[second], **options)
    assert close(result.getpixel((4, 4)), RED)


def test_one_pixel(tmp_path: Path) -> None:
    assert read(tmp_path, Image.new("RGB", (1, 1), RED), "a.png").getpixel((0, 0)) == RED


def test_large_images_pass_up_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (30, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)
    assert read_image(tmp_path / "a.png").size == (30, 10)  # above PIL's soft limit, of which it would warn
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 149)
    with pytest.raises(BrokenImageError, match="more than 298 pixels"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.webp", "a.tif", "a.bmp", "a.jp2"])
def test_truncated_files_are_broken(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(BrokenImageError, match=r"\w"):
        read_image(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.png", b"", "the file is empty"),
        ("text.jpg", b"not a picture", "not an image"),
        ("photo.heic", b"\0\0\0\x18ftypheic", "pillow-heif"),
        ("bomb.png", None, "more than 178,956,970 pixels"),
    ],
)
def test_reasons(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    if content is None:
        header = io.BytesIO()
        Image.new("L", (1, 1)).save(header, "PNG")
        content = header.getvalue()
        # A header that claims 60,000 x 60,000 pixels, with its checksum.
        chunk = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + content[24:29]
        content = content[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + content[33:]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BrokenImageError, match=reason):
        read_image(tmp_path / name)


def test_missing_files_and_folders_are_broken(tmp_path: Path) -> None:
    with pytest.raises(BrokenImageError, match="no such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(BrokenImageError, match="directory"):
        read_image(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
def test_forbidden_files_are_broken(tmp_path: Path) -> None:
    halves().save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(BrokenImageError, match="permission denied"):
        read_image(tmp_path / "a.png")


def make_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names_of(paths: list[Path], folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in paths]


def test_folders_are_searched_to_their_depth(tmp_path: Path) -> None:
    make_files(
        tmp_path,
        "10.jpg",
        "9.JPG",
        "notes.txt",
        "sub/2.png",
        "sub/1.png",
        ".hidden/3.png",
        "._9.jpg",
        "a.heic",
        "a.mpg",
    )
    paths, missing = find_images([tmp_path])
    assert names_of(paths, tmp_path) == ["10.jpg", "9.JPG", "a.heic", "sub/1.png", "sub/2.png"]
    assert missing == []


def test_links_to_folders_are_followed_and_circles_end(tmp_path: Path) -> None:
    make_files(tmp_path / "elsewhere", "1.jpg", "deep/2.jpg")
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    # Two circles: `glob.glob` would list 2 ** 40 folders.
    for name in ("up", "up again"):
        (tmp_path / "elsewhere" / "deep" / name).symlink_to(folder)
    found = ["link/1.jpg", "link/deep/2.jpg"]
    assert names_of(find_images([folder])[0], folder) == found
    for pattern in ("**", "**/*.jpg", "**/*", "link/**/*.jpg", "l*"):
        assert names_of(find_images([f"{folder}/{pattern}"])[0], folder) == found


def test_globs_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(tmp_path, "a.jpg", "sub/b.jpg", "sub/.hidden/c.jpg", "sub/deep/d.png")
    monkeypatch.chdir(tmp_path)
    assert find_images(["**/*.jpg"])[0] == [Path("a.jpg"), Path("sub/b.jpg")]
    assert find_images(["sub/**/*.*"])[0] == [Path("sub/b.jpg"), Path("sub/deep/d.png")]


def test_suffixes_are_those_that_people_have() -> None:
    assert {
        ".jpg",
        ".jpeg",
        ".png",
        ".webp",
        ".tif",
        ".bmp",
        ".gif",
        ".avif",
        ".jp2",
        ".mpo",
        ".heic",
        ".jxl",
    } <= SUFFIXES


def test_globs(tmp_path: Path) -> None:
    make_files(tmp_path, "b10.png", "b9.png", "b.txt", "sub/c.jpg", "sub/deep/d.jpg", "[1].png")
    assert names_of(find_images([f"{tmp_path}/b*"])[0], tmp_path) == ["b10.png", "b9.png"]
    assert names_of(find_images([f"{tmp_path}/**/*.jpg"])[0], tmp_path) == ["sub/c.jpg", "sub/deep/d.jpg"]
    assert names_of(find_images([f"{tmp_path}/s*"])[0], tmp_path) == ["sub/c.jpg", "sub/deep/d.jpg"]
    assert len(find_images([f"{tmp_path}/**"])[0]) == 5
    assert names_of(find_images([tmp_path / "[1].png"])[0], tmp_path) == ["[1].png"]  # a name before it is a pattern


def test_files_are_taken_once_in_the_order_of_the_inputs(tmp_path: Path) -> None:
    make_files(tmp_path, "a.png", "b.png", "odd.data")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    inputs = [tmp_path / "odd.data", tmp_path / "b.png", tmp_path, f"{tmp_path}/*.png", tmp_path / "link.png"]
    assert names_of(find_images(inputs)[0], tmp_path) == ["odd.data", "b.png", "a.png"]


def test_missing_inputs_are_named(tmp_path: Path) -> None:
    make_files(tmp_path, "a.png")
    paths, missing = find_images([tmp_path / "gone.png", tmp_path / "a.png", "https://example.org/a.png"])
    assert names_of(paths, tmp_path) == ["a.png"]
    assert [image.reason for image in missing] == [
        "no such file or folder",
        "an address, not a file; download it first",
    ]


def test_nothing_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        find_images([tmp_path / "gone"])
    with pytest.raises(UsageError, match="no image was found"):
        find_images([tmp_path])
    with pytest.raises(UsageError, match="no image was given"):
        find_images([])


def as_file(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


class TestUntrustedImages:
    """Limits that are checked before pixels are decoded."""

    LIMITS = ImageLimits(10_000)

    @pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "PNG", "WEBP"])
    def test_formats_of_the_web_give_the_same_pixels(self, kind: str) -> None:
        data = as_file(halves(), kind)
        assert read_image(data, limits=self.LIMITS).tobytes() == read_image(data).tobytes()

    @pytest.mark.parametrize("kind", ["TIFF", "EPS", "PPM", "TGA", "ICO", "PCX", "JPEG2000"])
    def test_other_formats_are_refused(self, kind: str) -> None:
        with pytest.raises(BrokenImageError, match="not an image in a format that is read here: BMP, GIF"):
            read_image(as_file(halves(), kind), limits=self.LIMITS)

    def test_pixels_are_counted_before_they_are_decoded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
        with pytest.raises(BrokenImageError, match="it has 10,100 pixels; the limit is 10,000"):
            read_image(as_file(Image.new("RGB", (101, 100)), "PNG"), limits=self.LIMITS)

    def test_above_the_limit_of_pil_the_message_has_ours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = as_file(Image.new("RGB", (300, 300)), "PNG")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
        with pytest.raises(BrokenImageError, match="more than 10,000 pixels"):
            read_image(data, limits=self.LIMITS)

    def test_sides_may_differ_by_a_factor_of_a_hundred(self) -> None:
        assert read_image(as_file(Image.new("RGB", (1, 100)), "PNG"), limits=self.LIMITS).size == (1, 100)
        with pytest.raises(BrokenImageError, match="it has 1 x 101 pixels"):
            read_image(as_file(Image.new("RGB", (1, 101)), "PNG"), limits=self.LIMITS)

    def test_scans_of_a_jpeg(self, tmp_path: Path) -> None:
        """Each scan takes time; their bytes in a comment, or behind the image as in a motion photo, do not count."""
        data = as_file(Image.effect_noise((64, 64), 60), "JPEG", progressive=True)
        last = data.rindex(b"\xff\xda")
        few, many = (data[:last] + data[last:-2] * count + b"\xff\xd9" for count in (50, 150))
        comment = b"\xff\xfe" + (2 + 400).to_bytes(2, "big") + b"\xff\xda" * 200
        for file in (few, few + b"\xff\xda\0\2" * 500, few[:2] + comment + few[2:]):
            assert read_image(file, limits=self.LIMITS).size == (64, 64)
        (tmp_path / "many.jpg").write_bytes(many)
        for source in (many, tmp_path / "many.jpg"):
            with pytest.raises(BrokenImageError, match="more than 100 scans"):
                read_image(source, limits=self.LIMITS)

    def test_run_lengths_of_a_bmp(self) -> None:
        head = b"BM" + (1078).to_bytes(4, "little") + bytes(4) + (1078).to_bytes(4, "little")
        fields = (40, 20, 10), (1, 8), (1, 4, 0, 0, 256, 0)
        sizes = (4, 4, 4), (2, 2), (4,) * 6
        for values, widths in zip(fields, sizes, strict=True):
            head += b"".join(value.to_bytes(width, "little") for value, width in zip(values, widths, strict=True))
        file = head + bytes(1024) + b"\x14\0\0\0" * 10 + b"\0\1"
        assert read_image(file).size == (20, 10)
        with pytest.raises(BrokenImageError, match="a BMP with run lengths"):
            read_image(file, limits=self.LIMITS)

    def test_an_empty_file_is_said_to_be_empty(self) -> None:
        with pytest.raises(BrokenImageError, match="the file is empty"):
            read_image(b"", limits=self.LIMITS)


def test_faults_of_decoders_are_sentences(tmp_path: Path) -> None:
    """PIL writes an ICNS file of a palette image that it cannot convert."""
    Image.new("P", (32, 32)).save(tmp_path / "icon.icns")
    with pytest.raises(BrokenImageError, match="damaged"):
        read_image(tmp_path / "icon.icns")
