"""What the pages of pictures are made of: data that cannot end their script, addresses, the policy, and a file in one step.

Nothing in a ledger is trusted: the data are JSON in which no tag can end, the script writes text, never HTML, and the
page's Content-Security-Policy names the script by its hash, so that no other would run.
"""

import base64
import codecs
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import cast
from urllib.parse import quote

from dglaunch import strict_json
from dglaunch.atomic import atomic_write
from dglaunch.errors import OutputError
from dglaunch.output.ownership import refuse_to_replace

PIECE = 1 << 20
"""Bytes of a column that are written at once."""
MOST_EXACT = 2**53
"""JavaScript's numbers are exact up to here."""


def write_pieces(output: Path, pieces: Iterable[str], kind: str) -> None:
    """Write a page in one step.

    Args:
        kind: what it is called in an error.

    Raises:
        UserError: there is another file of that name.
        OutputError: it cannot be written.
    """
    refuse_to_replace(output)
    try:
        with atomic_write(output) as temporary, temporary.open("w", encoding="utf-8", errors="replace") as out:
            out.writelines(pieces)
    except OSError as error:
        raise OutputError(f"The {kind} {output} cannot be written: {error.strerror or error}.") from None


def script_json(value: object) -> str:
    """Return JSON for inside a <script> element: no tag, comment or entity can begin in it, whatever a prompt says."""
    text = strict_json.dumps(value, compact=True)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def policy(style: str, script: str, loads: bool = False) -> str:
    """Return the Content-Security-Policy: this script and style, pictures from the page's own place, and nothing else.

    Args:
        loads: the script loads others, and only what it asks for itself.
    """
    digests = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in (script, style)
    ]
    pictures = "img-src 'self' file: data:"
    scripts = digests[0] + " 'strict-dynamic'; trusted-types rows; require-trusted-types-for 'script'" * loads
    return f"default-src 'none'; script-src {scripts}; style-src {digests[1]}; {pictures}; base-uri 'none'; form-action 'none'"


class Column:
    """The values of a column for the script, as JSON: while all are equal only the first of them, then a text that grows.

    Args:
        missing: rows before this one that did not have it.
    """

    def __init__(self, missing: int = 0) -> None:
        self._count = missing
        self._first = "null"
        self._text: bytearray | None = None

    def add(self, value: object) -> None:
        self.extend([value])

    def extend(self, values: Sequence[object]) -> None:
        """Add several: a batch is encoded at once."""
        if not values:
            return
        text = script_json(values if _are_plain(values) else list(map(for_script, values)))[1:-1]
        if not self._count:
            self._first = script_json(for_script(values[0]))
        if self._text is None and text != ",".join([self._first] * len(values)):
            self._text = bytearray(",".join([self._first] * self._count).encode())
        if self._text is not None:
            self._text += b"," * bool(self._count) + text.encode()
        self._count += len(values)

    def whole(self) -> Iterator[str]:
        """Return it as a list, in pieces."""
        yield "["
        if self._text is None:
            yield ",".join([self._first] * self._count)
        else:
            pieces = (bytes(self._text[start : start + PIECE]) for start in range(0, len(self._text), PIECE))
            yield from codecs.iterdecode(pieces, "utf-8")
        yield "]"

    def folded(self) -> Iterator[str]:
        """Return it as a list, or as {"all": value} where every row has the same."""
        return iter([f'{{"all":{self._first}}}']) if self._text is None and self._count > 1 else self.whole()


def folded_object(columns: Mapping[str, Column]) -> Iterator[str]:
    """Return columns as an object for the script, in pieces; `Column.folded` is each of them."""
    yield "{"
    for number, (name, column) in enumerate(columns.items()):
        yield "," * bool(number) + script_json(name) + ":"
        yield from column.folded()
    yield "}"


def _are_plain(values: Sequence[object]) -> bool:
    """Whether JavaScript can read them all as they are: most columns of most ledgers."""
    kinds = set(map(type, values))
    if kinds == {int}:
        numbers = cast(Sequence[int], values)
        return min(numbers) >= -MOST_EXACT and max(numbers) <= MOST_EXACT
    return kinds <= {str, bool, NoneType}


def for_script(value: object) -> object:
    """Return a value as JavaScript can read it: whole numbers that a double would round, and NaN, become text."""
    if isinstance(value, dict):
        return {str(name): for_script(item) for name, item in value.items()}
    if isinstance(value, list):
        return [for_script(item) for item in value]
    if isinstance(value, int) and abs(value) > MOST_EXACT:
        return str(value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def url_of(path: Path) -> str:
    """Return a relative path as an address."""
    return quote(os.fsencode(path.as_posix()))  # a name need not be UTF-8


def relative(path: Path, page_folder: Path) -> Path:
    """Return a path as it is seen from where a page lies."""
    return Path(os.path.relpath(path.resolve(), page_folder.resolve()))
