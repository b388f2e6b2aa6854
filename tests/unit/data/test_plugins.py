"""HEIC, AVIF and JPEG XL as input images: upright, whole, not too large; and one sentence where a package is missing."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from dglaunch.data.images import BadImage, NeedsPackage, TooManyPixels, decode, open_image, probe
from dglaunch.data.plugins import PLUGINS, jxl_size
from support.edit_images import ADOBE, picture

pillow_heif = pytest.importorskip("pillow_heif")
pytest.importorskip("pillow_jxl")
pillow_heif.register_heif_opener()
SUFFIXES = {"HEIF": ".heic", "AVIF": ".avif", "JXL": ".jxl"}


def photo(kind: str, size: tuple[int, int] = (96, 64), orientation: int = 1, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    picture(3, size).save(buffer, kind, quality=95, exif=exif.tobytes(), **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", SUFFIXES)
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_photograph_is_upright(kind: str, orientation: int) -> None:
    data = photo(kind, orientation=orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation if kind != "JXL" else 1  # whose pixels stand as its own header says, not as EXIF does
    original = picture(3, (96, 64))
    original.getexif()[0x0112] = exif[0x0112]
    expected = np.asarray(ImageOps.exif_transpose(original).convert("RGB")).astype(int)
    found, turned = probe("x", Path("x"), data), decode(data)
    assert (found.shape.width, found.shape.height) == turned.size == expected.shape[1::-1]
    assert found.suffix == SUFFIXES[kind]
    assert abs(np.asarray(turned) - expected).mean() < 6


def test_a_jpeg_packed_into_a_jpeg_xl_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(3, (96, 64)).save(tmp_path / "a.jpg", quality=95, exif=exif)
    buffer = io.BytesIO()
    with Image.open(tmp_path / "a.jpg") as jpeg:
        jpeg.save(buffer, "JXL", lossless_jpeg=True)
    turned, shape = decode(buffer.getvalue()), probe("x", Path("x"), buffer.getvalue()).shape
    assert turned.size == (64, 96) == (shape.width, shape.height)
    expected = decode((tmp_path / "a.jpg").read_bytes())
    assert abs(np.asarray(turned).astype(int) - np.asarray(expected)).mean() < 2


@pytest.mark.parametrize("kind", SUFFIXES)
def test_what_is_torn_or_too_large_is_told(kind: str) -> None:
    data = photo(kind)
    for end in (40, len(data) // 2, len(data) - 30):
        with pytest.raises(BadImage, match="torn or damaged"):
            probe("x", Path("x"), data[:end])
    with pytest.raises(TooManyPixels):
        probe("x", Path("x"), data, max_pixels=96 * 64 - 1)
    assert probe("x", Path("x"), data, max_pixels=96 * 64)


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (63, 47), (1, 300), (513, 512), (8200, 3), (160, 90), (100, 50)])
@pytest.mark.parametrize("container", [False, True])
def test_the_size_of_a_jpeg_xl_is_known_before_it_is_decoded(size: tuple[int, int], container: bool) -> None:
    assert jxl_size(photo("JXL", size, use_container=container)) == size


def test_a_jpeg_xl_that_claims_a_billion_pixels_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    import pillow_jxl.JpegXLImagePlugin as plugin

    monkeypatch.setattr(plugin, "Decoder", lambda **_: pytest.fail("it was decoded"))
    bits = 0 | (3 << 1) | ((2**20 - 1) << 3) | (0 << 33) | (3 << 36) | ((2**20 - 1) << 38)
    with pytest.raises(TooManyPixels):
        open_image(b"\xff\x0a" + bits.to_bytes(12, "little"))


def test_the_colors_of_a_wide_gamut_become_srgb() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (150, 100, 100)).save(buffer, "HEIF", quality=95, icc_profile=ADOBE)
    assert probe("x", Path("x"), buffer.getvalue()).converted == "Adobe RGB (1998) to sRGB"
    assert max(abs(a - b) for a, b in zip(decode(buffer.getvalue()).getpixel((9, 9)), (167, 100, 100))) <= 4


@pytest.mark.parametrize("kind", SUFFIXES)
def test_without_its_package_one_sentence_names_the_extra(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = photo(kind)
    for module in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("PIL.features.check", lambda _: False)
    with pytest.raises(NeedsPackage) as told:
        probe("x", Path("x"), data)
    plugin = PLUGINS[kind]
    assert str(told.value) == (
        f"is a {plugin.name} image, for which {plugin.package} is needed: pip install 'dglaunch[photos]'"
    )


def test_what_only_begins_like_one_is_no_image() -> None:
    for data in (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"):
        with pytest.raises(BadImage):
            open_image(data)
