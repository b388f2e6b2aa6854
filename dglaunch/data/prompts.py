"""Rows of prompts to tasks: one image is one `Task`, with one seed and one file.

The list is the same on every rank, whatever the world size. Bad rows are collected and shown all at once, with file and
line, before any model is loaded.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from dglaunch import strict_json
from dglaunch.config import MAX_SEED, RunConfig, T2IConfig
from dglaunch.data import evaluations, values
from dglaunch.data.row_list import rows_of_list
from dglaunch.data.tables import Row, read_table, rows_of_pipe
from dglaunch.data.task import ROW_FIELDS, Record, Task
from dglaunch.errors import InputError, UserError

Value = TypeVar("Value")


def read_prompts(config: T2IConfig, size_multiple: int = 1, piped: bytes | None = None) -> list[Task]:
    """Return all tasks of a text-to-image run.

    Args:
        size_multiple: pixels of which width and height must be multiples.
        piped: what came out of --prompts_file, if that is a pipe.

    Raises:
        InputError: rows are bad (all of them are named).
        UserError: the file or a flag is wrong.
    """
    if config.prompts is not None:
        rows: Iterable[Row] = (
            (label, evaluations.read_row(config.layout, row)) for label, row in rows_of_list(config.prompts)
        )
        source = "prompts"
    elif config.prompts_file is None:
        rows = [("--prompt", {"prompt": config.prompt})]
        source = "the command line"
    else:
        path = config.prompts_file
        table = read_table(path) if piped is None else rows_of_pipe(path, piped)
        rows = ((label, evaluations.read_row(config.layout, row)) for label, row in table)
        source = str(config.prompts_file)
    return RowReader(config, source, size_multiple).read(rows)


class RowReader:
    """Turns rows into tasks; collects what is wrong instead of stopping at the first."""

    def __init__(self, config: RunConfig, source: str, size_multiple: int, text_column: str = "prompt") -> None:
        self.config = config
        self.source = source
        self.text_column = text_column
        self.checks: dict[str, Callable[[object], object]] = {
            "negative_prompt": values.negative_prompt_text,
            "seed": values.whole_number,
            "width": lambda value: values.side(value, size_multiple, config.output_format),
            "height": lambda value: values.side(value, size_multiple, config.output_format),
            "num_inference_steps": lambda value: values.whole_number(value, 1, 100_000),
            "guidance_scale": values.number,
        }
        self.defaults = self._flag_values()
        self.problems: list[str] = []
        self.lines: dict[int, str] = {}
        self.names: dict[str, tuple[str, str]] = {}
        """By `values.name_key`: the names of files that rows have, and which rows."""
        self.id_is_index: bool | None = None
        self.samples = evaluations.num_images_per_prompt(config)

    def _flag_values(self) -> Record:
        """What a row has that does not say otherwise; its seed follows from its index."""
        given: Record = {name: getattr(self.config, name) for name in ROW_FIELDS if name != "seed"}
        for name in ("width", "height", "negative_prompt"):
            if given[name] is not None:
                try:
                    self.checks[name](given[name])
                except ValueError as error:
                    raise UserError(f"--{name} {error}.") from None
        return given

    def read(self, rows: Iterable[Row]) -> list[Task]:
        """All tasks, in the table's order, or every problem at once."""
        tasks: list[Task] = []
        for number, (label, row) in enumerate(rows):
            if isinstance(row, str):
                self.problems.append(f"{label}: {row}")
            elif any(map(values.is_given, row.values())):  # an empty row of a sheet comes from Parquet as gaps only
                tasks += self._row(label, row, number)
        if self.problems:
            raise InputError(self.source, self.problems)
        if not tasks:
            raise UserError(f"{self.source} has no rows; there is nothing to make.")
        return tasks

    def _value(self, label: str, row: Record, column: str, check: Callable[[object], Value], default: Value) -> Value:
        """Take one column out of a row; a bad value is noted and replaced by the default."""
        value = row.pop(column, None)
        if not values.is_given(value):
            return default
        try:
            return check(value)
        except ValueError as error:
            self.problems.append(f"{label}: {column} {error}")
            return default

    def _row(self, label: str, row: Record, number: int) -> list[Task]:
        """The tasks of a row: one for each of its images; none if it is not wanted or bad."""
        row = dict(row)
        before = len(self.problems)
        index = self._index(label, row, number)
        if not self.wants(index):
            return []
        if not values.is_given(row.get(self.text_column)):
            self.problems.append(f"{label}: {values.missing(self.text_column, row)}")
        prompt = self._value(label, row, self.text_column, values.text, "")
        content = self._content(label, row)
        count = self._value(label, row, "num_images_per_prompt", values.num_samples, self.samples)
        name = self._output_name(label, row, index)
        references = self.take_references(label, row, number, index)
        kept = self._kept(label, row)
        if len(self.problems) > before:
            return []
        stems = [name if count == 1 else f"{name}_{sample:02d}" for sample in range(count)]
        if self.config.output_name_column is not None and not self._claim(label, stems):
            return []
        seed = content.pop("seed", None)
        first = seed if isinstance(seed, int) else self.config.seed + index * self.samples
        if first + count - 1 > MAX_SEED:
            own = (
                "take a smaller one" if seed is not None else "give it a seed of its own, or number the rows with index"
            )
            samples = f" for {count} images" if count > 1 else ""
            self.problems.append(f"{label}: the seed {first} is too large{samples} (at most 2^63 - 1 is taken); {own}")
            return []
        task = Task(index=index, prompt=prompt, seed=first, stem=name, extra=kept or None, row=references, **content)  # type: ignore[arg-type]  # checked by self.checks
        return [replace(task, sample=n, seed=first + n, stem=stem) for n, stem in enumerate(stems)]

    def _kept(self, label: str, row: Record) -> Record:
        """The columns that dglaunch does not know; a value that no JSON can carry is a problem of the row."""
        kept: Record = {}
        for column, value in row.items():
            if not values.is_given(value):
                continue
            problem = strict_json.problem_with(value)
            if problem is not None:
                self.problems.append(f"{label}: {column} {problem}")
            elif not values.has_bytes(value):
                kept[column] = value
        return kept

    def _content(self, label: str, row: Record) -> Record:
        """What the row sets for itself, taken out of it, over what the flags set."""
        if "steps" in row:
            steps = row.pop("steps")
            if values.is_given(row.setdefault("num_inference_steps", steps)) and row["num_inference_steps"] != steps:
                self.problems.append(f"{label}: steps and num_inference_steps differ; keep one of them")
        content = self.defaults.copy()
        for name, check in self.checks.items():
            if name in row:
                content[name] = self._value(label, row, name, check, content.get(name))
        return content

    def wants(self, index: int) -> bool:
        """Whether the row of this index is to be made; a row that is not is not looked at any further."""
        return True

    def take_references(self, label: str, row: Record, number: int, index: int) -> str:
        """Take the input images out of a row of edits; problems go to `self.problems`.

        Returns:
            Table and line of such a row; "" for a row of prompts.
        """
        return ""

    def _index(self, label: str, row: Record, number: int) -> int:
        """`index`, else an integer `id`, else the row's number. The first row decides whether ids are integers."""
        if self.id_is_index is None:
            self.id_is_index = "index" not in row and values.is_whole_number(row.get("id"))
        column = "id" if self.id_is_index else "index"
        if self.id_is_index and not values.is_given(row.get("id")):
            self.problems.append(f"{label}: no id, where other rows have one")
        index = self._value(label, row, column, values.whole_number, number)
        if index in self.lines:
            self.problems.append(f"{label}: index {index} was used already in {self.lines[index]}")
        self.lines.setdefault(index, label)
        return index

    def _output_name(self, label: str, row: Mapping[str, object], index: int) -> str:
        column = self.config.output_name_column
        if column is None:
            return f"{index:06d}"
        try:
            name = values.output_name(row.get(column, ""))
        except ValueError as error:
            self.problems.append(f"{label}: {column} {error}")
            return ""
        return name

    def _claim(self, label: str, stems: list[str]) -> bool:
        """Note the file names of a row; two rows must not share one, also where case or accents do not count."""
        keys = {values.name_key(stem): stem for stem in stems}
        taken = [(stem, self.names[key]) for key, stem in keys.items() if key in self.names]
        for stem, (other, line) in taken:
            alike = "" if other == stem else f" (as {other!r}, which some file systems do not tell apart)"
            self.problems.append(f"{label}: the output name {stem!r} was used already in {line}{alike}")
        self.names |= {key: (stem, label) for key, stem in keys.items()}
        return not taken
