"""Small pictures of results, for pages and contact sheets."""

import base64
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from dglaunch.data.images import BadImage, damage_is_a_bad_image, open_image, to_rgb
from dglaunch.files import is_regular, open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL_QUALITY = 60


def make_thumbnails(folder: Path, files: Sequence[str | None], side: int) -> list[str | None]:
    """Return a WebP data address for each file that can be read (Pillow decodes outside of Python's lock)."""

    def data_address(name: str | None) -> str | None:
        image = small(folder / name, side) if name else None
        if image is None:
            return None
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=THUMBNAIL_QUALITY)
        return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(data_address, files))


def small(path: Path, side: int) -> "Image | None":
    """Return a picture of at most `side` pixels, or None where the file is missing or broken."""
    from PIL import Image, ImageOps

    if not is_regular(path):
        return None
    try:
        with open_regular(path) as data, damage_is_a_bad_image(), open_image(data) as image:
            image.draft("RGB", (side, side))
            upright = to_rgb(ImageOps.exif_transpose(image))
            upright.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
            return upright
    except (OSError, BadImage):
        return None
