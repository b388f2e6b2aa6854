"""The formats of tables: each reader yields the rows of one file, in order.

Bad rows are handed on with what is wrong with them, so that all can be shown at once. A cell that is empty is None: its
column is there all the same.
"""

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from dglaunch import strict_json
from dglaunch.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

Row = tuple[str, dict[str, Any] | str]
"""Where a row stands ("line 3") with its columns, or with what is wrong with it."""

NO_OBJECT = "a JSON object with columns was expected"
GZIP, GZIP_MAGIC = ".gz", b"\x1f\x8b"
CELLS = (".csv", ".tsv")
"""Suffixes of tables whose first line names the columns of all rows."""
UNNAMED = "Unnamed: "
"""How the name of a column begins that has none, as pandas calls it: Excel writes empty ones."""
DELIMITERS = ",;\t"
"""Of a .csv: Excel's, by country."""


# -- JSON ---------------------------------------------------------------------------------------------------------


def _jsonl(lines: TextIO) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        try:
            value = strict_json.loads(line, allow_nan=False)
        except json.JSONDecodeError as error:
            yield f"line {number}", f"not valid JSON: {error}"
        except ValueError as error:
            yield f"line {number}", str(error)
        else:
            yield f"line {number}", _object(value, _may_have_halves(line))


def _may_have_halves(text: str) -> bool:
    """Whether an escape may name half a character, which no file can hold."""
    return "\\ud" in text or "\\uD" in text


def _object(value: object, may_have_halves: bool) -> dict[str, Any] | str:
    """A row of JSON, or what is wrong with it."""
    if may_have_halves:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            return f"has half a character ({error.object[error.start]!r}, a lone surrogate)"
    return value if isinstance(value, dict) and value else NO_OBJECT


def _json(lines: TextIO) -> Iterator[Row]:
    """A list of rows, or of prompts, or such a list under a key; lines of JSON, as files of this name often are."""
    text = lines.read()
    if not text.strip():
        return
    try:
        value = strict_json.loads(text, allow_nan=False)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from _jsonl(io.StringIO(text))
        else:
            yield f"line {error.lineno}", f"not valid JSON: {error}"
        return
    except ValueError as error:
        yield "the file", str(error)
        return
    halves = _may_have_halves(text)
    for number, item in enumerate(_list_in(value), 1):
        yield f"item {number}", _object({"prompt": item} if isinstance(item, str) else item, halves)


def _list_in(value: object) -> list[object]:
    """The rows of a JSON text: the value itself if it is a list; the only list of objects under a key of it; the list under
    its only key; else the value, as one row."""
    if isinstance(value, list):
        return value
    lists = [item for item in value.values() if isinstance(item, list)] if isinstance(value, dict) else []
    of_objects = [items for items in lists if items and all(isinstance(item, dict) for item in items)]
    if len(of_objects) == 1:
        return of_objects[0]
    return lists[0] if lists and isinstance(value, dict) and len(value) == 1 else [value]


# -- cells with marks between them ----------------------------------------------------------------------------------


def _csv(lines: TextIO, delimiter: str = "") -> Iterator[Row]:
    csv.field_size_limit(2**30)
    head, skipped = lines.readline(), 0
    if head.strip().lower().startswith("sep=") and len(head.strip()) == 5:  # Excel's own line about it
        delimiter, head, skipped = head.strip()[4], lines.readline(), 1
    delimiter = delimiter or delimiter_of(head)
    reader = csv.reader(chain([head], lines), strict=True, delimiter=delimiter)
    start = skipped + 1
    names: list[str] = []
    try:
        for cells in reader:
            label, start = f"line {start}", reader.line_num + skipped + 1
            if not any(cell.strip() for cell in cells):
                continue  # Excel writes empty rows as commas, and empty columns too
            if not names:
                names = [cell.strip() or f"{UNNAMED}{n}" for n, cell in enumerate(cells)]
                if len(set(names)) < len(names):
                    yield label, "two columns have the same name; rename one of them"
                    return
                continue
            while len(cells) > len(names) and not cells[-1].strip():
                cells.pop()
            if len(cells) != len(names):
                mark = MARKS.get(delimiter, delimiter)
                yield label, f"{len(cells)} fields where the header has {len(names)} ({mark} outside quotes?)"
            else:
                yield label, {name: cell if cell != "" else None for name, cell in zip(names, cells)}
    except csv.Error as error:
        yield f"line {start}", f"not valid CSV: {error}"


