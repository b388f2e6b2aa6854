"""Input images of an edit: where they are, what their headers say, and how they become RGB.

Before the run `probe` reads each distinct file once: is it there, is it an image, how large, is it whole, its sha256. Just
before a batch its images are decoded: PNG, JPEG, WebP, HEIC and a few others, turned as their EXIF orientation says, colors
converted to sRGB, alpha flattened on white, 16 bit scaled to 8. Whatever is wrong with a file is a `BadImage`, which
concerns its row alone.
"""

import hashlib
import io
import os
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from dglaunch.addresses import Address
from dglaunch.config import MAX_PIXELS
from dglaunch.data import plugins, profiles
from dglaunch.files import read_bytes
from dglaunch.models.shape import Shape
from dglaunch.storage.local import local_file, read

if TYPE_CHECKING:
    from PIL.Image import Image


FORMATS = {
    "PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif", "GIF": ".gif",
    "HEIF": ".heic", "AVIF": ".avif", "JXL": ".jxl",
}  # fmt: skip
"""What is read, and the suffix of a saved copy. Not all that Pillow knows: some of its formats start other programs."""
PILLOW_FORMATS = [name for name in FORMATS if name not in ("MPO", *plugins.PLUGINS)]
"""Those that every Pillow opens, MPO as a JPEG."""
START = 4096
"""Bytes by which a file's format is known."""
SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""
TIFF_WIDTH, TIFF_HEIGHT, TIFF_PHOTOMETRIC = 256, 257, 262
JPEG_START, JPEG_END, JPEG_PIXELS = b"\xff\xd8", b"\xff\xd9", 0xDA
"""Marks of a JPEG; the last one begins its compressed pixels."""
REQUESTS = 16
"""Images that are fetched at a time from elsewhere."""
ROWS_AT_ONCE = 16
"""Of a Parquet column of images: a row group may be gigabytes."""


class BadImage(ValueError):
    """Why an input image cannot be used, as the end of a sentence about it."""


class NeedsPackage(BadImage):
    """It is of a format whose package is not installed."""

    def __init__(self, plugin: plugins.Plugin) -> None:
        super().__init__(f"is a {plugin.name} image, for which {plugin.package} is needed: {plugins.EXTRA}")
        self.plugin = plugin


class TooManyPixels(BadImage):
    """It is larger than may be decoded."""


class Cell(NamedTuple):
    """Where an image's bytes stand in a Parquet table."""

    table: Path
    column: str
    row: int
    position: int


@dataclass(frozen=True, slots=True)
class InputImage:
    """One input image of a row; its pixels stay where they are."""

    name: str
    """The path as the table writes it, or where in a Parquet table the bytes are: for the ledger and messages."""
    source: Path | Cell
    """The file, or the cell of a table, that holds its bytes."""
    sha256: str
    shape: Shape
    """Height and width, turned as its EXIF orientation says."""
    suffix: str
    converted: str | None = None
    """The color profile that it is converted from, if it is not sRGB."""

    def read(self) -> bytes:
        """The file's bytes.

        Raises:
            BadImage: they are gone, or others than when the run began.
        """
        data = _bytes_of(self.source)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise BadImage("was changed since the run began")
        return data


# -- before the run -----------------------------------------------------------------------------------------------


def probe(name: str, source: Path | Cell, data: bytes, max_pixels: int = MAX_PIXELS) -> InputImage:
    """What can be known of an image without decoding it (one that is torn is found too).

    Raises:
        BadImage: it is empty, no image, torn or too large.
    """
    with damage_is_a_bad_image():
        image = open_image(data, max_pixels)
        suffix = FORMATS[image.format or ""]
        shape = _upright_shape(image, data)
        converted = profiles.conversion(image)
        if image.format == "PNG":
            image.verify()
        elif not (image.format == "WEBP" or _has_end_of_jpeg(data)):
            image.load()
    return InputImage(
        name, source, hashlib.sha256(data).hexdigest(), shape, suffix, converted.name if converted is not None else None
    )


def _upright_shape(image: "Image", data: bytes) -> Shape:
    width, height = image.size
    if image.format == "TIFF":  # whose size may be said to be as turned, or not yet: that depends on Pillow's version
        width, height = image.tag_v2[TIFF_WIDTH], image.tag_v2[TIFF_HEIGHT]  # type: ignore[attr-defined]
    sideways = orientation_of(image, data) in SIDEWAYS
    return Shape(width, height) if sideways else Shape(height, width)


