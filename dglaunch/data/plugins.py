"""Image formats that need more than the oldest Pillow: HEIC (an iPhone's photographs), AVIF and JPEG XL.

A file is known by its first bytes, and its package is imported only then. `pip install 'dglaunch[photos]'` brings them all.
"""

import importlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

EXTRA = "pip install 'dglaunch[photos]'"
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_JXL_CODESTREAM, _JXL_CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
_JXL_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
"""Width to height, by the number that a JPEG XL file has for it."""


def _register_heif() -> None:
    importlib.import_module("pillow_heif").register_heif_opener()


def _register_jxl() -> None:
    importlib.import_module("pillow_jxl")  # which does it when it is imported


def _find_avif() -> None:
    """Pillow's own, since 11.3; it may have been built without."""
    from PIL import features

    if not features.check("avif"):
        raise ImportError


@dataclass(frozen=True, slots=True)
class Plugin:
    """What brings a format to Pillow."""

    name: str
    """Of the format, for people."""
    package: str
    register: Callable[[], None]
    """Makes Pillow know the format; raises an ImportError where the package is not there."""


PLUGINS = {
    "HEIF": Plugin("HEIC", "pillow-heif", _register_heif),
    "AVIF": Plugin("AVIF", "pillow 11.3 or newer", _find_avif),
    "JXL": Plugin("JPEG XL", "pillow-jxl-plugin", _register_jxl),
}
"""By Pillow's name of the format."""


def format_of(start: bytes) -> str | None:
    """Return which of these formats a file has, by its first bytes; None: none of them."""
    if start.startswith((_JXL_CODESTREAM, _JXL_CONTAINER)):
        return "JXL"
    if start[4:8] != b"ftyp":
        return None
    length = min(int.from_bytes(start[:4]), len(start))
    brands = {start[8:12], *(start[at : at + 4] for at in range(16, length, 4))}
    if brands & _AVIF_BRANDS:
        return "AVIF"
    return "HEIF" if brands & _HEIF_BRANDS else None


def make_upright(image: "Image") -> None:
    """Forget the EXIF orientation of a JPEG XL: its pixels come upright, as the file's own header says. A JPEG that was packed
    into one comes as it was."""
    if image.format == "JXL" and not getattr(image, "jpeg", False):
        image.info.pop("exif", None)


def jxl_size(data: bytes) -> tuple[int, int]:
    """Return width and height of a JPEG XL from its header: its plug-in decodes what it opens, also a decompression bomb.

    Raises:
        ValueError: it is torn before that.
    """
    bits = _Bits(_codestream(data)[len(_JXL_CODESTREAM) :][:16])
    in_eights = bits.read(1)
    height = _side(bits, in_eights)
    ratio = bits.read(3)
    if not ratio:
        return _side(bits, in_eights), height
    across, down = _JXL_RATIOS[ratio]
    return height * across // down, height


def _side(bits: "_Bits", in_eights: int) -> int:
    return 8 * (bits.read(5) + 1) if in_eights else bits.read((9, 13, 18, 30)[bits.read(2)]) + 1


def _codestream(data: bytes) -> bytes:
    """The beginning of the image in a JPEG XL file, which may lie in a box of a container."""
    at = 0
    while not data.startswith(_JXL_CODESTREAM):
        length, kind = struct.unpack_from(">I4s", data, at) if at + 8 <= len(data) else (0, b"")
        start = at + 8
        if length == 1:
            length, start = int.from_bytes(data[start : start + 8]), start + 8
        if kind in (b"jxlc", b"jxlp"):
            return data[start + 4 * (kind == b"jxlp") :]
        if length < 8:  # 0: up to the end of the file
            raise ValueError("there is no image in it")
        at += length
    return data


class _Bits:
    """The bits of a header, the lowest of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._left, self._number = 8 * len(data), int.from_bytes(data, "little")

    def read(self, count: int) -> int:
        if count > self._left:
            raise ValueError("its header is torn")
        value = self._number & ((1 << count) - 1)
        self._number >>= count
        self._left -= count
        return value
