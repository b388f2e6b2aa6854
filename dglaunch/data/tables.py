"""Tables of rows as JSONL, CSV, TXT or Parquet, or a folder of them.

Bad rows are handed on with what is wrong with them, so that all can be shown at once.
"""

import codecs
import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from dglaunch import strict_json
from dglaunch.errors import MissingPackage, UserError
from dglaunch.files import at_home, read_once

PROMPT_FILE = "prompt_file"
"""Column of a table that was read from a folder of .txt files: the name of the prompt's file without its suffix."""


Row = tuple[str, dict[str, Any] | str]
"""Where a row stands ("line 3") with its columns, or with what is wrong with it."""


def read_table(path: Path) -> Iterator[Row]:
    """The rows of a .jsonl, .csv, .txt or .parquet file, or of the files of a folder, in order.

    Raises:
        UserError: the file is missing, unreadable, not UTF-8 or of another kind.
    """
    with _errors_of(path):
        yield from _folder(path) if path.is_dir() else _file(path)


def _file(path: Path) -> Iterator[Row]:
    suffix = path.suffix.lower()
    if suffix not in KINDS:
        raise UserError(f"{path} is none of the tables dglaunch reads ({', '.join(KINDS)}); rename or convert it.")
    if not path.is_file():
        if path.exists():
            raise UserError(f"{path} is no regular file; save what comes out of it to one first.")
        raise UserError(f"There is no file {path} (looked in {Path.cwd()}).")
    if suffix == ".parquet":
        yield from _parquet(path)
        return
    with path.open(encoding="utf-8-sig", newline="" if suffix == ".csv" else None) as lines:
        yield from TEXT_READERS[suffix](lines)


def read_pipe(path: Path) -> bytes:
    """All that comes out of a pipe.

    Raises:
        UserError: it cannot be read, or is too long.
    """
    try:
        with _errors_of(path):
            return read_once(path)
    except UserError as error:
        if path.exists():
            raise
        raise UserError(
            f"{error} Torchrun hands its standard input on to rank 0, and no other open file: pipe the prompts into it and "
            "give --prompts_file -, or name a pipe that mkfifo made."
        ) from None


def rows_of_pipe(path: Path, data: bytes) -> Iterator[Row]:
    """The rows that came out of a pipe, in the format that its name says, else JSONL or lines of text.

    Raises:
        UserError: it is not UTF-8.
    """
    suffix = path.suffix.lower()
    with _errors_of(path):
        if suffix not in TEXT_READERS:
            suffix = ".jsonl" if data.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{") else ".txt"
        text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="" if suffix == ".csv" else None)
        yield from TEXT_READERS[suffix](text)


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); convert it: iconv -t UTF-8.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None


def files_of(folder: Path) -> list[Path]:
    """The files that a folder of tables or prompts is made of: all of its .parquet, else all of its .txt, by name. Hidden
    ones are none of them (macOS puts a ._a.txt beside each a.txt on a foreign disk)."""
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    kinds = ([path for path in files if path.suffix.lower() == suffix] for suffix in (".parquet", ".txt"))
    return next(filter(None, kinds), [])


def base_of(table: Path) -> Path:
    """What the relative paths in a table are relative to."""
    return table if os.path.isdir(table) else table.parent  # also of a name that no file can have


def path_in(base: Path, text: str) -> Path:
    """The file that a cell of a table names."""
    return base / at_home(Path(text))


def _folder(folder: Path) -> Iterator[Row]:
    """A folder of .txt files with a prompt each, named as DPG-Bench does, or a table in parts, as GenArena's."""
    files = files_of(folder)
    if not files:
        raise UserError(f"The folder {folder} has neither .txt files with a prompt each nor .parquet files.")
    for path in files:
        if path.suffix.lower() == ".txt":
            text = " ".join(text for _, row in read_table(path) for text in row.values())  # type: ignore[union-attr]  # a line of text is a row
            empty = "the file is empty; write a prompt into it, or take it out of the folder"
            yield path.name, {"prompt": text, PROMPT_FILE: path.stem} if text else empty
        else:
            yield from ((f"{path.name}, {label}", row) for label, row in read_table(path))


def _jsonl(lines: TextIO) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        try:
            row = strict_json.loads(line, allow_nan=False)
            if "\\ud" in line or "\\uD" in line:  # an escape may name half a character, which no file can hold
                json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            yield f"line {number}", f"has half a character ({error.object[error.start]!r}, a lone surrogate)"
            continue
        except json.JSONDecodeError as error:
            yield f"line {number}", f"not valid JSON: {error}"
            continue
        except ValueError as error:
            yield f"line {number}", str(error)
            continue
        yield f"line {number}", row if isinstance(row, dict) and row else "a JSON object with columns was expected"


def _csv(lines: TextIO) -> Iterator[Row]:
    csv.field_size_limit(2**30)
    head = lines.readline()
    delimiter = next((mark for mark in ";\t" if mark in head and "," not in head), ",")  # Excel's, by country
    reader = csv.reader(chain([head], lines), strict=True, delimiter=delimiter)
    start = 1
    names: list[str] = []
    try:
        for cells in reader:
            label, start = f"line {start}", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue  # Excel writes empty rows as commas, and empty columns too
            if not names:
                names = [cell.strip() or f"Unnamed: {n}" for n, cell in enumerate(cells)]
                if len(set(names)) < len(names):
                    yield label, "two columns have the same name; rename one of them"
                    return
                continue
            while len(cells) > len(names) and not cells[-1].strip():
                cells.pop()
            if len(cells) != len(names):
                yield label, f"{len(cells)} fields where the header has {len(names)} (a comma outside quotes?)"
            else:
                yield label, {name: cell for name, cell in zip(names, cells) if cell != ""}
    except csv.Error as error:
        yield f"line {start}", f"not valid CSV: {error}"


def _txt(lines: TextIO) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if text := line.strip():
            yield f"line {number}", {"prompt": text}


TEXT_READERS: dict[str, Callable[[TextIO], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".csv": _csv,
    ".txt": _txt,
}
KINDS = (*TEXT_READERS, ".parquet")
"""Suffixes of the tables that are read."""


def _parquet(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise MissingPackage("pyarrow", f"Reading {path}", "pip install 'dglaunch[parquet]'") from None
    try:
        file = ParquetFile(path)
        # Images would fill the memory, thousands of rows at a time.
        batches = file.iter_batches(batch_size=16 if "binary" in str(file.schema_arrow) else 4096)
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows):
            yield f"row {number}", {name: value for name, value in row.items() if value is not None}
    except ArrowException as error:
        raise UserError(f"{path} is no readable Parquet file: {str(error).splitlines()[0]}.") from None
