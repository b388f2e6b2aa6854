"""Input images of an edit: where they are, what their headers say, and how they become RGB.

Before the run `probe` reads each distinct file once: is it there, is it an image, how large, its sha256. Just before a
batch its images are decoded: PNG, JPEG, WebP and a few others, turned as their EXIF orientation says, alpha flattened on
white, 16 bit scaled to 8. Whatever is wrong with a file is a `BadImage`, which concerns its row alone.
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

from dglaunch.files import read_bytes
from dglaunch.models.shape import Shape

if TYPE_CHECKING:
    from PIL.Image import Image


FORMATS = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif", "GIF": ".gif"}
"""What is read, and the suffix of a saved copy. Not all that Pillow knows: some of its formats start other programs."""
SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""
ROWS_AT_ONCE = 16
"""Of a Parquet column of images: a row group may be gigabytes."""


class BadImage(ValueError):
    """Why an input image cannot be used, as the end of a sentence about it."""


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


def probe(name: str, source: Path | Cell, data: bytes) -> InputImage:
    """What can be known of an image without decoding it (a torn PNG is found too).

    Raises:
        BadImage: it is empty, no image, torn or too large.
    """
    refuse_bombs()
    with damage_is_a_bad_image():
        image = open_image(data)
        suffix = FORMATS[image.format or ""]
        width, height = image.size
        if orientation_of(image, data) in SIDEWAYS:
            width, height = height, width
        if image.format == "PNG":
            image.verify()
    return InputImage(name, source, hashlib.sha256(data).hexdigest(), Shape(height, width), suffix)


def probe_files(paths: Mapping[Path, str]) -> dict[Path, InputImage | BadImage]:
    """Probe each distinct file once, several at a time (reading and hashing leave Python's lock)."""

    def one(path: Path) -> InputImage | BadImage:
        try:
            return probe(paths[path], path, _read_file(path))
        except BadImage as error:
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(paths, pool.map(one, paths)))


def _bytes_of(source: Path | Cell) -> bytes:
    if isinstance(source, Path):
        return _read_file(source)
    return _column(source.table, source.column).read(source)


def _read_file(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except FileNotFoundError:
        raise BadImage(f"there is no file {path}") from None
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
        raise BadImage(f"has more than {Image.MAX_IMAGE_PIXELS:,} pixels, as a decompression bomb has") from None
    except Exception as error:  # around the decoding of one image
        raise BadImage(f"is torn or damaged ({' '.join(str(error).split()) or type(error).__name__})") from None


def refuse_bombs() -> None:
    """Pillow only warns of an image that is up to twice as large as its limit."""
    from PIL import Image

    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def open_image(data: bytes | BinaryIO) -> "Image":
    """Read an image's header; no pixel is decoded yet. The one place that opens what strangers wrote: other formats that
    Pillow knows start programs, or are never images.

    Raises:
        BadImage: it is none of the kinds that are read.
    """
    from PIL import Image, UnidentifiedImageError

    if data == b"":
        raise BadImage("is empty (0 bytes)")
    try:
        source = io.BytesIO(data) if isinstance(data, bytes) else data
        return Image.open(source, formats=[name for name in FORMATS if name != "MPO"])  # MPO opens as JPEG
    except UnidentifiedImageError:
        raise BadImage("is no image that can be read (PNG, JPEG, WebP, BMP, TIFF or GIF)") from None


def orientation_of(image: "Image", data: bytes) -> int:
    from PIL import ExifTags

    # Asked for its EXIF, a PNG is decoded whole; few have any.
    if image.format == "PNG" and not any(mark in data for mark in (b"eXIf", b"exif", b"adobe.xmp")):
        return 1
    return int(image.getexif().get(ExifTags.Base.Orientation, 1))


# -- before a batch -----------------------------------------------------------------------------------------------


def describe(bad: Iterable[tuple[str, BadImage]]) -> str:
    return "; ".join(f"input image {name} {error}" for name, error in bad)


def decode(data: bytes) -> "Image":
    """An upright RGB image.

    Raises:
        BadImage: it cannot be decoded, or is a decompression bomb.
    """
    from PIL import ImageOps

    refuse_bombs()
    with damage_is_a_bad_image():
        image = open_image(data)
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))


def to_rgb(image: "Image") -> "Image":
    """Of any mode: alpha is flattened on white, more than 8 bits a channel are scaled down, not cut off."""
    from PIL import Image

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scaled(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


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

        self.file = ParquetFile(table, pre_buffer=False, buffer_size=1 << 20)
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
