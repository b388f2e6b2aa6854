"""Input images: every format and orientation, decoded as a person sees them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dglaunch.data.images import BadImage, Cell, decode, probe
from support.edit_images import picture


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
