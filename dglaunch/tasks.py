"""The unit of work and where it comes from: tables of prompts as JSONL, CSV, TXT or Parquet.

One image = one `Task` = one seed = one file. The list is the same on every rank, whatever the world size.
Bad rows are collected and told all at once, with file and line, before any model is loaded.
"""

import csv
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dglaunch import benchmarks
from dglaunch.config import RunConfig, T2IConfig
from dglaunch.errors import InputError, MissingPackage, UserError

if TYPE_CHECKING:
    from dglaunch.inputs import InputImage

MAX_SEED = 2**63 - 1
MAX_NAME_BYTES = 200
MAX_SIDE = 16384
ROW_FIELDS = ("negative_prompt", "seed", "width", "height", "num_inference_steps", "guidance_scale")
"""What a row may set for itself (PEERS' conventions); the rest of its columns are carried into the ledger."""


@dataclass(kw_only=True, slots=True)
class Task:
    """One image to make. `None` means that the pipeline's own default is used."""

    index: int
    sample: int = 0
    prompt: str
    seed: int
    stem: str
    """File name without its suffix: the index (000017), with the sample where a row has several (000017_01)."""
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    extra: dict[str, Any] | None = None
    """Columns that dglaunch does not know; they go into the ledger as they are."""
    images: "tuple[InputImage, ...]" = ()
    """What an edit starts from, in the order of the row."""
    input_tokens: int = 0
    """Image tokens that they add to the output's."""
    row: str = ""
    """Of an edit: table and line, for what is found out about its images later."""
    error: str | None = None
    """Of an edit: why it cannot be made, known before the run."""

    @property
    def id(self) -> tuple[int, int]:
        """What a ledger line says that it is about: index and sample."""
        return self.index, self.sample

    def content(self) -> dict[str, Any]:
        """All that decides what the image shows, in JSON's types."""
        hashes = {"input_sha256": [image.sha256 for image in self.images]} if self.images else {}
        return {name: getattr(self, name) for name in ("prompt", *ROW_FIELDS)} | hashes

    def origin(self) -> dict[str, Any]:
        """Of an edit: what the ledger says of it besides its content."""
        if not self.row:
            return {}
        return {"instruction": self.prompt, "input_images": [image.name for image in self.images]}

    @property
    def key(self) -> str:
        """Hash of the content; a ledger line with another key belongs to another image."""
        text = json.dumps([self.index, self.sample, *self.content().values()], ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


Row = tuple[str, dict[str, Any] | str]
"""Where a row stands ("line 3") with its columns, or with what is wrong with it."""


# -- tables -------------------------------------------------------------------------------------------------------


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
            text = " ".join(text for _, row in read_table(path) for text in row.values())  # type: ignore[union-attr]
            yield path.name, {"prompt": text, benchmarks.PROMPT_FILE: path.stem}
        else:
            yield from ((f"{path.name}, {label}", row) for label, row in read_table(path))


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.isspace():
                continue
            try:
                row = json.loads(line)
                if "\\ud" in line or "\\uD" in line:  # an escape may name half a character, which no file can hold
                    json.dumps(row, ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                yield f"line {number}", f"has half a character ({error.object[error.start]!r}, a lone surrogate)"
                continue
            except (ValueError, RecursionError) as error:
                yield f"line {number}", f"not valid JSON: {error}"
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


# -- values -------------------------------------------------------------------------------------------------------


def _integer(value: Any, least: int = 0, most: int = MAX_SEED) -> int:
    """A whole number from JSON, CSV or Parquet (pandas writes 7 as 7.0 where a column has gaps)."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value.strip()):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"is {value!r}, not a whole number")
    if not least <= value <= most:
        raise ValueError(f"is {value}, not between {least} and {most}")
    return value


def _samples(value: Any) -> int:
    return _integer(value, 1, 10_000)


def _number(value: Any) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"is {value!r}, not a number of 0 or more")
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"is {value!r}, not a text")
    return _whole(value)


def _whole(text: str) -> str:
    """The text, if a file can hold it: a terminal or a JSON escape may have left half a character in it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has a character that is not UTF-8 at {error.start} ({text[error.start]!r})") from None
    return text


def _negative(value: Any) -> str:
    """A negative prompt may be empty or blank: for some models that turns guidance on."""
    if not isinstance(value, str):
        raise ValueError(f"is {value!r}, not a text")
    return _whole(value)


def _side(value: Any, multiple: int) -> int:
    side = _integer(value, 1, MAX_SIDE)
    if side % multiple:
        low = side // multiple * multiple
        near = f"{low} or {low + multiple}" if low else str(multiple)
        raise ValueError(f"is {side}, not a multiple of {multiple} as this model needs; the nearest: {near}")
    return side


def _name(value: Any) -> str:
    """An output name that cannot leave the folder.

    Raises:
        ValueError: it has a path in it, is hidden, too long or has control characters.
    """
    name = re.sub(r"\.(png|jpe?g|webp)$", "", str(value).strip(), flags=re.IGNORECASE)
    if not name or name.startswith(".") or re.search(r'[/\\\x00-\x1f:*?"<>|]', name):
        raise ValueError(f"is {value!r}; a file name without folders, leading dot or control characters is needed")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"is longer than {MAX_NAME_BYTES} bytes")
    return name


def _given(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _binary(value: Any) -> bool:
    """Whether there are bytes in it, as in a Parquet column of images: no ledger line could carry them."""
    if isinstance(value, dict):
        return any(map(_binary, value.values()))
    return isinstance(value, bytes) or (isinstance(value, list) and any(map(_binary, value)))


def missing(column: str, row: Mapping[str, Any]) -> str:
    """A row without a column that it needs; the others show how it may be called here."""
    return f"no {column} (there are: {', '.join(row)})" if row else f"no {column}"


# -- rows to tasks ------------------------------------------------------------------------------------------------


def read_prompts(config: T2IConfig, size_multiple: int = 1) -> list[Task]:
    """All tasks of a text-to-image run; width and height must be multiples of `size_multiple` pixels.

    Raises:
        InputError: rows are bad (all of them are named).
        UserError: the file or a flag is wrong.
    """
    if config.prompts_file is None:
        rows: Iterable[Row] = [("--prompt", {"prompt": config.prompt})]
        source = "the command line"
    else:
        table = read_table(config.prompts_file)
        rows = ((label, benchmarks.read_row(config.layout, row)) for label, row in table)
        source = str(config.prompts_file)
    return RowReader(config, source, size_multiple).read(rows)


class RowReader:
    """Turns rows into tasks; collects what is wrong instead of stopping at the first."""

    def __init__(self, config: RunConfig, source: str, size_multiple: int, text_column: str = "prompt") -> None:
        self.config = config
        self.source = source
        self.text_column = text_column
        self.checks = {
            "negative_prompt": _negative,
            "seed": _integer,
            "width": lambda value: _side(value, size_multiple),
            "height": lambda value: _side(value, size_multiple),
            "num_inference_steps": lambda value: _integer(value, 1, 100_000),
            "guidance_scale": _number,
        }
        self.defaults = self._flag_values()
        self.problems: list[str] = []
        self.lines: dict[int, str] = {}
        self.names: dict[str, str] = {}
        self.id_is_index: bool | None = None

    def _flag_values(self) -> dict[str, Any]:
        values = {name: getattr(self.config, name) for name in ROW_FIELDS if name != "seed"}
        for name in ("width", "height"):
            if values[name] is not None:
                try:
                    self.checks[name](values[name])
                except ValueError as error:
                    raise UserError(f"--{name} {error}.") from None
        return values

    def read(self, rows: Iterable[Row]) -> list[Task]:
        """All tasks, in the table's order, or every problem at once."""
        tasks: list[Task] = []
        for number, (label, row) in enumerate(rows):
            if isinstance(row, str):
                self.problems.append(f"{label}: {row}")
            else:
                tasks += self._row(label, row, number)
        if self.problems:
            raise InputError(self.source, self.problems)
        if not tasks:
            raise UserError(f"{self.source} has no rows; there is nothing to make.")
        return tasks

    def _value(self, label: str, row: dict[str, Any], column: str, check: Any, default: Any = None) -> Any:
        """Take one column out of a row; a bad value is noted and replaced by the default."""
        value = row.pop(column, None)
        if not _given(value):
            return default
        try:
            return check(value)
        except ValueError as error:
            self.problems.append(f"{label}: {column} {error}")
            return default

    def _row(self, label: str, row: dict[str, Any], number: int) -> list[Task]:
        row = dict(row)
        before = len(self.problems)
        index = self._index(label, row, number)
        if not self.wants(index):
            return []
        if not _given(row.get(self.text_column)):
            self.problems.append(f"{label}: {missing(self.text_column, row)}")
        prompt = self._value(label, row, self.text_column, _text, "")
        if "steps" in row:
            steps = row.pop("steps")
            if _given(row.setdefault("num_inference_steps", steps)) and row["num_inference_steps"] != steps:
                self.problems.append(f"{label}: steps and num_inference_steps differ; keep one of them")
        values = self.defaults.copy()
        for name, check in self.checks.items():
            if name in row:
                values[name] = self._value(label, row, name, check, values.get(name))
        count = self.config.num_images_per_prompt
        if "num_images_per_prompt" in row:
            count = self._value(label, row, "num_images_per_prompt", _samples, count)
        name = self._output_name(label, row, index)
        own = self.own_fields(label, row, number, index)
        if len(self.problems) > before:
            return []
        stems = [name if count == 1 else f"{name}_{sample:02d}" for sample in range(count)]
        if self.config.output_name_column is not None and not self._claim(label, stems):
            return []
        own_seed = values.pop("seed", None)
        first = self.config.seed + index * self.config.num_images_per_prompt if own_seed is None else own_seed
        extra = {column: value for column, value in row.items() if _given(value) and not _binary(value)} or None
        return [
            Task(
                index=index,
                sample=sample,
                prompt=prompt,
                seed=first + sample,
                stem=stem,
                extra=extra,
                **values,
                **own,
            )
            for sample, stem in enumerate(stems)
        ]

    def wants(self, index: int) -> bool:
        """Whether the row of this index is to be made; a row that is not is not looked at any further."""
        return True

    def own_fields(self, label: str, row: dict[str, Any], number: int, index: int) -> dict[str, Any]:
        """What a subclass takes out of a row, as further fields of its tasks; problems go to `self.problems`."""
        return {}

    def _index(self, label: str, row: dict[str, Any], number: int) -> int:
        """`index`, else an integer `id`, else the row's number. The first row decides whether ids are integers."""
        if self.id_is_index is None:
            self.id_is_index = "index" not in row and _is_integer(row.get("id"))
        column = "id" if self.id_is_index else "index"
        if self.id_is_index and not _given(row.get("id")):
            self.problems.append(f"{label}: no id, where other rows have one")
        index = self._value(label, row, column, _integer, number)
        if index in self.lines:
            self.problems.append(f"{label}: index {index} was used already in {self.lines[index]}")
        self.lines.setdefault(index, label)
        return index

    def _output_name(self, label: str, row: Mapping[str, Any], index: int) -> str:
        column = self.config.output_name_column
        if column is None:
            return f"{index:06d}"
        try:
            name = _name(row.get(column, ""))
        except ValueError as error:
            self.problems.append(f"{label}: {column} {error}")
            return ""
        return name

    def _claim(self, label: str, stems: list[str]) -> bool:
        """Note the file names of a row; two rows must not share one, also where case does not count."""
        taken = [stem for stem in stems if stem.lower() in self.names]
        for stem in taken:
            self.problems.append(f"{label}: the output name {stem!r} was used already in {self.names[stem.lower()]}")
        self.names |= {stem.lower(): label for stem in stems}
        return not taken


def _is_integer(value: Any) -> bool:
    try:
        return _integer(value) >= 0
    except ValueError:
        return False
