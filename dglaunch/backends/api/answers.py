"""What comes back from an API: answers, errors, and how their parts are read. Nothing here knows of a run."""

import base64
import binascii
import email.utils
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

from PIL import Image

from dglaunch.config import MAX_PIXELS
from dglaunch.data.images import TooManyPixels, damage_is_a_bad_image, open_image
from dglaunch.data.task import Record
from dglaunch.output.whole_file import WholeFile, decoded_file, whole_png

MOST_AMOUNT = 1e15
"""Tokens, seconds or dollars of one answer; more is no number that a server has counted."""
MOST_NESTED = 8
"""Objects inside of each other in a usage report."""
MOST_BYTES = 1 << 29
"""Of one answer, unpacked: ten images of 4K as base64 are less."""
LOOKED_AT, SHOWN = 20_000, 2000
"""Characters of a server's text."""
SLOW_DOWN = (429, 503, 529)
AGAIN = (408, 409, 425)
UNABLE = (500, 502, 503, 504)
"""Of a server that does not work, or what stands before one that is gone."""
NEVER = re.compile(r"\blimit: 0(?![\d.])")
"""In a 429 that no waiting mends: the account may ask for nothing of the kind."""
STOPS = {
    401: "does not accept the key in {keys}. Correct the variable and start the same command again",
    402: "wants a payment first. Settle it and start the same command again",
    403: "does not let this key use {model}. Ask for access or choose another --model_name",
    404: "has no model {model}, or is not such an API. Correct --model_name, or --api_base",
    429: "lets this account ask nothing of {model}. See what it says, and start the same command again",
}
"""Answers that every further request would get as well."""


class RequestError(Exception):
    """Why a request has no (whole) answer.

    `again`: worth another try. `slow_down`: the same, and with fewer at a time. `refused`: this item gets no image.
    `stop`: no item will get one.
    """

    def __init__(
        self,
        kind: Literal["again", "slow_down", "refused", "stop"],
        text: str,
        retry_after: float | None = None,
        status: int | None = None,
        lost: bool = False,
        unbilled: bool = False,
    ) -> None:
        super().__init__(text)
        self.kind = kind
        self.retry_after = retry_after
        self.status = status
        self.lost = lost
        """It is the server's trouble rather than this request's: no answer came, or it cannot work at all now."""
        self.may_be_billed = status is None and not unbilled
        """The server had the request and may have made its image, though no answer says so."""


class TooFew(RequestError):
    """The server made fewer images than it was asked for, and nothing else is wrong."""

    def __init__(self, came: int, wanted: int) -> None:
        super().__init__("again", f"{came} of {wanted} images came")


@dataclass(slots=True)
class Part:
    """What an answer has for one image."""

    image: bytes | RequestError
    told: Record = field(default_factory=dict)
    """What came with it, for the ledger: `answer_text`, `revised_prompt`."""
    cost: float | None = None
    """Its part of what the answer cost, in US dollars."""


@dataclass(slots=True)
class Answer:
    """One answer: for each task asked for its image's bytes or what happened to it; perhaps fewer than were asked for."""

    parts: list[Part]
    usage: dict[str, float] = field(default_factory=dict)
    """Numbers that the server reports; `cost` is in US dollars."""


def decode(text: str) -> bytes:
    """base64 that is whole, also broken into lines, or as a data: URL."""
    if text.startswith("data:"):
        kind, comma, text = text.partition(",")
        if not comma or not kind.endswith(";base64"):
            raise RequestError("again", f"the image in the answer is a data: URL without base64: {kind[:80]}")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError("again", f"the image in the answer is damaged: {error}") from None


def picture(data: bytes, output_format: str) -> Image.Image | WholeFile:
    """The image in full; one that is cut off is an error now, not a file that cannot be read later.

    Raises:
        RequestError: it is damaged; or has so many pixels that looking at it later would take all memory.
    """
    try:
        if output_format == "png" and (png := whole_png(data)) is not None:
            return _not_too_large(png)
        with damage_is_a_bad_image():
            image = open_image(data)
            image.load()
            return decoded_file(data, image, output_format) or image
    except TooManyPixels as error:
        raise RequestError("refused", f"the image in the answer {error}") from None
    except ValueError as error:
        raise RequestError("again", f"the image in the answer is damaged: {error}") from None


def _not_too_large(png: WholeFile) -> WholeFile:
    """A PNG that is not decoded here is all the same one that everybody who looks at it must decode."""
    if png.width * png.height > MAX_PIXELS:
        raise RequestError(
            "refused", f"the image in the answer has {png.width}x{png.height}, more than {MAX_PIXELS:,} pixels"
        )
    return png


