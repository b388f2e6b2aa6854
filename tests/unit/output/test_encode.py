"""Pictures to files: each format shows what the picture shows, whatever its mode."""

import io

import pytest
from PIL import Image

from dglaunch.data.images import to_rgb
from dglaunch.output.encode import encode
from support.edit_images import ADOBE, picture

FORMATS = ["png", "jpg", "webp"]
MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"]


def written(image: Image.Image, output_format: str) -> Image.Image:
    return Image.open(io.BytesIO(encode(image, output_format, {"prompt": "x"})))


def test_transparency_becomes_white_in_a_jpeg_and_stays_in_the_others() -> None:
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (16, 0, 32, 32))
    jpeg = written(image, "jpg")
    assert min(jpeg.getpixel((3, 9))) >= 250, "the numbers below alpha 0 are black"
    red, green, blue = jpeg.getpixel((28, 9))
    assert red >= 245 and max(green, blue) <= 10
    for output_format in ("png", "webp"):
        assert written(image, output_format).getpixel((3, 9))[3] == 0


@pytest.mark.parametrize("mode", ["LA", "P"])
def test_other_kinds_of_transparency(mode: str) -> None:
    image = Image.new(mode, (16, 16), (0, 0) if mode == "LA" else 0)
    if mode == "P":
        image.info["transparency"] = 0
    assert min(written(image, "jpg").getpixel((3, 9))) >= 250
    assert written(image, "webp").convert("RGBA").getpixel((3, 9))[3] == 0


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_any_mode_is_written_as_it_looks(mode: str, output_format: str) -> None:
    grey = picture(5).convert("L")
    image = grey.convert("I").point(lambda v: v * 257).convert("I;16") if mode == "I;16" else picture(5).convert(mode)
    shown, expected = to_rgb(written(image, output_format)), to_rgb(image)
    apart = [abs(a - b) for a, b in zip(shown.tobytes(), expected.tobytes())]
    assert sum(apart) / len(apart) < (0.01 if output_format == "png" else 16 if mode == "P" else 6)  # dots are lost


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_color_profile_is_not_lost(output_format: str) -> None:
    """An API may send one."""
    sent = Image.open(io.BytesIO(encode(Image.new("RGB", (32, 32), (150, 100, 100)), "png", {})))
    sent.info["icc_profile"] = ADOBE
    shown = to_rgb(written(sent, output_format)).getpixel((9, 9))
    assert max(abs(a - b) for a, b in zip(shown, (167, 100, 100))) <= 4
