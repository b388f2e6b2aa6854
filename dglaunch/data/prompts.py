"""Rows of prompts to tasks: one image is one `Task`, with one seed and one file.

The list is the same on every rank, whatever the world size. Bad rows are collected and shown all at once, with file and
line, before any model is loaded.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from dglaunch import strict_json
from dglaunch.config import MAX_SEED, RunConfig, T2IConfig, defaults
from dglaunch.data import evaluations, values
from dglaunch.data.columns import Columns, Named, find, there_are
from dglaunch.data.grid import Grid, Point
from dglaunch.data.numbering import Numbering
from dglaunch.data.prompt_template import PromptTemplate
from dglaunch.data.row_filter import RowFilter
from dglaunch.data.row_list import rows_of_list
from dglaunch.data.table_formats import Row
from dglaunch.data.tables import Table, rows_of_pipe
from dglaunch.data.task import INPUT_FIELDS, LORA, SAMPLING, Record, Task
from dglaunch.errors import InputError, UserError
from dglaunch.models.lora import NO_LORAS, Loras, text_of

if TYPE_CHECKING:
    from dglaunch.data.sampling import Sample

Value = TypeVar("Value")


def read_prompts(
    config: T2IConfig,
    size_multiple: int = 1,
    piped: bytes | None = None,
    columns: Columns | None = None,
    loras: Loras = NO_LORAS,
    reader_of: "Callable[[T2IConfig, str, int, Columns, Loras], RowReader] | None" = None,
    large: "Callable[[RowReader, Table], Sequence[Task]] | None" = None,
) -> Sequence[Task]:
    """Return all tasks of a text-to-image run.

    Args:
        size_multiple: pixels of which width and height must be multiples.
        piped: what came out of --prompts_file, if that is a pipe.
        columns: what the table's columns are; afterwards they say what was found of them.
        loras: those that rows may name.
        reader_of: makes what reads the rows; None: a RowReader.
        large: reads a table that is large; None: as a small one.

    Raises:
        InputError: rows are bad (all of them are named).
        UserError: the file or a flag is wrong.
    """
    if columns is None:
        columns = Columns(config)
    if config.prompts is None and not config.tables:
        reader = RowReader(config, "the command line", size_multiple, columns, loras)
        return reader.read([("--prompt", {"prompt": config.prompt})])
    reader = (reader_of or RowReader)(config, config.rows_from, size_multiple, columns, loras)
    if config.prompts is not None:
        rows = rows_of_list(config.prompts)
    elif piped is None:
        reader.table = Table(config.tables)
        if large is not None and reader.table.is_large:
            return large(reader, reader.table)
        rows = reader.table.rows()
    else:
        rows = rows_of_pipe(config.tables[0], piped, columns.flagged.get("prompt", "prompt"))
    return reader.read((label, evaluations.read_row(config.layout, row)) for label, row in rows)


def checks_of_fields(size_multiple: int, output_format: str, loras: Loras) -> dict[str, values.Check]:
    """Return what looks at each value that a row may set for itself: it gives the value, or raises a ValueError."""
    return {
        "negative_prompt": values.negative_prompt_text,
        "seed": values.whole_number,
        "width": lambda value: values.side(value, size_multiple, output_format),
        "height": lambda value: values.side(value, size_multiple, output_format),
        "num_inference_steps": lambda value: values.whole_number(value, 1, 100_000),
        "guidance_scale": values.number,
        LORA: loras.of_row,
    }


def in_words(settings: Record) -> Record:
    """Return a row's values with LoRAs as a cell says them."""
    return {n: text_of(value) if n == LORA and isinstance(value, tuple) else value for n, value in settings.items()}


