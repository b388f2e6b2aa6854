"""Small pictures of results, for pages and contact sheets."""

import base64
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from dglaunch.data.images import BadImage, damage_is_a_bad_image, open_image, to_rgb
from dglaunch.output.images import StoredImage

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL_QUALITY = 60


def make_thumbnails(images: Sequence[StoredImage | None], side: int) -> list[str | None]:
    """Return a WebP data address for each image that can be read (Pillow decodes outside of Python's lock)."""

    def data_address(stored: StoredImage | None) -> str | None:
        image = small(stored, side) if stored is not None else None
        if image is None:
            return None
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=THUMBNAIL_QUALITY)
        return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(data_address, images))


def small(stored: StoredImage, side: int) -> "Image | None":
    """Return a picture of at most `side` pixels, or None where the image is missing or broken."""
    from PIL import Image, ImageOps

    try:
        with damage_is_a_bad_image(), open_image(stored.read_own()) as image:
            image.draft("RGB", (side, side))
            upright = to_rgb(ImageOps.exif_transpose(image))
            upright.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
            return upright
    except (OSError, BadImage):
        return None