def _has_end_of_jpeg(data: bytes) -> bool:
    """Whether a JPEG's pixels are followed by its end mark (24 Mpx: 12 us, where decoding takes a second). Within the pixels
    it cannot stand, but within what comes before them: most photographs have a small one there."""
    at = 2
    while data.startswith(JPEG_START) and data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        if data[at + 1] == JPEG_PIXELS:
            return data.rfind(JPEG_END) > at
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return False


def probe_files(paths: Mapping[Path, str], max_pixels: int = MAX_PIXELS) -> dict[Path, InputImage | BadImage]:
    """Probe each distinct file once, several at a time (reading and hashing leave Python's lock)."""

    def one(path: Path) -> InputImage | BadImage:
        try:
            return probe(paths[path], path, _read_file(path), max_pixels)
        except BadImage as error:
            return error

    is_far = any(isinstance(path, Address) for path in paths)
    with ThreadPoolExecutor(REQUESTS if is_far else min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(paths, pool.map(one, paths)))


def _bytes_of(source: Path | Cell) -> bytes:
    if isinstance(source, Path):
        return _read_file(source)
    return _column(source.table, source.column).read(source)


def _read_file(path: Path) -> bytes:
    try:
        return read(path) if isinstance(path, Address) else read_bytes(path)
    except FileNotFoundError:
        what = "object" if isinstance(path, Address) else "file"
        raise BadImage(f"there is no {what} {path}") from None
    except OSError as error:
        raise BadImage(f"{path} cannot be read: {error.strerror or error}") from None