MARKS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}


def delimiter_of(head: str) -> str:
    """Return the mark that stands most often in the first line of a table, outside of quotes; a comma if none does."""
    bare = "".join(head.split('"')[::2])
    return max(DELIMITERS, key=bare.count)


def _txt(lines: TextIO) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if text := line.strip():
            yield f"line {number}", {"prompt": text}


TEXT_READERS: Mapping[str, Callable[[TextIO], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": partial(_csv, delimiter="\t"),
    ".txt": _txt,
}
"""By the suffix of the file; each may be packed (.csv.gz)."""
PARQUET = ".parquet"
KINDS = (*TEXT_READERS, PARQUET)
"""Suffixes of the tables that are read."""


def read_text(data: io.BufferedIOBase, suffix: str) -> Iterator[Row]:
    """Yield the rows of a table that is text.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
        OSError: it cannot be read.
    """
    newline = "" if suffix in CELLS else None
    with io.TextIOWrapper(data, encoding="utf-8-sig", newline=newline) as lines:  # type: ignore[type-var]  # of any buffered bytes
        yield from TEXT_READERS[suffix](lines)


# -- which one is it? -----------------------------------------------------------------------------------------------


def kind_of(path: Path) -> tuple[str, bool]:
    """Return the suffix that says a file's format, in small letters, and whether the file is packed."""
    is_packed = path.suffix.lower() == GZIP
    return (path.with_suffix("") if is_packed else path).suffix.lower(), is_packed


def guess(data: bytes, text_column: str) -> str:
    """Return the suffix that a table without a name should have: of JSON, of cells whose header has the column of prompts, or
    of lines of text."""
    text = data.removeprefix(codecs.BOM_UTF8).lstrip()
    head, _, rest = text.partition(b"\n")
    if text.startswith(b"{"):
        return ".jsonl" if not rest.strip() or head.rstrip().endswith(b"}") else ".json"
    if text.startswith(b"[") and text[1:].lstrip()[:1] in (b"{", b'"'):
        return ".json"
    line = head.decode("utf-8", "replace")
    cells = [cell.strip(' "\r').casefold() for cell in line.split(delimiter_of(line))]
    if cells[0].startswith("sep="):
        return ".csv"
    return ".csv" if len(cells) > 1 and text_column.casefold() in cells else ".txt"


# -- Parquet --------------------------------------------------------------------------------------------------------


BATCH = 1 << 16
"""Rows of Parquet that are read at a time."""
BATCH_OF_IMAGES = 16
"""The same where a column holds bytes: images would fill the memory, thousands of rows at a time."""


def row_label(number: int) -> str:
    """Return what a row of a Parquet file is called."""
    return f"row {number}"


def read_parquet(path: Path) -> Iterator[Row]:
    """Yield the rows of a Parquet file.

    Raises:
        UserError: it is none.
    """
    rows = (row for batch in read_batches(path, 4096) for row in batch.to_pylist())
    yield from ((row_label(number), row) for number, row in enumerate(rows))


def read_batches(path: Path, size: int | None = None) -> "Iterator[pa.RecordBatch]":
    """Yield the rows of a Parquet file in columns, some at a time.

    Raises:
        UserError: it is none.
    """
    with _arrow_errors(path):
        from pyarrow.parquet import ParquetFile

        file = ParquetFile(path, memory_map=True)
        yield from file.iter_batches(
            batch_size=BATCH_OF_IMAGES if "binary" in str(file.schema_arrow) else size or BATCH
        )


def parquet_shape(path: Path) -> "tuple[int, pa.Schema]":
    """Return how many rows a Parquet file has, and its columns.

    Raises:
        UserError: it is none.
    """
    with _arrow_errors(path):
        from pyarrow.parquet import ParquetFile

        file = ParquetFile(path)
        return file.metadata.num_rows, file.schema_arrow


@contextmanager
def _arrow_errors(path: Path) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except ArrowException as error:
        said = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"{path} is no readable Parquet file: {said}. If it is only half there, write or fetch it again, or take it out."
        ) from None
