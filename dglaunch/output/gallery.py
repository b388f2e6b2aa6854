"""A folder of results as one HTML page, from the ledger alone.

The page holds its own style, script and data and asks no network for anything. Its pictures are the folder's own files,
fetched when they are scrolled to; only the rows in sight are in the document, so that tens of thousands stay usable.
With --thumbnails small copies are in the page itself: it can then be sent around without its folder.

Nothing in a ledger is trusted: the data are JSON in which no tag can end, the script writes text, never HTML, and the
page's Content-Security-Policy names the script by its hash, so that no other would run.
"""

import base64
import codecs
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from urllib.parse import quote

from dglaunch import strict_json
from dglaunch.atomic import atomic_write
from dglaunch.data.tables import base_of
from dglaunch.data.task import Record
from dglaunch.errors import OutputError
from dglaunch.output.inputs import inputs_of_row
from dglaunch.output.ledger import OutputFolder, object_at
from dglaunch.output.ownership import path_inside, refuse_to_replace
from dglaunch.output.sorted_lines import SortedLines
from dglaunch.output.templates import template, text_of
from dglaunch.output.thumbnails import make_thumbnails

PAGE = "gallery.html"
LEFT_OUT = ("key", "sha256", "input_sha256", "input_file_names", "file_name")
"""Of a ledger line: long and of no use to a reader, or held elsewhere in the page's data."""
ROWS_AT_A_TIME = 1024
PIECE = 1 << 20
"""Bytes of a column that are written at once."""
MOST_EXACT = 2**53
"""JavaScript's numbers are exact up to here."""


# -- the page -----------------------------------------------------------------------------------------------------


def write_page(
    folder: Path, output: Path | None = None, thumbnails: int = 0, rows: Iterable[Record] | None = None
) -> Path:
    """Write the page in one step and return its path: `output`, or gallery.html in the folder.

    Raises:
        MissingPackage: jinja2 is not there.
        UserError: there is another file of that name, or a ledger cannot be read.
        OutputError: it cannot be written.
    """
    output = output if output is not None else folder / PAGE
    refuse_to_replace(output)
    rows = SortedLines(OutputFolder(folder)) if rows is None else rows
    try:
        with atomic_write(output) as temporary, temporary.open("w", encoding="utf-8", errors="replace") as out:
            out.writelines(render(folder, output.parent, thumbnails, rows))
    except OSError as error:
        raise OutputError(f"The gallery {output} cannot be written: {error.strerror or error}.") from None
    return output


def render(folder: Path, page_folder: Path, thumbnails: int, rows: Iterable[Record]) -> Iterator[str]:
    """Return the page as text, in pieces.

    Args:
        folder: the results.
        page_folder: where the page will lie; its links are relative to it.
        thumbnails: pixels of the pictures in the page; 0 for links to the files.
        rows: ledger lines and failures.
    """
    page = template("gallery.html", "The gallery")
    style, script = text_of("gallery.css"), text_of("gallery.js")
    run = next(iter(OutputFolder(folder).runs().values()), {})
    return page.generate(
        title=folder.resolve().name,
        data=page_data(folder, page_folder, thumbnails, rows),
        summary=summary(run),
        settings=run_settings(run),
        style=style,
        script=script,
        policy=policy(style, script),
    )


def script_json(value: object) -> str:
    """Return JSON for inside a <script> element: no tag, comment or entity can begin in it, whatever a prompt says."""
    text = strict_json.dumps(value, compact=True)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def policy(style: str, script: str) -> str:
    """Return the Content-Security-Policy: this script and style, pictures from the page's own place, and nothing else."""
    digests = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in (script, style)
    ]
    pictures = "img-src 'self' file: data:"
    return f"default-src 'none'; script-src {digests[0]}; style-src {digests[1]}; {pictures}; base-uri 'none'; form-action 'none'"


