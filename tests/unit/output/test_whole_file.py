"""A JPEG or WebP that an API sent: written as it came, with our text in it. (PNG: test_whole_png.py)"""

import io
from typing import Any

import pytest
from PIL import Image

from dglaunch.backends.api.answers import picture as picture_of
from dglaunch.output.encode import decode_description, encode
from dglaunch.output.whole_file import WholeFile
from support.edit_images import picture

DESCRIPTION: dict[str, Any] = {"prompt": "ein Fuchs \u00fc", "seed": 7, "model": "m", "index": 3, "sample": 0}
FORMATS = {"jpg": "JPEG", "webp": "WEBP"}


def saved(image: Image.Image, output_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, FORMATS[output_format], **options)
    return buffer.getvalue()


def foreign() -> Image.Exif:
    exif = Image.Exif()
    exif[0x010E] = '{"index": 99}'
    return exif


@pytest.mark.parametrize(
    ("output_format", "image", "options"),
    [
        ("jpg", picture(1), {"quality": 40}),
        ("jpg", picture(1), {"quality": 40, "progressive": True, "exif": foreign(), "icc_profile": b"x" * 9}),
        ("webp", picture(1), {"quality": 40}),
        ("webp", picture(1), {"quality": 40, "exif": foreign(), "icc_profile": b"x" * 9}),
        ("webp", picture(1), {"lossless": True}),
        ("webp", picture(1).convert("RGBA"), {"quality": 40}),
        ("webp", Image.new("RGBA", (33, 17), (200, 0, 0, 90)), {"lossless": True}),
    ],
)
def test_nothing_but_the_text_is_another(output_format: str, image: Image.Image, options: dict[str, Any]) -> None:
    data = saved(image, output_format, **options)
    found = picture_of(data, output_format)
    assert isinstance(found, WholeFile) and (found.width, found.height) == image.size
    shown = Image.open(io.BytesIO(encode(found, output_format, DESCRIPTION, "for viewers")))
    sent = Image.open(io.BytesIO(data))
    shown.load()
    assert (shown.mode, shown.tobytes()) == (sent.mode, sent.tobytes())
    assert shown.info.get("icc_profile") == sent.info.get("icc_profile")
    assert decode_description(shown) == DESCRIPTION
    ours = Image.open(io.BytesIO(encode(image, output_format, DESCRIPTION, "for viewers")))
    assert dict(shown.getexif().get_ifd(0x8769)) == dict(ours.getexif().get_ifd(0x8769))


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(picture(1), "jpg", exif=exif)


@pytest.mark.parametrize(
    ("output_format", "data"),
    [
        ("webp", saved(picture(1), "jpg")),
        ("jpg", saved(picture(1), "webp")),
        ("jpg", saved(picture(1).convert("L"), "jpg")),
        ("jpg", saved(picture(1).convert("CMYK"), "jpg")),
        ("jpg", turned()),
        ("webp", saved(picture(1), "webp", save_all=True, append_images=[picture(2)])),
    ],
)
def test_others_are_drawn_anew(output_format: str, data: bytes) -> None:
    found = picture_of(data, output_format)
    assert isinstance(found, Image.Image)
    assert decode_description(Image.open(io.BytesIO(encode(found, output_format, DESCRIPTION)))) == DESCRIPTION


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_file_with_junk_in_it_never_breaks_the_run(output_format: str) -> None:
    from dglaunch.backends.api.answers import RequestError

    data = saved(picture(1), output_format, quality=40)
    for at in range(0, len(data), 17):
        changed = data[:at] + b"\xff\xff\xff" + data[at + 3 :]
        try:
            found = picture_of(changed, output_format)
        except RequestError:
            continue
        Image.open(io.BytesIO(encode(found, output_format, DESCRIPTION))).load()
