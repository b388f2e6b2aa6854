"""The values of a row: what a cell must be, whether it came from JSON, CSV or Parquet.

Each function returns the value or raises a ValueError whose text ends a sentence that names the row and the column.
"""

import math
import re
import unicodedata
from collections.abc import Callable
from contextlib import suppress

from dglaunch.config import MAX_SEED

Check = Callable[[object], object]
"""Any of these functions."""
MAX_NAME_BYTES = 200
MOST_EXACT = 2**53
"""Up to which a floating point number is exact; pandas makes such numbers of a column with gaps."""
MAX_SIDE = 16384
FORMAT_SIDES = {"webp": 16_383, "jpg": 65_535}
"""The longest side of a file, by --output_format."""


def whole_number(value: object, least: int = 0, most: int = MAX_SEED) -> int:
    """Return a whole number from JSON, CSV or Parquet (pandas writes 7 as 7.0 where a column has gaps)."""
    if isinstance(value, str) and (found := re.fullmatch(r"([+-]?\d+)(\.0*)?", value.strip())):
        value = int(found[1])
    if isinstance(value, float) and value.is_integer():
        if abs(value) > MOST_EXACT:
            raise ValueError(
                f"is {value!r}, a floating point number of which the last digits are lost; write it as a text"
            )
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"is {value!r}, not a whole number")
    if not least <= value <= most:
        raise ValueError(f"is {value}, not between {least} and {most}")
    return value


def num_samples(value: object) -> int:
    """Return how many images a row wants."""
    return whole_number(value, 1, 10_000)


def number(value: object) -> float:
    """Return a number of 0 or more."""
    found = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):  # an integer that no float can hold
            found = float(value)
    if not (math.isfinite(found) and found >= 0):
        raise ValueError(f"is {value!r}, not a number of 0 or more")
    return found


def share(value: object) -> float:
    """Return a number above 0, up to 1."""
    found = number(value)
    if not 0 < found <= 1:
        raise ValueError(f"is {found:g}, not a number above 0 and up to 1")
    return found


def positive(value: object) -> float:
    """Return a number above 0."""
    found = number(value)
    if not found:
        raise ValueError("is 0, not a number above 0")
    return found


def text(value: object) -> str:
    """Return a text that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"is {value!r}, not a text")
    return _whole(value)


def _whole(words: str) -> str:
    """Return the text, if a file can hold it: a terminal or a JSON escape may have left half a character in it."""
    try:
        words.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has a character that is not UTF-8 at {error.start} ({words[error.start]!r})") from None
    return words


def negative_prompt_text(value: object) -> str:
    """Return a negative prompt, which may be empty or blank: for some models that turns guidance on."""
    if not isinstance(value, str):
        raise ValueError(f"is {value!r}, not a text")
    return _whole(value)


def side(value: object, multiple: int, output_format: str = "png") -> int:
    """Return a height or width in pixels that the model can make and a file can hold."""
    pixels = whole_number(value, 1, MAX_SIDE)
    if problem := too_long_for(output_format, pixels):
        raise ValueError(f"is {pixels}; {problem}")
    if pixels % multiple:
        low = pixels // multiple * multiple
        near = f"{low} or {low + multiple}" if low else str(multiple)
        raise ValueError(f"is {pixels}, not a multiple of {multiple} as this model needs; the nearest: {near}")
    return pixels


def too_long_for(output_format: str, pixels: int) -> str | None:
    """Return why a file of this format cannot have so long a side, if so."""
    most = FORMAT_SIDES.get(output_format)
    if most is None or pixels <= most:
        return None
    return f"a {output_format} has at most {most:,} pixels a side (take --output_format png)"


def output_name(value: object) -> str:
    """Return an output name that cannot leave the folder.

    Raises:
        ValueError: it has a path in it, is hidden, too long or has control characters.
    """
    name = re.sub(r"\.(png|jpe?g|webp)$", "", str(value).strip(), flags=re.IGNORECASE)
    if not name or name.startswith(".") or re.search(r'[/\\\x00-\x1f:*?"<>|]', name):
        raise ValueError(f"is {value!r}; a file name without folders, leading dot or control characters is needed")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"is longer than {MAX_NAME_BYTES} bytes")
    return name


def name_key(name: str) -> str:
    """Return what two names have in common that some file system takes for one: macOS and Windows know no case, and macOS
    no difference between an "ä" and an "a" with two dots."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def is_given(value: object) -> bool:
    """Whether a cell holds something (pandas writes NaN where it does not)."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def has_bytes(value: object) -> bool:
    """Whether there are bytes in it, as in a Parquet column of images: no ledger line could carry them."""
    if isinstance(value, dict):
        return any(map(has_bytes, value.values()))
    return isinstance(value, bytes) or (isinstance(value, list | tuple) and any(map(has_bytes, value)))


def is_whole_number(value: object) -> bool:
    """Whether `whole_number` would take it."""
    try:
        return whole_number(value) >= 0
    except ValueError:
        return False
