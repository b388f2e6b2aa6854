"""What comes back from an API: answers, errors, and how their parts are read. Nothing here knows of a run."""

import base64
import binascii
import email.utils
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from PIL import Image

from dglaunch.data.images import damage_is_a_bad_image, open_image
from dglaunch.output.encode import WholePng, whole_png

MAX_DOWNLOAD = 1 << 27
MOST_AMOUNT = 1e15
"""Tokens, seconds or dollars of one answer; more is no number that a server has counted."""
MOST_NESTED = 8
"""Objects inside of each other in a usage report."""
SLOW_DOWN = (429, 503, 529)
AGAIN = (408, 409, 425)
STOPS = {
    401: "does not accept the key in {keys}. Correct the variable and start the same command again",
    402: "wants a payment first. Settle it and start the same command again",
    403: "does not let this key use {model}. Ask for access or choose another --model_name",
    404: "has no model {model}, or is not such an API. Correct --model_name, or --api_base",
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
    ) -> None:
        super().__init__(text)
        self.kind = kind
        self.retry_after = retry_after
        self.status = status


@dataclass(slots=True)
class Answer:
    """One answer: for each task asked for its image's bytes or what happened to it; perhaps fewer than were asked for."""

    parts: list[bytes | RequestError]
    usage: dict[str, float] = field(default_factory=dict)
    """Numbers that the server reports; `cost` is in US dollars."""


def decode(text: str) -> bytes:
    """base64 that is whole."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError("again", f"the image in the answer is damaged: {error}") from None


def picture(data: bytes, output_format: str) -> Image.Image | WholePng:
    """The image in full; one that is cut off is problem now, not a file that cannot be read later."""
    try:
        if output_format == "png" and (png := whole_png(data)) is not None:
            return png
        with damage_is_a_bad_image():
            image = open_image(data)
            image.load()
    except ValueError as error:
        raise RequestError("again", f"the image in the answer is damaged: {error}") from None
    return image


def download(address: str, timeout: float) -> bytes:
    """An image that the answer only points to. It is paid for already, so the download has tries of its own."""
    if urlsplit(address).scheme not in ("http", "https"):
        raise RequestError("again", "the answer points to something that is no http address")
    for last in (False, False, True):
        try:
            with urllib.request.urlopen(address, timeout=timeout) as answer:
                return bytes(answer.read(MAX_DOWNLOAD))
        except (OSError, ValueError, urllib.error.URLError) as error:
            if last:
                raise RequestError(
                    "again", f"the image cannot be fetched from the address in the answer: {error}"
                ) from None
        time.sleep(1.0)
    raise AssertionError("the last try returns or raises")


def by_status(status: int, reason: str, headers: Mapping[str, str]) -> RequestError:
    """What an HTTP status means, whichever API sent it."""
    wait = retry_after(headers)
    if status in SLOW_DOWN:
        return RequestError("slow_down", f"HTTP {status}: {reason}", wait, status)
    if status in AGAIN or status >= 500:
        return RequestError("again", f"HTTP {status}: {reason}", wait, status)
    return RequestError("stop" if status in STOPS else "refused", reason, None, status)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: Retry-After as a number or a date."""
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
    """A text without the key, and without what begins like it (servers repeat a key with its middle starred out)."""
    return re.sub(re.escape(key[:8]) + r"[\w*.-]*", "[key]", text)[:2000] if key else text[:2000]


def flat_numbers(report: Mapping[str, object], prefix: str = "") -> dict[str, float]:
    """The numbers of a usage report that can be added up; nested ones get dotted names."""
    numbers: dict[str, float] = {}
    for name, value in report.items():
        if isinstance(value, Mapping) and prefix.count(".") < MOST_NESTED:
            numbers |= flat_numbers(value, f"{prefix}{name}.")
        elif (number := amount(value)) is not None:
            numbers[f"{prefix}{name}"] = number
    return numbers
