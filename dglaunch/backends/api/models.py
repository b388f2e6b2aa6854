"""The vendors' image models as data: sizes, input images, parameters, prices (prices.py), and when they end. What the table does not know is sent as
it is given.

Names and parameters are those of the SDKs that constraints.txt pins (openai 3.54.0: `types/image_model.py`,
`image_generate_params.py`, `image_edit_params.py`; google-genai 3.4.0: `_gaos/types/interactions/model.py`), the limits and dates
those of the vendors' public documentation. Unverified: the sizes of Gemini's ratios 1:4 to 8:1 and of its class 512, and
which classes gemini-nano-banana-2.1 has (said by others). No real API was asked.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

from dglaunch.backends.api import prices
from dglaunch.backends.api.prices import Price

AS_OF = date(2026, 11, 25)
"""When the table was made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeSizes:
    """Any width and height within these limits."""

    multiple: int
    max_aspect: float
    longest: int
    least_pixels: int
    most_pixels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioSizes:
    """Sizes that are asked for by a ratio and a class."""

    ratios: Mapping[str, tuple[int, int]]
    """Width and height of each in the class of factor 1."""
    classes: Mapping[str, float]
    """Factor by name; a model of one class is not asked for it."""


Sizes = tuple[str, ...] | FreeSizes | RatioSizes
"""A list of WIDTHxHEIGHT, or one of the rules above."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What one model takes."""

    sizes: Sizes | None = None
    """None: only the server knows."""
    images_per_request: int = 1
    max_images: int | None = None
    """Input images of an edit at the most; 0: it edits none."""
    max_image_bytes: int | None = None
    """Of one input image."""
    image_formats: frozenset[str] = frozenset({"PNG", "JPEG", "WEBP"})
    """Pillow's names of what it takes as input images; others are sent as one of these."""
    max_aspect: float = math.inf
    """Of an input image."""
    takes_mask: bool = False
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Flags that it takes, with their values; an empty list: any."""
    ends: date | None = None
    """From that day on the vendor's own server has it no more."""
    successor: str = ""
    price: Price | None = None
    """None: unknown."""


_QUALITY = ("low", "medium", "high", "auto")
_OPTIONS = {
    "quality": _QUALITY,
    "background": ("transparent", "opaque", "auto"),
    "output_compression": (),
    "moderation": ("low", "auto"),
}
_THREE_SIZES = ("1024x1024", "1536x1024", "1024x1536")
_FREE = FreeSizes(multiple=16, max_aspect=3.0, longest=3840, least_pixels=655_360, most_pixels=8_294_400)
_EDITOR = {"images_per_request": 10, "max_images": 16, "max_image_bytes": 50_000_000, "takes_mask": True}
_SUNBURST = "gpt-image-2.5-sunburst"


def _gpt(
    sizes: Sizes = _FREE, ends: date | None = None, price: Price | None = None, **options: tuple[str, ...]
) -> Model:
    successor = _SUNBURST if ends else ""
    return Model(sizes=sizes, options=_OPTIONS | options, ends=ends, successor=successor, price=price, **_EDITOR)  # type: ignore[arg-type]  # a dict of several types


_MORE_QUALITY = (*_QUALITY[:3], "xhigh", "max", "auto")
_OPENAI = {
    "gpt-image-2.6-sunburst": _gpt(quality=_MORE_QUALITY, price=prices.GPT_26),
    "gpt-image-2.6-flare": _gpt(quality=_MORE_QUALITY, price=prices.GPT_26),
    "gpt-image-2.5-sunburst": _gpt(quality=_MORE_QUALITY, price=prices.GPT_25),
    "gpt-image-2.5-flare": _gpt(quality=_MORE_QUALITY, price=prices.GPT_25),
    "gpt-image-2": _gpt(price=prices.GPT_2),
    "gpt-image-1.5": _gpt(_THREE_SIZES, date(2026, 12, 1), input_fidelity=("high", "low")),
    "gpt-image-1-mini": _gpt(_THREE_SIZES, date(2026, 12, 1), prices.GPT_MINI, input_fidelity=("low",)),
    "chatgpt-image-latest": _gpt(_THREE_SIZES, date(2026, 12, 1)),
    "gpt-image-1": _gpt(_THREE_SIZES, date(2026, 10, 23), input_fidelity=("high", "low")),
    "dall-e-3": Model(
        sizes=("1024x1024", "1792x1024", "1024x1792"), max_images=0, ends=date(2026, 5, 12), successor=_SUNBURST,
        options={"quality": ("standard", "hd")},
    ),
    "dall-e-2": Model(
        sizes=("256x256", "512x512", "1024x1024"), images_per_request=10, max_images=1, max_image_bytes=4_000_000,
        image_formats=frozenset({"PNG"}), max_aspect=1.0, takes_mask=True, ends=date(2026, 5, 12), successor=_SUNBURST,
    ),
}  # fmt: skip

