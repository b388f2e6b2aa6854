"""Input images: every format and orientation, decoded as a person sees them."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from dglaunch.data.images import BadImage, Cell, InputImage, decode, probe
from support.edit_images import ADOBE, bomb, picture


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_says(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = picture(3, (96, 64))
    data = encoded(stored, kind, exif=exif)
    turned = decode(data)
    shape = probe("x", Path("x"), data).shape
    assert (shape.width, shape.height) == turned.size == ((64, 96) if orientation >= 5 else (96, 64))
    ways = Image.Transpose
    way = {2: ways.FLIP_LEFT_RIGHT, 3: ways.ROTATE_180, 4: ways.FLIP_TOP_BOTTOM, 5: ways.TRANSPOSE, 6: ways.ROTATE_270,
           7: ways.TRANSVERSE, 8: ways.ROTATE_90}.get(orientation)  # fmt: skip
    expected = np.asarray(stored.transpose(way) if way is not None else stored).astype(int)
    assert abs(np.asarray(turned) - expected).mean() < 6


def test_alpha_greyscale_palette_and_16_bit() -> None:
    rgba = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert decode(encoded(rgba)).getpixel((0, 0)) == (255, 255, 255)
    half = Image.new("LA", (8, 8), (0, 128))
    assert decode(encoded(half)).getpixel((0, 0)) == (127, 127, 127)
    assert decode(encoded(picture(1, mode="L"))).getpixel((5, 5)) == (picture(1, mode="L").getpixel((5, 5)),) * 3
    palette = picture(1).convert("P")
    assert decode(encoded(palette)).tobytes() == palette.convert("RGB").tobytes()
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    deep = np.asarray(decode(encoded(Image.fromarray(ramp))))[..., 0].astype(int)
    assert abs(deep.ravel() - np.arange(256)).max() <= 1
    cmyk = decode(encoded(picture(1).convert("CMYK"), "JPEG"))
    assert cmyk.mode == "RGB" and cmyk.size == (64, 64)
    unit = Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8))
    assert decode(encoded(unit, "TIFF")).getpixel((7, 7)) == (255, 255, 255)


def test_cells_of_a_table_are_probed_too() -> None:
    with pytest.raises(BadImage, match="is empty"):
        probe("x", Cell(Path("t.parquet"), "input_images", 0, 0), b"")


def probed(data: bytes, **options: Any) -> InputImage:
    return probe("x", Path("x"), data, **options)


# -- what people have ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_once(compression: str | None, orientation: int) -> None:
    """Pillow turns a TIFF while it decodes it, and says its size as it will be: other formats are left as they are."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = picture(3, (96, 64))
    data = encoded(stored, "TIFF", exif=exif, compression=compression)
    turned, shape = decode(data), probed(data).shape
    as_png = decode(encoded(stored, exif=exif))
    assert (shape.width, shape.height) == turned.size == as_png.size
    assert turned.tobytes() == as_png.tobytes()


def tiff_16_bit(kind: str, values: np.ndarray) -> bytes:
    """A TIFF of 16 bits a channel, which Pillow does not write in color."""
    channels = 3 if kind == "RGB" else 1
    height, width = values.shape[:2]
    pixels = values.astype("<u2").tobytes()
    entries = {256: width, 257: height, 259: 1, 262: {"RGB": 2, "black": 1, "white": 0}[kind], 277: channels, 278: height,
               279: len(pixels)}  # fmt: skip
    bits_at = 8 + 2 + 12 * (len(entries) + 2) + 4
    entries |= {258: bits_at if channels == 3 else 16, 273: bits_at + 6}
    body = struct.pack("<H", len(entries))
    for tag, value in sorted(entries.items()):
        body += struct.pack("<HHII", tag, 3 if tag == 258 else 4, channels if tag == 258 else 1, value)
    return b"II*\0" + struct.pack("<I", 8) + body + bytes(4) + struct.pack("<HHH", 16, 16, 16) + pixels


def png_16_bit(color_type: int, values: np.ndarray) -> bytes:
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


RAMP = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
COLORS = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=2)
OPAQUE = np.full((16, 16, 1), 65535, np.uint16)
DEEP: dict[str, tuple[bytes, np.ndarray]] = {
    "grey PNG": (png_16_bit(0, RAMP), RAMP),
    "color PNG": (png_16_bit(2, COLORS), COLORS),
    "grey PNG with alpha": (png_16_bit(4, np.dstack([RAMP, OPAQUE])), RAMP),
    "color PNG with alpha": (png_16_bit(6, np.dstack([COLORS, OPAQUE])), COLORS),
    "grey TIFF": (tiff_16_bit("black", RAMP), RAMP),
    "grey TIFF of which 0 is white": (tiff_16_bit("white", RAMP), 65535 - RAMP),
    "color TIFF": (tiff_16_bit("RGB", COLORS), COLORS),
}


@pytest.mark.parametrize("what", DEEP)
def test_16_bit_images_by_their_pixels(what: str) -> None:
    data, values = DEEP[what]
    pixels = np.asarray(decode(data)).astype(int)
    expected = values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)
    assert np.abs(pixels - expected / 257).max() <= 1


NAMED = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255,) * 3, "black": (0,) * 3, "grey": (128,) * 3}  # fmt: skip