def page_data(folder: Path, page_folder: Path, thumbnails: int, rows: Iterable[Record]) -> Iterator[str]:
    """Return all that the script needs, as JSON in pieces: the rows as columns, in which one value stands for a column of
    equal ones. In memory are the columns' texts, not the rows."""
    table = OutputFolder(folder).input_table()
    table_folder = base_of(table) if table else None
    base = _relative(folder, page_folder)
    columns: dict[str, Column] = {}
    files, inputs, pictures = Column(), Column(), Column()
    count, coming = 0, iter(rows)
    while part := list(islice(coming, ROWS_AT_A_TIME)):
        names = [path_inside(row.get("file_name")) for row in part]
        for picture in make_thumbnails(folder, names, thumbnails) if thumbnails else []:
            pictures.add(picture)
        for row, name in zip(part, names):
            columns |= {key: Column(count) for key in row if key not in columns and key not in LEFT_OUT}
            for key, column in columns.items():
                column.add(row.get(key))
            found = inputs_of_row(folder, table_folder, row) if "input_images" in row else []
            files.add(name)
            inputs.add([_url(_relative(path, page_folder)) for path in found])
            count += 1
    known = {"count": count, "folder": str(folder), "base": "" if base == Path() else _url(base) + "/"}
    yield script_json(known)[:-1] + ',"columns":{'
    for number, (name, column) in enumerate(columns.items()):
        yield "," * bool(number) + script_json(name) + ":"
        yield from column.folded()
    yield '},"files":'
    yield from files.whole()
    yield ',"inputs":'
    yield from inputs.folded()
    yield ',"thumbnails":'
    yield from pictures.whole() if thumbnails else ["null"]
    yield "}"


class Column:
    """The values of a column for the script, as JSON: while all are equal only the first of them, then a text that grows.

    Args:
        missing: rows before this one that did not have it.
    """

    def __init__(self, missing: int = 0) -> None:
        self._count = missing
        self._first = self._last = "null"
        self._last_value: object = None
        self._text: bytearray | None = None

    def add(self, value: object) -> None:
        if (
            type(value) is not type(self._last_value)
            or isinstance(value, float | dict | list)
            or value != self._last_value
        ):
            self._last_value, self._last = value, script_json(_for_script(value))
        if not self._count:
            self._first = self._last
        if self._text is None and self._last != self._first:
            self._text = bytearray(",".join([self._first] * self._count).encode())
        if self._text is not None:
            self._text += b"," + self._last.encode()
        self._count += 1

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


def _for_script(value: object) -> object:
    """A value as JavaScript can read it: whole numbers that a double would round, and NaN, become text."""
    if isinstance(value, dict):
        return {str(name): _for_script(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_for_script(item) for item in value]
    if isinstance(value, int) and abs(value) > MOST_EXACT:
        return str(value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _url(path: Path) -> str:
    return quote(os.fsencode(path.as_posix()))  # a name need not be UTF-8


def _relative(path: Path, page_folder: Path) -> Path:
    return Path(os.path.relpath(path.resolve(), page_folder.resolve()))


def summary(run: Record) -> list[tuple[str, str]]:
    """Return the page's head: what made these, on what, how fast."""
    settings, speed = object_at(run, "settings"), run.get("images_per_s")
    shown = {
        "model": settings.get("model_name"),
        "dtype": settings.get("torch_dtype"),
        "device": run.get("device"),
        "outcome": run.get("outcome"),
        "speed": f"{speed:.3g} images/s" if isinstance(speed, int | float) and 0 < speed < 1e12 else None,
        "started": run.get("started"),
    }
    return [(name, str(value)) for name, value in shown.items() if value is not None]


def run_settings(run: Record) -> list[tuple[str, str]]:
    """Return what was set for the whole run, its times and its versions."""
    shown: dict[str, object] = {}
    for name, entry in object_at(run, "config").items():
        if isinstance(entry, Mapping) and entry.get("from") != "default" and entry.get("value") is not None:
            shown[name] = entry["value"]
    shown |= {f"seconds, {stage}": value for stage, value in object_at(run, "seconds").items()}
    shown |= {f"version, {name}": value for name, value in object_at(run, "versions").items()}
    return [(name, str(value)) for name, value in shown.items()]
