"""JSON that every reader takes: no NaN, no infinity, no integer beyond 64 bits, no half character, no endless nesting.

All JSON that dglaunch writes passes `dumps`. What others wrote passes `loads`, and what of it goes on into dglaunch's own
files passes `problem_with` first, so that a row's value is refused before the run and never changed.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator

MOST_NESTED = 64
"""Lists and objects inside of each other."""
LEAST_INTEGER, MOST_INTEGER = -(2**63), 2**64 - 1
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_TOO_DEEP = f"is nested more than {MOST_NESTED} levels deep"


def dumps(value: object, indent: int | None = None, ascii_only: bool = False, compact: bool = False) -> str:
    """Return a value as strict JSON; what is none of JSON's types (a date of a Parquet column) as a text.

    What still comes here as NaN or infinite was measured, or said by a server: it becomes null, for a run must not end
    because of it.
    """
    encoder = json.JSONEncoder(
        allow_nan=False,
        ensure_ascii=ascii_only,
        indent=indent,
        separators=(",", ":") if compact else None,
        default=str,
    )
    try:
        text = encoder.encode(value)
    except ValueError:
        text = encoder.encode(_finite(value))
    return whole_characters(text)


def whole_characters(text: str) -> str:
    """Return a text that a UTF-8 file can hold: half a character (of a file name, or of a server's JSON) becomes U+FFFD."""
    return _HALF_CHARACTER.sub("\ufffd", text)


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def loads(text: str | bytes, allow_nan: bool = True) -> object:
    """Return the value of a JSON text that anyone may have written.

    Args:
        allow_nan: NaN and Infinity are read, as older ledgers have them.

    Raises:
        ValueError: it is no JSON, or is nested too deep.
    """
    try:
        value = json.loads(text) if allow_nan else json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if _openings(text) > MOST_NESTED and any(_is_too_deep(depth, level) for depth, level in _levels(value)):
        raise ValueError(_TOO_DEEP)
    return value


def _refuse_constant(name: str) -> object:
    raise ValueError(f"has {name}, which is no JSON; write null, or leave it out")


def _openings(text: str | bytes) -> int:
    if isinstance(text, str):
        return text.count("[") + text.count("{")
    return text.count(b"[") + text.count(b"{")


def _is_too_deep(depth: int, level: Iterable[object]) -> bool:
    return depth >= MOST_NESTED and any(isinstance(item, dict | list | tuple) for item in level)


def _levels(value: object) -> Iterator[tuple[int, list[object]]]:
    """Yield what stands 0, 1, 2, ... levels deep. Not by recursion, which ends at some depth of its own."""
    depth, level = 0, [value]
    while level:
        yield depth, level
        depth, level = depth + 1, [child for item in level for child in _children(item)]


def _children(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def problem_with(value: object) -> str | None:
    """Say what of a value other readers of JSON would not take, as the end of a sentence that names it; or None."""
    if isinstance(value, str):  # as every cell of a CSV is
        return None
    for depth, level in _levels(value):
        if _is_too_deep(depth, level):
            return _TOO_DEEP
        for item in level:
            if isinstance(item, float) and not math.isfinite(item):
                return f"has {item}, which is no JSON; write null or a text, or leave it out"
            if isinstance(item, int) and not LEAST_INTEGER <= item <= MOST_INTEGER:
                return "has an integer beyond 64 bits; write it as a text"
    return None