def bounded(pieces: Iterator[bytes], deadline: float, timeout: float) -> Iterator[bytes]:
    """The pieces of an answer's body as they arrive, unpacked, while they are not too many and not too late.

    Raises:
        RequestError: they are.
    """
    count = 0
    for piece in pieces:
        count += len(piece)
        if count > MOST_BYTES:
            raise RequestError("refused", f"the answer is larger than {MOST_BYTES:,} bytes")
        if time.monotonic() > deadline:
            raise RequestError("again", f"no whole answer within {timeout:g} s")
        yield piece


def spool_to(out: BinaryIO, most: int, pieces: Iterator[bytes]) -> None:
    """Write an answer's body to a file as it arrives; each piece has the SDK's own time limit.

    Raises:
        RequestError: it is larger than `most`, or cannot be written.
    """
    count = 0
    for piece in pieces:
        count += len(piece)
        if count > most:
            raise RequestError("refused", f"the file of answers is larger than {most:,} bytes")
        try:
            out.write(piece)
        except OSError as error:
            raise RequestError(
                "refused", f"the file of answers cannot be kept here: {error.strerror or error}"
            ) from None


def by_status(status: int, reason: str, headers: Mapping[str, str]) -> RequestError:
    """What an HTTP status means, whichever API sent it; the server's own word on another try (x-should-retry) comes first."""
    wait, word = retry_after(headers), headers.get("x-should-retry", "").strip().lower()
    if status == 429 and NEVER.search(reason):
        return RequestError("stop", reason, None, status)
    if word == "false" and status in (*SLOW_DOWN, *AGAIN, *range(500, 600)):
        return RequestError("stop" if status == 429 else "refused", f"HTTP {status}: {reason}", None, status)
    if status in SLOW_DOWN:
        return RequestError("slow_down", f"HTTP {status}: {reason}", wait, status, lost=status in UNABLE)
    if status in AGAIN or status >= 500 or word == "true":
        return RequestError("again", f"HTTP {status}: {reason}", wait, status, lost=status in UNABLE)
    return RequestError("stop" if status in STOPS else "refused", reason, None, status)


def too_late(timeout: float) -> RequestError:
    """Nothing came within --timeout."""
    return RequestError("again", f"no answer within {timeout:g} s (--timeout)", lost=True)


def unexplained(error: Exception, *damaged: type[Exception]) -> RequestError:
    """What an exception means that says nothing of HTTP or of a connection: a damaged answer (a ValueError or one of
    `damaged`), else a request that cannot be made."""
    if isinstance(error, (ValueError, *damaged)):
        return RequestError("again", f"the answer cannot be read: {error}")
    return RequestError("refused", f"{type(error).__name__}: {error}", unbilled=True)


def rewritten(prompt: object, asked: str) -> Record:
    """What the ledger says of the prompt that an image was made of, where the server made it another."""
    return {"revised_prompt": prompt} if isinstance(prompt, str) and prompt not in ("", asked) else {}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: retry-after-ms, else Retry-After as a number or a date."""
    try:
        return amount(float(headers["retry-after-ms"]) / 1000)
    except (KeyError, ValueError):
        pass
    text = headers.get("retry-after", "").strip()
    try:
        return amount(float(text))
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None


def amount(value: object) -> float | None:
    """A number that a server names, if it can be counted with: finite and not negative (JSON and headers may say NaN)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 <= value <= MOST_AMOUNT else None


def redact(text: str, key: str) -> str:
    """A text without the key, and without what shows a part of it: what begins like it (servers repeat a key with its middle
    starred out), and its end after stars or dots."""
    if key:
        # Of a text without end the patterns see a part, and each has its bounds: none may take a minute.
        text = text.replace(key, "[key]")[:LOOKED_AT]
        begins = rf"{re.escape(key[:8])}[\w*.…-]*"
        both_ends = rf"{re.escape(key[:3])}[\w-]{{0,99}}[*.…]{{1,99}}[\w-]{{0,99}}{re.escape(key[-4:])}"
        text = re.sub(rf"{begins}|{both_ends}|[*.…]{{2,99}}{re.escape(key[-4:])}", "[key]", text)
    return text[:SHOWN]


def flat_numbers(report: Mapping[str, object], prefix: str = "") -> dict[str, float]:
    """The numbers of a usage report that can be added up; nested ones get dotted names."""
    numbers: dict[str, float] = {}
    for name, value in report.items():
        if isinstance(value, Mapping) and prefix.count(".") < MOST_NESTED:
            numbers |= flat_numbers(value, f"{prefix}{name}.")
        elif (number := amount(value)) is not None:
            numbers[f"{prefix}{name}"] = number
    return numbers