_RATIOS_25 = {
    "1:1": (1024, 1024), "2:3": (832, 1248), "3:2": (1248, 832), "3:4": (864, 1184), "4:3": (1184, 864),
    "4:5": (896, 1152), "5:4": (1152, 896), "9:16": (768, 1344), "16:9": (1344, 768), "21:9": (1536, 672),
}  # fmt: skip
_RATIOS_3 = {
    "1:1": (1024, 1024), "2:3": (848, 1264), "3:2": (1264, 848), "3:4": (896, 1200), "4:3": (1200, 896),
    "4:5": (928, 1152), "5:4": (1152, 928), "9:16": (768, 1376), "16:9": (1376, 768), "21:9": (1584, 672),
}  # fmt: skip
_RATIOS_31 = _RATIOS_3 | {"1:4": (512, 2048), "4:1": (2048, 512), "1:8": (384, 3072), "8:1": (3072, 384)}
_RATIOS_IMAGEN = {
    "1:1": (1024, 1024), "3:4": (896, 1280), "4:3": (1280, 896), "9:16": (768, 1408), "16:9": (1408, 768),
}  # fmt: skip
GEMINI_OPTIONS = ("image_config", "safety_settings", "system_instruction")


def _gemini(
    ratios: Mapping[str, tuple[int, int]],
    classes: Mapping[str, float],
    price: Price | None,
    max_images: int | None = 14,
) -> Model:
    sizes = RatioSizes(ratios=ratios, classes=classes)
    return Model(sizes=sizes, max_images=max_images, options=dict.fromkeys(GEMINI_OPTIONS, ()), price=price)


def _imagen() -> Model:
    return Model(
        sizes=RatioSizes(ratios=_RATIOS_IMAGEN, classes={"1K": 1, "2K": 2}), images_per_request=4, max_images=0,
        ends=date(2026, 8, 17), successor="gemini-3.1-flash-image",
    )  # fmt: skip


_PRO = _gemini(_RATIOS_3, {"1K": 1, "2K": 2, "4K": 4}, prices.GEMINI_3_PRO)
_GOOGLE = {
    "gemini-nano-banana-2.1": _gemini(_RATIOS_31, {"1K": 1, "2K": 2, "4K": 4}, None),
    "gemini-3.1-flash-image": _gemini(_RATIOS_31, {"512": 0.5, "1K": 1, "2K": 2, "4K": 4}, prices.GEMINI_31),
    "gemini-3.1-flash-lite-image": _gemini(_RATIOS_31, {"1K": 1}, prices.GEMINI_31_LITE),
    "gemini-3-pro-image": _PRO,
    "nano-banana-pro-preview": _PRO,
    "gemini-2.5-flash-image": _gemini(_RATIOS_25, {"1K": 1}, prices.GEMINI_25, max_images=None),
    "imagen-4.0-generate": _imagen(),
    "imagen-4.0-ultra-generate": _imagen(),
    "imagen-4.0-fast-generate": _imagen(),
    "imagen-3.0-generate": _imagen(),
}
"""Sources disagree on the end of gemini-2.5-flash-image, so none is given. Imagen has ended in the Gemini API, not on Vertex AI."""
MODELS: Mapping[str, Mapping[str, Model]] = {"openai": _OPENAI, "google_genai": _GOOGLE}
"""By backend and name."""
VENDORS: Mapping[str, tuple[str, ...]] = {
    "openai": ("api.openai.com",),
    "google_genai": ("generativelanguage.googleapis.com", "aiplatform.googleapis.com"),
}
"""By backend: the vendor's own hosts (`us.api.openai.com` and `us-central1-aiplatform.googleapis.com` are, too)."""
SNAPSHOT = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d+|(?:\d+-)?preview(?:-[\d-]+)?|latest)")
"""What a name may have after that of its model: a date, a number, `preview`."""


def model_of(backend: str, name: str) -> Model | None:
    """Return the row of a model, or of that of which the name is a snapshot; None for one that the table does not know."""
    models = MODELS[backend]
    if name in models:
        return models[name]
    return next((row for known, row in models.items() if SNAPSHOT.fullmatch(name.removeprefix(known))
                 and name.startswith(known)), None)  # fmt: skip


def unknown_model(images_per_request: int, options: Sequence[str]) -> Model:
    """Return what is tried with a model that the table does not know.

    Args:
        options: the flags of models that its API has.
    """
    return Model(images_per_request=images_per_request, takes_mask=True, options=dict.fromkeys(options, ()))


def is_vendors(backend: str, host: str) -> bool:
    """Whether a host is one of the vendor's own."""
    return any(host == own or host.endswith((f".{own}", f"-{own}")) for own in VENDORS[backend])