class RowReader:
    """Turns rows into tasks; collects what is wrong instead of stopping at the first."""

    text_column = "prompt"
    table: Table | None = None
    """Where the rows stand, if it is in files."""

    def __init__(
        self, config: RunConfig, source: str, size_multiple: int, columns: Columns, loras: Loras = NO_LORAS
    ) -> None:
        self.config = config
        self.source = source
        self.columns = columns
        self.loras = loras
        self.checks = checks_of_fields(size_multiple, config.output_format, loras) | self.own_checks()
        self.defaults = self._flag_values()
        self.template = None if config.prompt_template is None else PromptTemplate(config.prompt_template)
        self.grid = Grid(config.grid, self.checks, () if self.template is None else self.template.names)
        columns.axes = self.grid.axes
        self._refuse_flags_of_axes()
        self.problems: list[str] = []
        self.numbering = Numbering()
        self.names: dict[str, tuple[str, str]] = {}
        """By `values.name_key`: the names of files that rows have, and which rows."""
        self.id_is_index: bool | None = None
        self.samples = evaluations.num_images_per_prompt(config)
        self.filter = RowFilter(config.filter_rows) if config.filter_rows is not None else None
        self.num_wanted = 0
        self.sample = _sample(config)

    def own_checks(self) -> dict[str, values.Check]:
        """What a setting must be here, where that is not what it must be elsewhere."""
        return {}

    def _refuse_flags_of_axes(self) -> None:
        """A flag that --grid varies would do nothing."""
        unset = defaults(type(self.config))
        for name in self.grid.axes:
            if name in (*SAMPLING, *INPUT_FIELDS) and getattr(self.config, name) != unset[name]:
                raise UserError(
                    f"--{name} would do nothing, as --grid varies it. Drop --{name}, or take it out of --grid."
                )

    def _flag_values(self) -> Record:
        """What a row has that does not say otherwise; its seed follows from its index."""
        given: Record = {name: getattr(self.config, name) for name in SAMPLING if name != "seed"}
        for name in ("width", "height", "negative_prompt"):
            if given[name] is not None:
                try:
                    self.checks[name](given[name])
                except ValueError as error:
                    raise UserError(f"--{name} {error}.") from None
        return given | {LORA: self.loras.all}

    def read(self, rows: Iterable[Row]) -> list[Task]:
        """All tasks, in the table's order, or every problem at once."""
        tasks = self.tasks_of(rows)
        if self.sample is not None:
            rows_of_sample, size = self.sample.indices, len(self.grid)
            tasks = [task for task in tasks if task.index // size in rows_of_sample]
        self.check_names()
        self.look_at_inputs(tasks)
        self.check_rows(len(tasks))
        return tasks

    def tasks_of(self, rows: Iterable[Row], first: int = 0) -> list[Task]:
        """Return the tasks of some rows.

        Args:
            first: the number of the first of them in the table.
        """
        tasks: list[Task] = []
        for number, (label, row) in enumerate(rows, first):
            if isinstance(row, str):
                self.problems.append(f"{label}: {row}")
            elif any(map(values.is_given, row.values())):  # an empty row of a sheet comes from Parquet as gaps only
                tasks += self._row(label, row, number)
            if self.has_all:
                break
        return tasks

    @property
    def has_all(self) -> bool:
        """Whether no further row can change anything."""
        return self.filter is None and self._has_enough

    def check_names(self) -> None:
        """Look, once all rows are read, whether what flags name was there.

        Raises:
            UserError: it was not.
        """
        if self.template is not None:
            self.template.check(self.source)
            self.columns.used_otherwise = self.template.columns
        if self.filter is not None and self.numbering:
            self.filter.check(self.source, *self._indices)

    def check_rows(self, num_tasks: int) -> None:
        """Look, once all rows are read, whether they are right.

        Raises:
            InputError: rows are bad.
            UserError: none is left, or a column is not understood.
        """
        if self.problems:
            raise InputError(self.source, self.problems)
        if not num_tasks and self.numbering and self.filter is not None:
            first, last = self._indices
            raise UserError(
                f"--filter_rows {self.config.filter_rows} leaves none of the {len(self.numbering):,} rows of {self.source}, "
                f"whose indices are {first} to {last}. Correct it."
            )
        if not num_tasks:
            raise UserError(f"{self.source} has no rows; there is nothing to make.")
        self.columns.check(self.source)

    def _value(self, label: str, named: Named, name: str, check: Callable[[object], Value], default: Value) -> Value:
        """Take one value out of a row; a bad one is noted and replaced by the default."""
        value = named.given.pop(name, None)
        if not values.is_given(value):
            return default
        try:
            return check(value)
        except ValueError as error:
            self.problems.append(f"{label}: {named.called(name)} {error}")
            return default

    def _row(self, label: str, row: Record, number: int) -> list[Task]:
        """The tasks of a row: one for each of its images; none if it is not wanted or bad."""
        before = len(self.problems)
        try:
            named = self.columns.name(row)
        except ValueError as error:
            self.problems.append(f"{label}: {error}")
            return []
        row_index = self._index(label, named, number)
        first = row_index * len(self.grid)
        points = [
            (first + n, point)
            for n, point in enumerate(self.grid.points)
            if self.wants(first + n, row_index, named, point)
        ]
        if not points or self._has_enough or not (self.sample is None or self.sample.takes(row_index)):
            return []
        self.num_wanted += 1
        content = self._content(label, named)
        prompts = [
            self._prompt(label, named, point) for _, point in (points if self.template is not None else points[:1])
        ]
        count = self._value(label, named, "num_images_per_prompt", values.num_samples, self.samples)
        name = self._output_name(label, row)
        place = self.take_references(label, named, number, [index for index, _ in points])
        kept = self._kept(label, named)
        seed = self._seed(label, content.pop("seed", None), row_index, count, points[-1][0])
        if len(self.problems) > before:
            return []
        tasks: list[Task] = []
        for n, (index, point) in enumerate(points):
            stem = f"{index:06d}" if name is None else name + f"_{index - first:02d}" * (len(self.grid) > 1)
            stems = [stem if count == 1 else f"{stem}_{sample:02d}" for sample in range(count)]
            if name is not None and not self._claim(label, stems):
                continue
            settings: dict[str, Any] = {"seed": seed, **content, **point.settings}
            extra = {**kept, **point.columns} or None
            task = Task(
                index=index, prompt=prompts[n % len(prompts)], stem=stems[0], extra=extra, row=place, **settings
            )
            tasks.append(task)
            tasks += (replace(task, sample=n, seed=task.seed + n, stem=stems[n]) for n in range(1, count))
        return tasks

    def _prompt(self, label: str, named: Named, point: Point) -> str:
        """What is asked for: the row's own text, or what --prompt_template makes of its columns."""
        if self.template is None:
            if not values.is_given(named.given.get(self.text_column)):
                self.problems.append(f"{label}: {self.columns.missing(self.text_column, named)}")
            return self._value(label, named, self.text_column, values.text, "")
        try:
            return values.text(self.template.fill(named.row | point.columns))
        except ValueError as error:
            self.problems.append(f"{label}: {error}")
            return ""

    def _seed(self, label: str, seed: object, row_index: int, count: int, last_index: int) -> int:
        """The seed of a row's first image: its own, else as it follows from its number in the table."""
        first = seed if isinstance(seed, int) else self.config.seed + row_index * self.samples
        largest = max(first, self.grid.largest_seed)
        if max(largest + count - 1, last_index) > MAX_SEED:
            own = (
                "take a smaller one" if seed is not None else "give it a seed of its own, or number the rows with index"
            )
            samples = f" for {count} images" if count > 1 else ""
            self.problems.append(
                f"{label}: the seed {largest} is too large{samples} (at most 2^63 - 1 is taken); {own}"
            )
        return first

    def _kept(self, label: str, named: Named) -> Record:
        """The columns that dglaunch does not use; a value that no JSON can carry is a problem of the row."""
        kept: Record = {}
        for column, value in named.rest().items():
            if not values.is_given(value):
                continue
            problem = strict_json.problem_with(value)
            if problem is not None:
                self.problems.append(f"{label}: {column} {problem}")
            elif not values.has_bytes(value):
                kept[column] = value
        self.columns.note(label, named, kept)
        return kept

    def _content(self, label: str, named: Named) -> Record:
        """What the row sets for itself, taken out of it, over what the flags set."""
        given = named.given
        steps = given.pop("steps", None)
        if values.is_given(steps):
            if values.is_given(given.get("num_inference_steps")) and given["num_inference_steps"] != steps:
                self.problems.append(f"{label}: steps and num_inference_steps differ; keep one of them")
            given["num_inference_steps"] = steps
        if self.grid.axes and (clash := self.grid.clash(self._set_by(named))):
            self.problems.append(f"{label}: {clash}")
        content = self.defaults.copy()
        for name, check in self.checks.items():
            if name in given:
                content[name] = self._value(label, named, name, check, content.get(name))
        return content

    def _set_by(self, named: Named) -> set[str]:
        """What a row sets itself, of what a grid may vary."""
        names = {name for name, value in named.given.items() if values.is_given(value)}
        for name in self.template.names if self.template is not None else ():
            column = find(named.row, name)
            if column is not None and values.is_given(named.row[column]) and not self.columns.ignores(column):
                names.add(name)
        return names

    @property
    def _has_enough(self) -> bool:
        return self.sample is None and self.config.limit is not None and self.num_wanted >= self.config.limit

    @property
    def _indices(self) -> tuple[int, int]:
        """The least and the greatest index of an image."""
        numbering, size = self.numbering, len(self.grid)
        return numbering.least * size, (numbering.greatest + 1) * size - 1

    def wants(self, index: int, row_index: int, named: Named, point: Point) -> bool:
        """Whether the image of this index is to be made; a row of which none is is not looked at any further."""
        return self.filter is None or self.filter.wants(index, self._as_told(index, row_index, named, point))

    def _as_told(self, index: int, row_index: int, named: Named, point: Point) -> Record:
        """A row's columns with what it leaves to flags, by the names that the ledger has for them."""
        given = {name: value for name, value in {**named.row, **named.given}.items() if values.is_given(value)}
        seed = self.config.seed + row_index * self.samples
        known: Record = {"index": index, "prompt": given.get(self.text_column), **in_words(self.defaults), "seed": seed}
        return {**known, **given, **point.columns, **in_words(point.settings)}

    def take_references(self, label: str, named: Named, number: int, indices: Sequence[int]) -> str:
        """Take the input images out of a row; problems go to `self.problems`.

        Args:
            number: of the row in the table.
            indices: of the images that will be made of it.

        Returns:
            Table and line of a row that has some; "" of another.
        """
        return ""

    def look_at_inputs(self, tasks: Sequence[Task]) -> None:
        """Look at the input images of all rows, once the table is read to its end; problems go to `self.problems`."""

    def _index(self, label: str, named: Named, number: int) -> int:
        """`index`, else an integer `id`, else the row's number. The first row decides whether ids are integers."""
        given = named.given
        if self.id_is_index is None:
            self.id_is_index = not values.is_given(given.get("index")) and values.is_whole_number(given.get("id"))
        column = "id" if self.id_is_index else "index"
        if self.id_is_index and not values.is_given(given.get("id")):
            self.problems.append(f"{label}: no id, where other rows have one")
        index = self._value(label, named, column, values.whole_number, number)
        before = self.numbering.claim(index, number, label)
        if before is not None:
            self.note_repeated(index, label, before, named.called("id"))
        return index

    def note_repeated(self, index: int, label: str, before: str, id_column: str) -> None:
        """Note that a row has the index of a row before it."""
        other = f"; --ignore_columns {id_column} numbers the rows anew" if self.id_is_index else ""
        self.problems.append(f"{label}: index {index} was used already in {before}{other}")

    def _output_name(self, label: str, row: Record) -> str | None:
        """What its files are called, if a column says it."""
        column = self.config.output_name_column
        if column is None:
            return None
        found = find(row, column)
        if found is None:
            self.problems.append(f"{label}: no {column}{there_are(row)}, which --output_name_column names")
            return None
        try:
            return values.output_name(row[found] if values.is_given(row[found]) else "")
        except ValueError as error:
            self.problems.append(f"{label}: {found} {error}")
            return None

    def _claim(self, label: str, stems: list[str]) -> bool:
        """Note the file names of a row; two rows must not share one, also where case or accents do not count."""
        keys = {values.name_key(stem): stem for stem in stems}
        taken = [(stem, self.names[key]) for key, stem in keys.items() if key in self.names]
        for stem, (other, line) in taken:
            alike = "" if other == stem else f" (as {other!r}, which some file systems do not tell apart)"
            self.problems.append(f"{label}: the output name {stem!r} was used already in {line}{alike}")
        self.names |= {key: (stem, label) for key, stem in keys.items()}
        return not taken


def _sample(config: RunConfig) -> "Sample | None":
    """What chooses the rows of --shuffle_seed with --limit; None: there is no choice."""
    if config.shuffle_seed is None or config.limit is None:
        return None
    from dglaunch.data.sampling import Sample  # which imports numpy

    return Sample(config.shuffle_seed, config.limit)