@pytest.mark.parametrize("color", NAMED)
@pytest.mark.parametrize(
    "kind", ["CMYK TIFF", "CMYK JPEG", "LAB TIFF", "palette PNG", "palette GIF", "BMP", "YCbCr TIFF"]
)
def test_colors_of_every_kind_of_pixels(kind: str, color: str) -> None:
    image = Image.new("RGB", (16, 16), NAMED[color])
    mode, _, file = kind.partition(" ")
    options: dict[str, Any] = {}
    if mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), lab, outputMode="LAB")
        image.info.clear()
    elif mode == "BMP":
        file = "BMP"
    elif mode == "palette":
        image = image.convert("P", palette=Image.Palette.ADAPTIVE)
    else:
        image = image.convert(mode)
    if file == "JPEG":
        options = {"quality": 100}
    pixel = decode(encoded(image, file, **options)).getpixel((8, 8))
    assert max(abs(a - b) for a, b in zip(pixel, NAMED[color])) <= (25 if mode == "LAB" else 6), pixel


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_one_bit_a_pixel(kind: str) -> None:
    image = Image.new("1", (16, 16), 1)
    image.putpixel((0, 0), 0)
    shown = decode(encoded(image, kind))
    assert (shown.getpixel((0, 0)), shown.getpixel((4, 4))) == ((0, 0, 0), (255, 255, 255))


def test_palette_with_a_transparent_color() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    for kind in ("PNG", "GIF"):
        shown = decode(encoded(image, kind, transparency=0))
        assert (shown.getpixel((0, 0)), shown.getpixel((4, 4))) == ((255, 255, 255), (0, 0, 255)), kind


# -- color profiles -----------------------------------------------------------------------------------------------


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_photograph_in_adobe_rgb_becomes_srgb(kind: str) -> None:
    """Muted colors gain; by the book: v ** 2.2, Adobe RGB's primaries to sRGB's, then sRGB's curve."""
    image = Image.new("RGB", (32, 32), (150, 100, 100))
    options: dict[str, Any] = {"quality": 100} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = encoded(image, kind, icc_profile=ADOBE, **options)
    pixel = decode(data).getpixel((9, 9))
    assert max(abs(a - b) for a, b in zip(pixel, (167, 100, 100))) <= (2 if kind == "JPEG" else 1), pixel
    assert probed(data).converted == "Adobe RGB (1998) to sRGB"
    plain = encoded(image, kind, **options)
    assert max(abs(a - b) for a, b in zip(decode(plain).getpixel((9, 9)), (150, 100, 100))) <= 1
    assert probed(plain).converted is None


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_what_is_srgb_already_is_left_alone(mode: str) -> None:
    image = picture(1).convert(mode)
    data = encoded(image, icc_profile=SRGB)
    assert probed(data).converted is None and decode(data).tobytes() == decode(encoded(image)).tobytes()


def test_a_profile_with_transparency() -> None:
    image = Image.new("RGBA", (8, 8), (150, 100, 100, 255))
    image.putpixel((0, 0), (150, 100, 100, 0))
    shown = decode(encoded(image, icc_profile=ADOBE))
    assert shown.getpixel((0, 0)) == (255, 255, 255) and abs(shown.getpixel((4, 4))[0] - 167) <= 1
    assert "icc_profile" not in shown.info


@pytest.mark.parametrize("profile", [b"no profile", ADOBE[:200], ADOBE[:128] + bytes(400), b"\0" * 4000])
def test_a_profile_that_cannot_be_used_is_no_obstacle(profile: bytes) -> None:
    image = Image.new("RGB", (8, 8), (150, 100, 100))
    data = encoded(image, icc_profile=profile)
    assert decode(data).getpixel((4, 4)) == (150, 100, 100)
    assert "taken as sRGB" in str(probed(data).converted)


def test_a_profile_of_other_pixels_is_no_obstacle() -> None:
    cmyk = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    data = encoded(cmyk, "TIFF", icc_profile=ADOBE)
    assert decode(data).getpixel((4, 4)) == (0, 255, 255)
    assert "does not fit its pixels" in str(probed(data).converted)


# -- torn, and too large ------------------------------------------------------------------------------------------


def with_thumbnail() -> bytes:
    """A JPEG whose EXIF holds a whole small one, as those of cameras do."""
    small, exif = encoded(picture(1, (16, 16)), "JPEG"), Image.Exif()
    exif[0x010E] = "x"
    large = encoded(picture(2, (256, 256)), "JPEG", exif=exif.tobytes() + small)
    assert large.count(b"\xff\xd9") == 2
    return large


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "with a thumbnail"])
def test_half_an_image_is_found_before_it_is_needed(kind: str) -> None:
    data = with_thumbnail() if kind == "with a thumbnail" else encoded(picture(2, (256, 256)), kind)
    assert probed(data).shape.width == 256
    for part in (0.95, 0.6, 0.1):
        with pytest.raises(BadImage):
            probed(data[: int(len(data) * part)])


def test_a_jpeg_with_something_behind_its_end_is_whole() -> None:
    """A phone's moving picture, or a second image."""
    data = encoded(picture(2, (256, 256)), "JPEG")
    for whole in (
        data + b"\0" * 100,
        data + b"ftypmp42" * 20,
        encoded(picture(2), "JPEG", progressive=True),
    ):
        assert probed(whole).suffix == ".jpg"


def test_pixels_are_limited_before_any_is_decoded() -> None:
    data = encoded(Image.new("L", (100, 90)))
    with pytest.raises(BadImage, match=r"more than 8,999 pixels.*--max_pixels"):
        probed(data, max_pixels=8999)
    assert probed(data, max_pixels=9000).shape.area == 9000
    with pytest.raises(BadImage, match=r"more than 89,478,485 pixels.*--max_pixels"):
        probed(bomb(9_460, 9_460))
    with pytest.raises(BadImage, match="more than 89,478,485 pixels"):
        decode(bomb())


def test_more_pixels_than_pillow_allows_can_be_asked_for() -> None:
    data = encoded(Image.new("1", (20_000, 10_000)))
    image = probed(data, max_pixels=200_000_000)
    assert image.shape.area == 200_000_000
    assert Image.MAX_IMAGE_PIXELS == 200_000_000
