"""Images become bytes that say what made them: in PNG text chunks, or in the EXIF of JPEG and WebP."""

import hashlib
import io

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dglaunch import strict_json
from dglaunch.data.images import to_rgb
from dglaunch.data.task import Record
from dglaunch.output import parameters
from dglaunch.output.whole_file import WholeFile, with_chunks, with_exif

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


def encode(image: Image.Image | WholeFile, output_format: str, description: Record, for_viewers: str = "") -> bytes:
    """Encode an image of any mode; a file that is whole stays what it is.

    Args:
        image: the picture; in a JPEG, which has no transparency, it stands on white.
        output_format: png, jpg or webp.
        description: written into the file; in a PNG prompt, seed and model have chunks of their own.
        for_viewers: the same as other programs read it (parameters.py).
    """
    if isinstance(image, WholeFile):
        assert output_format == image.output_format, "other formats are made from pixels"
        if output_format == "png":
            return with_chunks(image, _text_chunks(description, for_viewers))
        return with_exif(image, _exif(output_format, description, for_viewers).tobytes())
    buffer = io.BytesIO()
    image = _in_mode_of(output_format, image)
    if output_format == "png":
        texts = _text_chunks(description, for_viewers)
        image.save(buffer, PILLOW_FORMATS["png"], compress_level=PNG_LEVEL, pnginfo=texts)
        return buffer.getvalue()
    exif = _exif(output_format, description, for_viewers)
    profile = image.info.get("icc_profile")  # of an API's picture; into a PNG Pillow copies it by itself
    image.save(buffer, PILLOW_FORMATS[output_format], quality=QUALITY, exif=exif, icc_profile=profile)
    return buffer.getvalue()


def _exif(output_format: str, description: Record, for_viewers: str) -> Image.Exif:
    exif = Image.Exif()
    comment = parameters.as_comment(for_viewers) if for_viewers else b""
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
