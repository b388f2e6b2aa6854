"""Color profiles: an image in another color space (Adobe RGB, Display P3, a printer's CMYK) becomes sRGB, which models know."""

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageCms import ImageCmsTransform

MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Color space of a profile -> Pillow's mode of its pixels."""
NEAR = 2
"""Of 255: a profile that changes no color by more is sRGB by another name; there are dozens."""
LONGEST_NAME = 80


@dataclass(frozen=True, slots=True)
class Conversion:
    """How an image becomes sRGB, and what the ledger says of it."""

    name: str
    mode: str
    """Of the pixels that the profile speaks of."""
    transform: "ImageCmsTransform | None"
    """None: the profile cannot be used, and the numbers are taken as sRGB."""

    def apply(self, image: "Image") -> "Image":
        """Return the colors in sRGB, without alpha."""
        if self.transform is None:
            return image.convert("RGB")
        converted = self.transform.apply(image.convert(self.mode))
        converted.info.pop("icc_profile", None)
        return converted


def conversion(image: "Image") -> Conversion | None:
    """Return how this image becomes sRGB; None: it is, or says nothing else."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not profile or image.mode == "LAB":  # whose numbers need no profile
        return None
    return _conversion(profile, _kind_of(image.mode))


def _kind_of(mode: str) -> str:
    """The color space of a mode, as profiles call it."""
    if mode == "CMYK":
        return mode
    return "GRAY" if mode in ("1", "L", "LA", "I", "F") or mode.startswith("I;16") else "RGB "


@lru_cache(maxsize=64)
def _conversion(profile: bytes, kind: str) -> Conversion | None:
    from PIL import ImageCms

    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space
        name = " ".join((source.profile.profile_description or "a profile without a name").split())[:LONGEST_NAME]
        if space != kind and (space, kind) != ("RGB ", "GRAY"):
            return Conversion(f"{name} does not fit its pixels, which were taken as sRGB", "RGB", None)
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            MODES[space],
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return Conversion("a profile that cannot be read; its pixels were taken as sRGB", "RGB", None)
    found = Conversion(f"{name} to sRGB", MODES[space], transform)
    return None if kind != "CMYK" and _changes_nothing(found) else found


def _changes_nothing(conversion: Conversion) -> bool:
    from PIL import ImageChops

    sample = _sample(conversion.mode)
    difference = ImageChops.difference(conversion.apply(sample), sample.convert("RGB"))
    return max(most for _, most in difference.getextrema()) <= NEAR  # type: ignore[misc]  # of RGB: a pair a channel


def _sample(mode: str) -> "Image":
    """Colors from all over the cube, or all greys."""
    from PIL import Image

    if mode == "L":
        return Image.frombytes("L", (256, 1), bytes(range(256)))
    steps = range(0, 256, 17)
    return Image.frombytes("RGB", (256, 16), bytes(v for r in steps for g in steps for b in steps for v in (r, g, b)))
