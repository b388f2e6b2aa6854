"""Small pictures of results: inside of the gallery's page, or many of them on one contact sheet."""

import base64
import io
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from dglaunch.atomic import atomic_write
from dglaunch.data.images import BadImage, damage_is_a_bad_image, open_image, to_rgb
from dglaunch.data.task import Record
from dglaunch.errors import OutputError, UserError
from dglaunch.files import is_regular, open_regular
from dglaunch.output.ledger import file_name_of, format_of
from dglaunch.output.ownership import CONTACT_SHEET, path_inside, refuse_to_replace

if TYPE_CHECKING:
    from PIL.Image import Image

SHEET_MOST = 400
"""Images on a contact sheet."""
PREVIEW_MOST, PREVIEW_WIDTH = 24, 600
"""Images of a result that a notebook shows (1 MB of photographs), and pixels for its line of text."""
SHEET_TILE = 192
SHEET_LABEL = 30
SHEET_GAP = 8
THUMBNAIL_QUALITY = 60


def make_thumbnails(folder: Path, files: Sequence[str | None], side: int) -> list[str | None]:
    """Return a WebP data address for each file that can be read (Pillow decodes outside of Python's lock)."""

    def data_address(name: str | None) -> str | None:
        image = _small(folder / name, side) if name else None
        if image is None:
            return None
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=THUMBNAIL_QUALITY)
        return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(data_address, files))


def write_contact_sheet(folder: Path, path: Path, rows: Iterable[Record]) -> int:
    """Write one image with the first results in rows and columns, each with its file name and the beginning of its prompt.

    Returns:
        How many are on it.

    Raises:
        UserError: there are no images, it is no kind of image that can be written, or there is another file.
        OutputError: it cannot be written.
    """
    from dglaunch.output.encode import encode

    output_format = format_of(path)
    if output_format is None:
        raise UserError(f"--contact_sheet {path}: name a .png, .jpg or .webp file.")
    refuse_to_replace(path)
    tiles = list(islice(_tiles(folder, rows), SHEET_MOST))
    if not tiles:
        raise UserError(f"{folder} has no image for --contact_sheet yet.")
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(encode(_sheet(tiles), output_format, {CONTACT_SHEET: len(tiles)}))
    except OSError as error:
        raise OutputError(f"The contact sheet {path} cannot be written: {error.strerror or error}.") from None
    return len(tiles)


def preview(folder: Path, rows: Iterable[Record], title: str) -> bytes | None:
    """Return a PNG with the first results as on a contact sheet, under a line of text; None if none can be read."""
    from PIL import Image

    tiles = list(islice(_tiles(folder, rows), PREVIEW_MOST))
    if not tiles:
        return None
    sheet = _sheet(tiles)
    whole = Image.new("RGB", (max(sheet.width, PREVIEW_WIDTH), sheet.height + SHEET_LABEL), "white")
    whole.paste(sheet, (0, SHEET_LABEL))
    _label(whole, SHEET_GAP, SHEET_GAP, [title], whole.width - 2 * SHEET_GAP)
    buffer = io.BytesIO()
    whole.save(buffer, "PNG")
    return buffer.getvalue()


def _sheet(tiles: "Sequence[tuple[Record, Image]]") -> "Image":
    from PIL import Image

    columns = min(len(tiles), max(4, math.ceil(math.sqrt(len(tiles) * 1.25))))
    width, height = SHEET_TILE + SHEET_GAP, SHEET_TILE + SHEET_LABEL + SHEET_GAP
    rows = math.ceil(len(tiles) / columns)
    sheet = Image.new("RGB", (columns * width + SHEET_GAP, rows * height + SHEET_GAP), "white")
    for number, (row, picture) in enumerate(tiles):
        left, top = SHEET_GAP + number % columns * width, SHEET_GAP + number // columns * height
        middle = left + (SHEET_TILE - picture.width) // 2, top + (SHEET_TILE - picture.height) // 2
        sheet.paste(picture, middle)
        _label(sheet, left, top + SHEET_TILE + 2, [file_name_of(row), str(row.get("prompt", ""))])
    return sheet


def _tiles(folder: Path, rows: Iterable[Record]) -> "Iterator[tuple[Record, Image]]":
    """The pictures that can be read, each as large as a tile."""
    for row in rows:
        name = path_inside(row.get("file_name"))
        picture = _small(folder / name, SHEET_TILE) if name else None
        if picture is None:
            continue
        if max(picture.size) < SHEET_TILE:
            scale = SHEET_TILE / max(picture.size)
            picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
        yield row, picture


def _small(path: Path, side: int) -> "Image | None":
    """A picture of at most `side` pixels, or None where the file is missing or broken."""
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


def _label(sheet: "Image", left: int, top: int, lines: Iterable[str], width: int = SHEET_TILE) -> None:
    """Lines of text, cut to a width; Pillow's own font has no letters beyond Latin."""
    from PIL import ImageDraw, ImageFont

    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for number, line in enumerate(lines):
        text = " ".join(line.split()).encode("latin-1", "replace").decode("latin-1")[:200]
        cut = text
        while cut and draw.textlength(cut, font=font) > width:
            text = text[:-1]
            cut = text.rstrip() + "..."
        draw.text((left, top + 14 * number), cut, font=font, fill="#222222" if not number else "#666666")
