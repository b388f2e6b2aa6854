"""Rows of a large table to tasks, a batch of columns at a time.

    reader = ColumnReader(RowReader(...), schema)
    reader.tasks_of(batch, first=0, label_of=...)       # a batch of tasks; None: something is odd, row by row says what

Nothing is decided twice: what a value must be is asked of the reader's own checks, once for each value that differs. A batch
in which anything is wrong, or is of a kind that columns cannot say, goes through the RowReader row by row, which has the words
for it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dglaunch.config import MAX_SEED, RunConfig
from dglaunch.data import evaluations, values
from dglaunch.data.columns import IMAGES, Meaning
from dglaunch.data.filtering import FilteredColumns
from dglaunch.data.image_rows import ImageRowReader
from dglaunch.data.input_columns import NUMBERS, ImageNumbers, raw
from dglaunch.data.many_numbers import ManyNumbers
from dglaunch.data.prompts import RowReader, in_words
from dglaunch.data.task_table import EXTRA, SETTINGS
from dglaunch.data.values import Check
from dglaunch.models.input_roles import Role

MOST_DIFFERENT = 5000
"""Values of a column of a batch that are asked about one by one."""
PLAIN_BYTES = range(0x21, 0x7F)
"""First bytes of texts that are surely not blank."""

Column = tuple["pa.Array", int]
"""A column, and the number of its values that are there."""


class OddRows(Exception):
    """Columns cannot say what is in these rows."""


def fits(config: RunConfig) -> bool:
    """Whether tasks of this job can be made of columns at all."""
    return not (
        config.grid
        or config.prompt_template is not None
        or config.output_name_column is not None
        or config.layout in evaluations.EVALUATIONS
    )


class ColumnReader:
    """A ColumnReader makes of a batch of columns what its RowReader would make of its rows."""

    def __init__(self, reader: RowReader, numbers: ManyNumbers, schema: pa.Schema, named: ImageNumbers) -> None:
        """
        Args:
            numbers: the reader's.
            schema: of the tasks.
            named: becomes the images that rows name.
        """
        self._reader = reader
        self._numbers = numbers
        self._schema = schema
        self._named = named

    def tasks_of(self, batch: pa.RecordBatch, first: int, label_of: Callable[[int], str]) -> pa.RecordBatch | None:
        """Return the tasks of these rows, or None where they have to be read row by row; then nothing was noted of them.

        Args:
            first: the number of the first row in the table.
            label_of: what a row of this number is called.
        """
        try:
            return self._tasks_of(batch, first, label_of)
        except (OddRows, pa.ArrowException):
            return None

    def _tasks_of(self, batch: pa.RecordBatch, first: int, label_of: Callable[[int], str]) -> pa.RecordBatch:
        reader = self._reader
        meaning = reader.columns.meaning_of(tuple(batch.schema.names))
        if meaning.clash is not None or len(set(batch.schema.names)) < batch.num_columns:
            raise OddRows
        batch.validate(full=True)
        rows = _Rows(batch, meaning)
        numbers = np.arange(first, first + rows.num_rows)
        index, id_is_index = self._index(rows, numbers)
        wanted = self._wanted(rows, index)
        kept = rows if wanted is None else rows.at(wanted)
        rows_index, places = (index, numbers) if wanted is None else (index[wanted], numbers[wanted])
        if reader.sample is not None:
            taken = np.flatnonzero(reader.sample.taken(rows_index))
            kept, rows_index, places = kept.at(taken), rows_index[taken], places[taken]
        left = None if reader.config.limit is None else max(reader.config.limit - reader.num_wanted, 0)
        if reader.sample is None and left is not None and left < kept.num_rows:
            kept, rows_index, places = kept.at(np.arange(left)), rows_index[:left], places[:left]
            if reader.filter is None:
                index = index[:left]
        inputs = self._inputs(kept, first, lambda at: label_of(int(places[at])))
        tasks = self._rows_to_tasks(kept, rows_index, id_is_index, inputs)
        # Nothing is odd: from here on it is noted.
        reader.id_is_index = id_is_index
        self._numbers.add(index, first)
        if reader.filter is not None and wanted is not None:
            self._filtered.noted()
        reader.num_wanted += kept.num_rows
        self._note(kept, lambda at: label_of(int(places[at])), id_is_index)
        return tasks

    # -- which rows -----------------------------------------------------------------------------------------------------

    def _index(self, rows: "_Rows", numbers: Any) -> tuple[Any, bool]:
        """The index of each row, and whether it is the id. The first row decides, as in RowReader."""
        reader = self._reader
        id_is_index = reader.id_is_index
        if id_is_index is None:
            id_is_index = not rows.is_given("index", 0) and values.is_whole_number(rows.value("id", 0))
        name = "id" if id_is_index else "index"
        found = rows.column(name)
        if found is None:
            if id_is_index:
                raise OddRows
            return numbers, id_is_index
        column, count = found
        if not count and not id_is_index:
            return numbers, id_is_index
        if count < rows.num_rows:
            raise OddRows
        return _whole_numbers(column).to_numpy(), id_is_index

    def _wanted(self, rows: "_Rows", index: Any) -> Any:
        """The places of the rows that --filter_rows leaves; None: there is no such flag."""
        reader = self._reader
        if reader.filter is None:
            return None
        seeds = index * reader.samples + reader.config.seed
        self._filtered = FilteredColumns(
            reader.filter, rows.told(reader.text_column, index, seeds, in_words(reader.defaults))
        )
        return np.flatnonzero(self._filtered.mask(index))

    # -- what they say --------------------------------------------------------------------------------------------------

    def _rows_to_tasks(
        self, rows: "_Rows", index: Any, id_is_index: bool, inputs: Mapping[str, pa.Array]
    ) -> pa.RecordBatch:
        reader, config = self._reader, self._reader.config
        count = rows.num_rows
        found: dict[str, pa.Array] = {"index": pa.array(index), "prompt": self._texts(rows), **inputs}
        if "steps" in rows.column_of and "num_inference_steps" in rows.column_of:
            raise OddRows
        for name in SETTINGS:
            column = rows.column("steps" if name == "num_inference_steps" and "steps" in rows.column_of else name)
            if column is not None:
                found[name] = self._setting(name, *column)
        counts = self._counts(rows)
        own = rows.column("seed")
        seeds = pa.array(index * reader.samples + config.seed)
        if own is not None and own[1]:
            seeds = pc.coalesce(_whole_numbers(own[0]), seeds)
        most = int(np.max(counts)) if count else 0
        if (
            count
            and max(int(pc.max(seeds).as_py()) + most - 1, int(index.max()) * reader.samples + config.seed) > MAX_SEED
        ):
            raise OddRows
        found["seed"] = seeds
        found |= {f"{EXTRA}{name}": column for name, column in self._extras(rows, id_is_index).items()}
        return self._batch(found, counts)

    def _batch(self, found: Mapping[str, pa.Array], counts: Any) -> pa.RecordBatch:
        """The tasks of rows that want so many images each."""
        if any(name.startswith(EXTRA) and found[name].type != self._type_of(name) for name in found):
            raise OddRows
        if len(counts) and int(counts.max()) > 1:
            rows = np.repeat(np.arange(len(counts)), counts)
            samples = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
            found = {name: column.take(pa.array(rows)) for name, column in found.items()}
            seeds = pc.add(found["seed"], pa.array(samples))
            alone = np.repeat(counts, counts) == 1
            found |= {"seed": seeds, "sample": pa.array(samples.astype(np.int32), mask=alone)}
        num_tasks = len(found["index"])
        columns = [
            found[field.name].cast(field.type) if field.name in found else pa.nulls(num_tasks, field.type)
            for field in self._schema
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _type_of(self, name: str) -> pa.DataType | None:
        return self._schema.field(name).type if name in self._schema.names else None

    def _texts(self, rows: "_Rows") -> pa.Array:
        """The prompts, none of which is blank."""
        found = rows.column(self._reader.text_column)
        if found is None or found[1] < rows.num_rows or not _is_text(found[0].type):
            raise OddRows
        texts = found[0].cast(pa.string())
        for number in _may_be_blank(texts):
            if not texts[number].as_py().strip():
                raise OddRows
        return texts

    def _setting(self, name: str, column: pa.Array, count: int) -> pa.Array:
        """What the rows set, as the check of this setting returns it."""
        if not count:
            return pa.nulls(len(column), SETTINGS[name])
        if name == "negative_prompt":
            if not _is_text(column.type):
                raise OddRows
            return column.cast(pa.string())
        if name == "guidance_scale" and pa.types.is_floating(column.type):
            found = column.cast(pa.float64())
            if not (pc.all(pc.is_finite(found)).as_py() and pc.min(found).as_py() >= 0):
                raise OddRows
            return found
        check = self._reader.checks[name]
        if name == "lora":
            check = _checked_text(check)
        return _each(column, check, SETTINGS[name])

    # -- input images -------------------------------------------------------------------------------------------------

    def _inputs(self, rows: "_Rows", first: int, label_of: Callable[[int], str]) -> dict[str, pa.Array]:
        """The images that the rows name, and what they set besides where they have some.

        Args:
            first: the number of a row of the same file.
            label_of: what one of them is called.
        """
        reader = self._reader
        if not isinstance(reader, ImageRowReader):
            return {}
        self._refuse_missing(rows, reader)
        found: dict[str, pa.Array] = {}
        has_some = np.zeros(rows.num_rows, bool)
        for role, name in reader.column_of.items():
            column = rows.column(name)
            if column is not None and column[1]:
                found[role] = self._image_numbers(reader, role, rows.column_of[name], column[0], first)
                has_some |= column[0].is_valid().to_numpy(zero_copy_only=False)
        for name in reader.fields:
            default, column = reader.defaults[name], rows.column(name)
            given = None if column is None or not column[1] else _each(column[0], reader.checks[name], pa.float64())
            found[name] = (
                pa.array([default] * rows.num_rows, pa.float64()) if given is None else given.fill_null(default)
            )
        places = [
            raw(f"{reader.source}, {label_of(at)}") if some else None for at, some in enumerate(has_some.tolist())
        ]
        return found | {"row": pa.array(places, pa.binary())}

    def _refuse_missing(self, rows: "_Rows", reader: ImageRowReader) -> None:
        """Rows that lack an image which they must have."""
        images = rows.column(IMAGES)
        if reader.needs_image and (images is None or images[1] < rows.num_rows):
            raise OddRows
        for name, other in reader.goes_with.items():
            there, needed = rows.column(name), rows.column(other)
            lacks = (
                np.ones(rows.num_rows, bool) if needed is None else needed[0].is_null().to_numpy(zero_copy_only=False)
            )
            if there is not None and (lacks & there[0].is_valid().to_numpy(zero_copy_only=False)).any():
                raise OddRows

    def _image_numbers(self, reader: ImageRowReader, role: Role, name: str, column: pa.Array, first: int) -> pa.Array:
        """The numbers of the images that a column names; each cell that differs is looked at once."""
        cells = column
        if is_list := bool(pa.types.is_list(column.type)):
            cells = column.flatten()
            if not reader.takes_several(role) or column.null_count or cells.null_count:
                raise OddRows
        if not _is_text(cells.type):
            raise OddRows
        encoded = cells.dictionary_encode()
        try:
            numbers = [
                self._named.of(reader.references(role, [cell] if is_list else cell, first, name))
                for cell in encoded.dictionary.to_pylist()
            ]
        except ValueError:
            raise OddRows from None
        if not is_list:
            return pa.array(numbers, NUMBERS).take(encoded.indices)
        ends = np.cumsum(pc.list_value_length(column).to_numpy())
        each = pa.array([number for (number,) in numbers], pa.int32()).take(encoded.indices)
        return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]), pa.int32()), each)

    def _counts(self, rows: "_Rows") -> Any:
        """How many images each row wants."""
        column, default = rows.column("num_images_per_prompt"), self._reader.samples
        if column is None or not column[1]:
            return np.full(rows.num_rows, default)
        return pc.fill_null(_each(column[0], values.num_samples, pa.int64()), default).to_numpy(zero_copy_only=False)

    def _extras(self, rows: "_Rows", id_is_index: bool) -> dict[str, pa.Array]:
        """The columns that are carried along: all that nothing has taken."""
        taken = self._taken(rows, id_is_index)
        return {
            name: _carried(column)
            for name, (column, count) in rows.columns.items()
            if name not in taken and count and not _is_bytes(column.type)
        }

    def _taken(self, rows: "_Rows", id_is_index: bool) -> dict[str, str]:
        """The columns that are used, each with what it is."""
        names = (
            "id" if id_is_index else "index",
            self._reader.text_column,
            *self._reader.checks,
            *(self._reader.column_of.values() if isinstance(self._reader, ImageRowReader) else ()),
            "steps",
            "num_images_per_prompt",
        )
        return {rows.column_of[name]: name for name in names if name in rows.column_of}

    def _note(self, rows: "_Rows", label_of: Callable[[int], str], id_is_index: bool) -> None:
        """Tell what was used and what was kept, in the order in which row by row would have."""
        columns = self._reader.columns
        taken = self._taken(rows, id_is_index)
        extras = self._extras(rows, id_is_index)
        order = {name: _first_given(rows.columns[name][0]) for name in (*taken, *extras) if rows.columns[name][1]}
        called = [
            (order[column], name, column)
            for name, column in rows.column_of.items()
            if column in order and column in taken
        ]
        for _, name, column in sorted(called, key=lambda each: each[0]):
            columns.note_used(name, column)
        for name in sorted((name for name in rows.columns if name in extras), key=order.__getitem__):
            columns.note_kept(label_of(order[name]), name, rows.columns[name][1])


class _Rows:
    """A batch of rows as columns: what is in them, and what they are."""

    def __init__(self, batch: pa.RecordBatch, meaning: Meaning) -> None:
        self._batch = batch
        self._meaning = meaning
        self.column_of = meaning.column_of
        self.num_rows = batch.num_rows
        given = (_given(column) for column in batch.columns)
        self.columns: dict[str, Column] = {
            name: (column, len(column) - column.null_count) for name, column in zip(batch.schema.names, given)
        }
        """NaN is nothing, as pandas writes it."""

    def at(self, places: Any) -> "_Rows":
        """The rows at these places."""
        return _Rows(self._batch.take(pa.array(places)), self._meaning)

    def column(self, name: str) -> Column | None:
        """What the table has of something that dglaunch knows."""
        found = self.column_of.get(name)
        return None if found is None else self.columns[found]

    def value(self, name: str, number: int) -> object:
        found = self.column(name)
        return None if found is None else found[0][number].as_py()

    def is_given(self, name: str, number: int) -> bool:
        return values.is_given(self.value(name, number))

    def told(
        self, text_column: str, index: Any, seeds: Any, flags: Mapping[str, object]
    ) -> dict[str, pa.Array | object]:
        """What an expression may name, as RowReader tells it of one row: columns, or a value that all rows have."""
        known: dict[str, pa.Array | object] = {
            "index": pa.array(index),
            "prompt": None,
            **flags,
            "seed": pa.array(seeds),
        }
        given = {name: column for name, (column, count) in self.columns.items() if count}
        given |= {name: self.columns[column][0] for name, column in self.column_of.items() if self.columns[column][1]}
        for name, column in given.items():
            if name in known and column.null_count and known[name] is not None:
                raise OddRows
            known[name] = column
        known["prompt"] = given.get(text_column)
        return known


# -- values -----------------------------------------------------------------------------------------------------------


def _given(column: pa.Array) -> pa.Array:
    """A column in which what is not given is nothing."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    return column


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _may_be_blank(texts: pa.Array) -> list[int]:
    """The places of texts that do not begin with a letter, a digit or a sign of ASCII."""
    _, offsets, data = texts.buffers()
    starts = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    begins = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8)
    first = begins[np.minimum(starts[:-1], len(begins) - 1)]
    plain = (first >= PLAIN_BYTES.start) & (first < PLAIN_BYTES.stop) & (np.diff(starts) > 0)
    return np.flatnonzero(~plain).tolist()


