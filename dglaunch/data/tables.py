"""Tables of rows as JSONL, CSV, TXT or Parquet, or a folder of them.

Bad rows are handed on with what is wrong with them, so that all can be shown at once.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dglaunch import strict_json
from dglaunch.errors import MissingPackage, UserError

PROMPT_FILE = "prompt_file"
"""Column of a table that was read from a folder of .txt files: the name of the prompt's file without its suffix."""


Row = tuple[str, dict[str, Any] | str]
"""Where a row stands ("line 3") with its columns, or with what is wrong with it."""


def read_table(path: Path) -> Iterator[Row]:
    """The rows of a .jsonl, .csv, .txt or .parquet file, or of the files of a folder, in order.

    Raises:
        UserError: the file is missing, unreadable, not UTF-8 or of another kind.
    """
    if path.is_dir():
        yield from _folder(path)
        return
    readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".txt": _txt, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path} is none of the tables dglaunch reads ({', '.join(readers)}); rename or convert it.")
    if not path.is_file():
        raise UserError(f"There is no file {path} (looked in {Path.cwd()}).")
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); convert it: iconv -t UTF-8.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None


def files_of(folder: Path) -> list[Path]:
    """The files that a folder of tables or prompts is made of: all of its .parquet, else all of its .txt, by name."""
    return sorted(folder.glob("*.parquet")) or sorted(folder.glob("*.txt"))


def base_of(table: Path) -> Path:
    """What the relative paths in a table are relative to."""
    return table if table.is_dir() else table.parent


def _folder(folder: Path) -> Iterator[Row]:
    """A folder of .txt files with a prompt each, named as DPG-Bench does, or a table in parts, as GenArena's."""
    files = files_of(folder)
    if not files:
        raise UserError(f"The folder {folder} has neither .txt files with a prompt each nor .parquet files.")
    for path in files:
        if path.suffix == ".txt":
            text = " ".join(text for _, row in read_table(path) for text in row.values())  # type: ignore[union-attr]  # a line of text is a row
            yield path.name, {"prompt": text, PROMPT_FILE: path.stem}
        else:
            yield from ((f"{path.name}, {label}", row) for label, row in read_table(path))


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as lines:
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
            yield f"line {number}", row if isinstance(row, dict) else "a JSON object was expected"


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**30)
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        start = 1
        names: list[str] = []
        try:
            for cells in reader:
                label, start = f"line {start}", reader.line_num + 1
                if not cells:
                    continue
                if not names:
                    names = [cell.strip() for cell in cells]
                    if len(set(names)) < len(names):
                        raise UserError(f"{path}, line 1: two columns have the same name; rename one of them.")
                elif len(cells) != len(names):
                    yield label, f"{len(cells)} fields where the header has {len(names)} (a comma outside quotes?)"
                else:
                    yield label, {name: cell for name, cell in zip(names, cells) if cell != ""}
        except csv.Error as error:
            yield f"line {start}", f"not valid CSV: {error}"


def _txt(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if text := line.strip():
                yield f"line {number}", {"prompt": text}


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