@contextmanager
def damage_is_a_bad_image() -> Iterator[None]:
    """Turn what Pillow raises over a broken file, which is nearly anything, into a BadImage: it is this one image's fault."""
    from PIL import Image

    try:
        yield
    except (BadImage, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(Image.MAX_IMAGE_PIXELS) from None
    except Exception as error:  # around the decoding of one image
        raise BadImage(f"is torn or damaged ({' '.join(str(error).split()) or type(error).__name__})") from None


def open_image(data: bytes | BinaryIO, max_pixels: int = MAX_PIXELS) -> "Image":
    """Read an image's header; no pixel is decoded yet. The one place that opens what strangers wrote: other formats that
    Pillow knows start programs, or are never images.

    Raises:
        BadImage: it is none of the kinds that are read, or has more than `max_pixels`.
    """
    from PIL import Image, UnidentifiedImageError

    if data == b"":
        raise BadImage("is empty (0 bytes)")
    # Pillow only warns of an image that is up to twice as large as its own limit, and asks it again while it decodes.
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    try:
        source = io.BytesIO(data) if isinstance(data, bytes) else data
        formats = _formats(source, max_pixels)
        image = Image.open(source, formats=formats)
    except UnidentifiedImageError:
        if formats != PILLOW_FORMATS:
            raise BadImage("is torn or damaged") from None
        raise BadImage(
            "is no image that can be read (PNG, JPEG, WebP, BMP, TIFF, GIF, HEIC, AVIF or JPEG XL)"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(max_pixels) from None
    if image.width * image.height > max_pixels:
        raise _too_large(max_pixels)
    plugins.make_upright(image)
    return image


def _formats(source: BinaryIO, max_pixels: int) -> list[str]:
    """The formats as which a file may be opened.

    Raises:
        BadImage: the package of its format is not installed, or it is a JPEG XL (which is decoded as it is opened) of more
            than `max_pixels`, or torn.
    """
    start = source.read(START)
    source.seek(0)
    found = plugins.format_of(start)
    if found is None:
        return PILLOW_FORMATS
    try:
        plugins.PLUGINS[found].register()
    except ImportError:
        raise NeedsPackage(plugins.PLUGINS[found]) from None
    if found == "JXL":
        try:
            width, height = plugins.jxl_size(source.read())
        except ValueError as error:
            raise BadImage(f"is torn or damaged ({error})") from None
        source.seek(0)
        if width * height > max_pixels:
            raise _too_large(max_pixels)
    return [found]


def _too_large(max_pixels: int | None) -> TooManyPixels:
    return TooManyPixels(
        f"has more than {max_pixels or 0:,} pixels, as a decompression bomb has (edit --max_pixels says how many may be decoded)"
    )


def orientation_of(image: "Image", data: bytes) -> int:
    from PIL import ExifTags

    # Asked for its EXIF, a PNG is decoded whole; few have any.
    if image.format == "PNG" and not any(mark in data for mark in (b"eXIf", b"exif", b"adobe.xmp")):
        return 1
    return int(image.getexif().get(ExifTags.Base.Orientation, 1))


# -- before a batch -----------------------------------------------------------------------------------------------


def describe(bad: Iterable[tuple[str, BadImage]]) -> str:
    return "; ".join(f"input image {name} {error}" for name, error in bad)


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> "Image":
    """An upright image in sRGB.

    Raises:
        BadImage: it cannot be decoded, or is a decompression bomb.
    """
    from PIL import ImageOps

    with damage_is_a_bad_image():
        image = open_image(data, max_pixels)
        image.load()
        upright = to_rgb(ImageOps.exif_transpose(image))
        return ImageOps.invert(upright) if _is_negative(image) else upright


def fitted(image: "Image", shape: Shape, resampling: int | None = None) -> "Image":
    """Return an image at another size: scaled until it covers that size, and what juts out cut off on both sides alike, so
    that nothing is stretched.

    Args:
        resampling: Pillow's; Lanczos if none is given.
    """
    from PIL import Image, ImageOps

    size = (shape.width, shape.height)
    if image.size == size:
        return image
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS if resampling is None else Image.Resampling(resampling))


def _is_negative(image: "Image") -> bool:
    """Whether 0 is white in a TIFF of 16 bits; of 8 bits Pillow turns it itself."""
    return image.format == "TIFF" and image.mode.startswith("I") and image.tag_v2.get(TIFF_PHOTOMETRIC) == 0  # type: ignore[attr-defined]


def to_rgb(image: "Image") -> "Image":
    """Of any mode: colors become sRGB, alpha is flattened on white, more than 8 bits a channel are scaled down, not cut off."""
    from PIL import Image

    conversion = profiles.conversion(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _scaled(image)
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    colors = conversion.apply(image) if conversion is not None else image.convert("RGB")
    if alpha is None:
        return colors
    flat = Image.new("RGB", image.size, "white")
    flat.paste(colors, mask=alpha)
    return flat


def _scaled(image: "Image") -> "Image":
    """Greyscale of 16 bits, or of numbers of unknown range, to 8 bits."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    ranges: tuple[int, ...] = (1, 255, 65535)
    if image.mode.startswith("I;16"):
        ranges = (65535,)
    elif image.mode == "I":
        ranges = (255, 65535, 2**31)
    full = next((end for end in ranges if values.max() <= end), ranges[-1])
    return Image.fromarray(np.clip(values * 255 / full + 0.5, 0, 255).astype(np.uint8))


# -- bytes in a Parquet table -------------------------------------------------------------------------------------


class _Column:
    """One column of a Parquet table, read a few rows at a time; rows are asked for nearly in order."""

    def __init__(self, table: Path, column: str) -> None:
        from pyarrow.parquet import ParquetFile

        self.file = ParquetFile(
            local_file(table) if isinstance(table, Address) else table, pre_buffer=False, buffer_size=1 << 20
        )
        self.column = column
        self._lock = threading.Lock()
        self._batches: Iterator[Any] = iter(())
        self._rows: list[Any] = []
        self._first = 0

    def read(self, cell: Cell) -> bytes:
        with self._lock:
            if not self._first <= cell.row < self._first + len(self._rows):
                self._go_to(cell.row)
            value = self._rows[cell.row - self._first]
        item = value[cell.position] if isinstance(value, list) else value
        return bytes(item["bytes"] if isinstance(item, dict) else item)

    def _go_to(self, row: int) -> None:
        ahead = self._first + len(self._rows)
        groups = [self.file.metadata.row_group(n).num_rows for n in range(self.file.num_row_groups)]
        start, group = 0, 0
        while start + groups[group] <= row:
            start, group = start + groups[group], group + 1
        if not self._rows or row < ahead or start >= ahead:
            self._batches = self.file.iter_batches(
                ROWS_AT_ONCE, row_groups=list(range(group, len(groups))), columns=[self.column]
            )
            ahead = start
        self._rows, self._first = [], ahead
        while row >= self._first + len(self._rows):
            self._first += len(self._rows)
            self._rows = next(self._batches).column(0).to_pylist()


@lru_cache(maxsize=4)
def _column(table: Path, column: str) -> _Column:
    return _Column(table, column)
