"""The unit of work and where it comes from: tables of prompts as JSONL, CSV, TXT or Parquet.

One image = one `Task` = one seed = one file. The list is the same on every rank, whatever the world size.
Bad rows are collected and told all at once, with file and line, before any model is loaded.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dglaunch.config import RunConfig, T2IConfig
from dglaunch.data import evaluations
from dglaunch.data.tables import Row, read_table
from dglaunch.data.task import ROW_FIELDS, Task
from dglaunch.errors import InputError, UserError

if TYPE_CHECKING:
    pass

MAX_SEED = 2**63 - 1
MAX_NAME_BYTES = 200
MAX_SIDE = 16384


# -- tables -------------------------------------------------------------------------------------------------------


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
        rows = ((label, evaluations.read_row(config.layout, row)) for label, row in table)
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
