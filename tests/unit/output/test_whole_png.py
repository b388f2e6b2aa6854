"""A PNG that an API sent: written as it came, with our text in it."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dglaunch.output.encode import decode_description, encode
from dglaunch.output.whole_file import WholeFile, whole_png
from support.edit_images import picture

DESCRIPTION: dict[str, Any] = {"prompt": "ein Fuchs \u00fc", "seed": 7, "model": "m", "index": 3, "sample": 0}


def png(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def chunk(data: bytes, kind: bytes) -> bytes:
    start = data.index(kind)
    return data[start : start + int.from_bytes(data[start - 4 : start]) + 8]


def deep() -> Image.Image:
    return Image.fromarray(np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64))


@pytest.mark.parametrize("image", [picture(1), picture(1).convert("RGBA"), picture(1).convert("P"), deep()])
def test_nothing_but_the_text_is_another(image: Image.Image) -> None:
    foreign = PngInfo()
    foreign.add_text("prompt", "somebody else's")
    foreign.add_itxt("settings", '{"index": 99}')
    data = png(image, pnginfo=foreign, compress_level=9)
    found = whole_png(data)
    assert isinstance(found, WholeFile) and (found.width, found.height) == image.size
    written = encode(found, "png", DESCRIPTION)
    assert chunk(written, b"IDAT") == chunk(data, b"IDAT")
    shown = Image.open(io.BytesIO(written))
    shown.load()
    assert shown.mode == Image.open(io.BytesIO(data)).mode and shown.tobytes() == image.tobytes()
    assert decode_description(shown) == DESCRIPTION
    # The text is what an image of ours would carry.
    ours = Image.open(io.BytesIO(encode(image, "png", DESCRIPTION)))
    assert shown.text == ours.text  # type: ignore[attr-defined]


def test_what_is_torn_or_changed_is_told() -> None:
    data = png(picture(1))
    for end in range(9, len(data) - 1, 37):
        with pytest.raises(ValueError, match=r"whole|checksum"):
            whole_png(data[:end])
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    with pytest.raises(ValueError, match="checksum"):
        whole_png(bytes(changed))


def test_other_formats_are_none() -> None:
    buffer = io.BytesIO()
    picture(1).save(buffer, "JPEG")
    assert whole_png(buffer.getvalue()) is None and whole_png(b"") is None
