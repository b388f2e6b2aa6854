"""Images become bytes that say what made them: in PNG text chunks, or in the EXIF of JPEG and WebP."""

import hashlib
import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dglaunch import strict_json
from dglaunch.data.images import to_rgb
from dglaunch.data.task import Record
from dglaunch.output import parameters

PILLOW_FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}
"""Pillow's names of --output_format."""
MODES = {"png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "jpg": ("RGB",), "webp": ("RGB", "RGBA")}
"""Pillow's names of the kinds of pixels that a format is written from; others are converted first."""
PNG_LEVEL = 1
"""1024x1024: 0.12 s and 2.05 MB; level 6 takes 0.22 s for 1.81 MB."""
QUALITY = 95
_EXIF_DESCRIPTION = 0x010E
_EXIF_IFD, _EXIF_COMMENT = 0x8769, 0x9286
JPEG_DESCRIPTION = 60_000
"""Bytes of EXIF that a JPEG holds, less than 64 KiB. Of a longer description the texts stay behind in the ledger; what
--png_parameters adds is left out where there is no room for both."""
LONG_TEXTS = ("prompt", "rewritten_prompt", "negative_prompt")
TEXT_KEYS = ("prompt", "negative_prompt", "seed", "model")
"""What has a text chunk of its own in a PNG; the rest is JSON in the chunk `settings`."""
PNG_START = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt")


@dataclass(frozen=True, slots=True)
class WholePng:
    """A PNG file as an API sent it and whose checksums are right. It is written as it is, with dglaunch's text instead of its
    own: nothing is decoded or compressed again (1024x1024: 0.4 ms instead of 110)."""

    data: bytes
    width: int
    height: int


def whole_png(data: bytes) -> WholePng | None:
    """Return the file if it is a PNG, None for another format.

    Raises:
        ValueError: it is torn, or a checksum is wrong.
    """
    if not data.startswith(PNG_START):
        return None
    kinds = [kind for kind, _ in _chunks(data)]
    if kinds[:1] != [b"IHDR"] or kinds[-1:] != [b"IEND"] or b"IDAT" not in kinds:
        raise ValueError("the PNG is not whole")
    return WholePng(data, *struct.unpack_from(">II", data, 16))


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield name and bytes of each chunk of a PNG, up to IEND.

    Raises:
        ValueError: the file ends inside of a chunk, or a checksum is wrong.
    """
    view, at, kind = memoryview(data), len(PNG_START), b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", view[at : at + 8]) if at + 12 <= len(data) else (len(data), b"")
        end = at + 12 + length
        if end > len(data):
            raise ValueError("the PNG is not whole")
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            raise ValueError("a checksum of the PNG is wrong")
        yield kind, view[at:end]
        at = end


def _with_text(png: WholePng, info: PngInfo) -> bytes:
    """The same file with these text chunks right after its header."""
    texts = []
    for kind, text, *_ in info.chunks:
        texts += [struct.pack(">I", len(text)), kind, text, zlib.crc32(kind + text).to_bytes(4)]
    header, *rest = (chunk for kind, chunk in _chunks(png.data) if kind not in TEXTS)
    return b"".join([PNG_START, header, *texts, *rest])


def encode(image: Image.Image | WholePng, output_format: str, description: Record, for_viewers: str = "") -> bytes:
    """Encode an image of any mode; a PNG that is whole stays what it is.

    Args:
        image: the picture; in a JPEG, which has no transparency, it stands on white.
        output_format: png, jpg or webp.
        description: written into the file; in a PNG prompt, seed and model have chunks of their own.
        for_viewers: the same as other programs read it (parameters.py).
    """
    if isinstance(image, WholePng):
        assert output_format == "png", "other formats are made from pixels"
        return _with_text(image, _text_chunks(description, for_viewers))
    buffer = io.BytesIO()
    image = _in_mode_of(output_format, image)
    if output_format == "png":
        texts = _text_chunks(description, for_viewers)
        image.save(buffer, PILLOW_FORMATS["png"], compress_level=PNG_LEVEL, pnginfo=texts)
        return buffer.getvalue()
    exif = _exif(output_format, description, parameters.as_comment(for_viewers) if for_viewers else b"")
    profile = image.info.get("icc_profile")  # of an API's picture; into a PNG Pillow copies it by itself
    image.save(buffer, PILLOW_FORMATS[output_format], quality=QUALITY, exif=exif, icc_profile=profile)
    return buffer.getvalue()


def _exif(output_format: str, description: Record, comment: bytes) -> Image.Exif:
    exif = Image.Exif()
    described = strict_json.dumps(description, ascii_only=True)
    is_full = output_format == "jpg" and len(described) > JPEG_DESCRIPTION
    if is_full:
        rest = {name: value for name, value in description.items() if name not in LONG_TEXTS}
        described = strict_json.dumps(rest, ascii_only=True)
    exif[_EXIF_DESCRIPTION] = described
    if comment and not is_full and (output_format != "jpg" or len(described) + len(comment) <= JPEG_DESCRIPTION):
        exif.get_ifd(_EXIF_IFD)[_EXIF_COMMENT] = comment
    return exif


def _in_mode_of(output_format: str, image: Image.Image) -> Image.Image:
    """The picture as the format can hold it. A model's are RGB; those that an API sends may be of any mode."""
    if image.mode in MODES[output_format]:
        return image
    return image.convert("RGBA") if output_format != "jpg" and image.has_transparency_data else to_rgb(image)


def _text_chunks(description: Record, for_viewers: str) -> PngInfo:
    info = PngInfo()
    if for_viewers:
        info.add_text(parameters.CHUNK, for_viewers)
    for key in TEXT_KEYS:
        if description.get(key) is not None:
            info.add_itxt(key, strict_json.whole_characters(str(description[key])))
    rest = {key: value for key, value in description.items() if key not in TEXT_KEYS and value is not None}
    info.add_itxt("settings", strict_json.dumps(rest))
    return info


def decode_description(image: Image.Image) -> Record | None:
    """Return what `encode` wrote into a file of any format, or None if there is nothing of the kind.

    The values are as the file has them: anyone may have written it.
    """
    texts = getattr(image, "text", {})
    source = texts.get("settings") if "settings" in texts else image.getexif().get(_EXIF_DESCRIPTION)
    try:
        described = strict_json.loads(source) if isinstance(source, str | bytes) else None
    except ValueError:
        return None
    if not isinstance(described, dict):
        return None
    for key in TEXT_KEYS:
        if key in texts:
            described[key] = str(texts[key])
    if "seed" in texts and str(texts["seed"]).isdecimal():
        described["seed"] = int(texts["seed"])
    return described


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
