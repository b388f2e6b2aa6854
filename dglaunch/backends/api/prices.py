"""The vendors' list prices as data, each with its day and its source. What has none here is unknown, and is said to be.

    cost of an image = its text and input images, by token + its output, by token or by image

No bill was seen. Prices and the tokens of an image are those of the vendors' public documentation as others quote it, but for the
pages of which the address is given with a model's name: those were read. Batch mode costs half at OpenAI and Google. Known to be missing: what the tokens of an image are at gpt-image-2.6, and whatever
gemini-nano-banana-2.1, gpt-image-1.5, chatgpt-image-latest and Imagen cost.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date


@dataclass(frozen=True, slots=True)
class GridTokens:
    """Tokens of an image by OpenAI's own calculator: a grid whose long side has `cells` of the quality, times a factor of the
    pixels."""

    cells: Mapping[str, int]
    """By quality."""

    def of(self, quality: str, width: int, height: int) -> int:
        """Return the tokens of one image."""
        long = self.cells[quality]
        short = round(long * min(width, height) / max(width, height))  # a half goes to the even neighbor, as there
        return -(-long * short * (2_000_000 + width * height) // 4_000_000)


@dataclass(frozen=True, slots=True)
class ClassTokens:
    """Tokens of an image by its class of size."""

    classes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ByImage:
    """Dollars of an image, by quality and size, instead of tokens."""

    dollars: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What one model costs: dollars a million tokens, and how many an image has."""

    text_in: float
    image_in: float
    image_out: float
    text_out: float
    """Also of thoughts."""
    image: GridTokens | ClassTokens | ByImage | None = None
    """None: what an image comes to is known only from answers."""
    input_image: tuple[int, int] | None = None
    """Tokens of one input image at the least and at the most."""
    in_batch: float = 0.5
    """The part of it that batch mode costs."""
    as_of: date
    source: str


READ = date(2026, 11, 26)
_GUIDE = "developers.openai.com/api/docs/guides/image-generation"
_PATCHES = (1, 1536)
"""Patches of an input image of OpenAI's, measured by others: community.openai.com/t/1382940. There is no official figure."""


def _gpt(image: GridTokens | None, source: str) -> Price:
    return Price(
        text_in=5, image_in=8, image_out=30, text_out=30, image=image, input_image=_PATCHES, as_of=READ, source=source,
    )  # fmt: skip


GPT_2 = _gpt(GridTokens({"low": 16, "medium": 48, "high": 96}), _GUIDE)
GPT_25 = _gpt(GridTokens({"low": 16, "medium": 24, "high": 48, "xhigh": 64, "max": 96}), _GUIDE)
GPT_26 = _gpt(None, "developers.openai.com/api/docs/models/gpt-image-2.6-sunburst")
_MINI = {
    "low": {"1024x1024": 0.005, "1024x1536": 0.006, "1536x1024": 0.006},
    "medium": {"1024x1024": 0.011, "1024x1536": 0.015, "1536x1024": 0.015},
    "high": {"1024x1024": 0.036, "1024x1536": 0.052, "1536x1024": 0.052},
}
GPT_MINI = Price(
    text_in=2, image_in=2.5, image_out=8, text_out=8, image=ByImage(_MINI), as_of=READ,
    source="developers.openai.com/api/docs/models/gpt-image-1-mini",
)  # fmt: skip

_PRICING = "ai.google.dev/gemini-api/docs/pricing"
_VERTEX = "docs.cloud.google.com/vertex-ai/generative-ai/docs/models/gemini"


def _gemini(dollars: tuple[float, float, float], classes: Mapping[str, int], source: str, inputs: int | None) -> Price:
    """A million tokens in, of text out, of images out; an input image has as many tokens at the least as at the most."""
    tokens_in, text_out, image_out = dollars
    return Price(
        text_in=tokens_in, image_in=tokens_in, image_out=image_out, text_out=text_out, image=ClassTokens(classes),
        input_image=None if inputs is None else (inputs, inputs), as_of=READ, source=source,
    )  # fmt: skip


GEMINI_31 = _gemini(
    (0.5, 3, 60), {"512": 747, "1K": 1120, "2K": 1680, "4K": 2520}, f"{_PRICING}, {_VERTEX}/3-1-flash-image", 1120
)
GEMINI_31_LITE = _gemini((0.25, 1.5, 30), {"1K": 1120}, f"{_PRICING}, {_VERTEX}/3-1-flash-lite-image", 1120)
GEMINI_3_PRO = _gemini((2, 12, 120), {"1K": 1120, "2K": 1120, "4K": 2000}, _PRICING, None)
GEMINI_25 = _gemini((0.3, 2.5, 30), {"1K": 1290}, _PRICING, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What an API calls the numbers of tokens that it reports."""

    all_in: str
    image_in: str
    all_out: str
    text_out: str
    """Part of all_out that is text."""
    thoughts: str = ""
    """Besides all_out."""


REPORTED: Mapping[str, Names] = {
    "openai": Names(
        all_in="input_tokens", image_in="input_tokens_details.image_tokens", all_out="output_tokens",
        text_out="output_tokens_details.text_tokens",
    ),
    "google_genai": Names(
        all_in="prompt_token_count", image_in="prompt_tokens_details.image", all_out="candidates_token_count",
        text_out="candidates_tokens_details.text", thoughts="thoughts_token_count",
    ),
}  # fmt: skip
"""By backend."""


def dollars_of(price: Price, names: Names, usage: Mapping[str, float], in_batch: bool = False) -> float | None:
    """Return what an answer cost, by the tokens that it reports; None if it reports none. Tokens of which the answer does not say
    what they are count as the dearer ones."""
    if names.all_in not in usage:
        return None
    tokens_in, tokens_out = usage[names.all_in], usage.get(names.all_out, 0.0)  # without an image there is no output
    images = usage.get(names.image_in, tokens_in if price.image_in > price.text_in else 0.0)
    text_out = usage.get(names.text_out, 0.0)
    dollars = (
        max(tokens_in - images, 0.0) * price.text_in
        + images * price.image_in
        + max(tokens_out - text_out, 0.0) * price.image_out
        + (text_out + usage.get(names.thoughts, 0.0)) * price.text_out
    ) / 1e6
    return dollars * (price.in_batch if in_batch else 1.0)