def _whole_numbers(column: pa.Array) -> pa.Array:
    """Whole numbers from 0 to the largest seed."""
    if pa.types.is_integer(column.type):
        found = column.cast(pa.int64())
    else:
        found = _each(column, values.whole_number, pa.int64(), most=len(column))
    if len(found) > found.null_count and pc.min(found).as_py() < 0:
        raise OddRows
    return found


def _each(column: pa.Array, check: Check, kind: pa.DataType, most: int = MOST_DIFFERENT) -> pa.Array:
    """A column in which each value is what a check returns of it."""
    if pa.types.is_nested(column.type):
        raise OddRows
    encoded = pc.dictionary_encode(column)
    if len(encoded.dictionary) > most:
        raise OddRows
    try:
        checked = [check(value) for value in encoded.dictionary.to_pylist()]
    except ValueError:
        raise OddRows from None
    return pa.array(checked, kind).take(encoded.indices)


def _checked_text(check: Check) -> Callable[[object], object]:
    """A check that returns the text itself."""

    def checked(value: object) -> object:
        check(value)
        return value

    return checked


def _carried(column: pa.Array) -> pa.Array:
    """A column that goes into the ledger, if nothing in it is what no JSON can carry."""
    is_finite = not pa.types.is_floating(column.type) or pc.all(pc.is_finite(column)).as_py()
    if not (may_be_carried(column.type) and is_finite):
        raise OddRows
    return column


def may_be_carried(kind: pa.DataType) -> bool:
    """Return whether the values of a type can be carried into the ledger; of numbers those that are finite."""
    return bool(pa.types.is_floating(kind) or _is_plain(kind))


def _is_plain(kind: pa.DataType) -> bool:
    """Whether whatever a value of a type is or holds can be carried."""
    if pa.types.is_struct(kind):
        return all(_is_plain(kind.field(number).type) for number in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_plain(kind.value_type)
    return bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind) or _is_text(kind))


def _first_given(column: pa.Array) -> int:
    """The place of the first value that is there."""
    return int(np.argmax(column.is_valid().to_numpy(zero_copy_only=False)))
