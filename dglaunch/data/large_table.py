"""Large tables: one process of a node reads and checks all rows and writes their tasks into a file of columns, which all map.

    write_tasks(reader, table, path)        # on one rank of a node: every problem at once, as of a small table
    tasks = open_tasks(reader, path)        # on all of them

A small table needs none of this: reading its rows one by one takes less than importing Arrow (`Table.is_large`).
"""

import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from dglaunch.data import column_reader
from dglaunch.data.column_reader import ColumnReader, may_be_carried
from dglaunch.data.columns import PLACES
from dglaunch.data.image_rows import ImageRowReader
from dglaunch.data.input_columns import FOLLOWING, ImageFile, ImageNumbers, ImageTable, alike
from dglaunch.data.many_numbers import ManyNumbers
from dglaunch.data.prompts import RowReader
from dglaunch.data.sampling import is_sampled
from dglaunch.data.tables import Table
from dglaunch.data.task import Task
from dglaunch.data.task_table import OTHERS, REST, SETTINGS, TaskFile, TaskTable, packed, schema_of
from dglaunch.errors import InputError

MOST_PROBLEMS = 10_000
"""Bad rows after which a large table is read no further: that something is wrong with all of it is plain by then."""
IMAGES, ROWS = ".images", ".rows"
"""Ends of the names of files beside that of the tasks: what is known of their input images, and the tasks before it is known."""


def write_tasks(reader: RowReader, table: Table, path: str) -> None:
    """Read and check all rows of a table, and write their tasks into a file; what is known of input images goes into another
    beside it.

    Raises:
        InputError: rows are bad; all of them are named, up to MOST_PROBLEMS.
        UserError: the table or a flag is wrong.
        OSError: the file cannot be written.
    """
    reader.table = table
    named = ImageNumbers()
    if isinstance(reader, ImageRowReader):
        rows = f"{path}{ROWS}"
        _write_rows(reader, table, rows, named)
        num_tasks = _add_images(reader, _sampled(reader, _opened(reader, rows)), path, named)
        os.unlink(rows)
    else:
        num_tasks = _write_rows(reader, table, path, named)
    reader.check_rows(num_tasks)


def open_tasks(reader: RowReader, path: str) -> TaskTable:
    """Map the tasks that `write_tasks` of the same table has written."""
    images = ImageTable.open(f"{path}{IMAGES}") if isinstance(reader, ImageRowReader) else None
    return _sampled(reader, _opened(reader, path, images))


def _opened(reader: RowReader, path: str, images: ImageTable | None = None) -> TaskTable:
    return TaskTable.open(path, reader.defaults, reader.loras.of_row, images)


def _sampled(reader: RowReader, tasks: TaskTable) -> TaskTable:
    """Those that --shuffle_seed and --limit draw."""
    config = reader.config
    if config.shuffle_seed is None or config.limit is None:
        return tasks
    rows = tasks.indices // len(reader.grid)
    return tasks.at(np.flatnonzero(is_sampled(rows, config.shuffle_seed, config.limit)))


def _write_rows(reader: RowReader, table: Table, path: str, named: ImageNumbers) -> int:
    """Write what the rows say; return how many tasks that is.

    Args:
        named: becomes the images that they name.
    """
    reader.numbering = numbers = ManyNumbers()
    schema = _schema(reader, table)
    fast = ColumnReader(reader, numbers, schema, named) if column_reader.fits(reader.config) else None
    file = TaskFile(path, schema)
    for chunk in table.chunks():
        found = None
        if fast is not None and isinstance(chunk.rows, pa.RecordBatch):
            found = fast.tasks_of(chunk.rows, chunk.first, chunk.label_of)
        file.add(
            _packed(reader, reader.tasks_of(chunk.as_rows(), chunk.first), schema, named) if found is None else found
        )
        if reader.has_all:
            break
        _refuse_many(reader, chunk.label_of(chunk.last))
    file.close()
    reader.check_names()
    _note_repeated(reader, table, numbers)
    return file.num_tasks


def _packed(reader: RowReader, tasks: Sequence[Task], schema: pa.Schema, named: ImageNumbers) -> pa.RecordBatch:
    """Tasks that were read row by row, as columns."""
    if not isinstance(reader, ImageRowReader):
        return packed(tasks, schema, reader.defaults)
    numbers = named.columns_of([reader.inputs.get(task.index, {}) for task in tasks])
    reader.inputs = {}
    return packed(tasks, schema, reader.defaults, numbers)


def _add_images(reader: ImageRowReader, rows: TaskTable, path: str, named: ImageNumbers) -> int:
    """Look at the images of all rows, and write the tasks with what is known of them; return how many there are."""
    reader.check_before_images(len(rows))
    reader.images.probe()
    images, file = ImageFile(f"{path}{IMAGES}"), TaskFile(path, rows.schema)
    following = pa.schema([field for field in rows.schema if field.name in FOLLOWING])
    num_drawn = 0
    for batch in rows.pieces():
        tasks, which = _with_images(reader, rows, batch, named)
        found = packed(tasks, following, reader.defaults, images.columns_of(tasks)).take(pa.array(which))
        num_drawn += len(found) - found.column("roles").null_count
        columns = [(found if name in following.names else batch).column(name) for name in rows.schema.names]
        file.add(pa.RecordBatch.from_arrays(columns, schema=rows.schema))
        _refuse_many(reader, reader.place_of(tasks[-1]) or f"index {tasks[-1].index}")
    file.close()
    images.close()
    reader.tell_of_inputs(file.num_tasks, num_drawn)
    return file.num_tasks


def _with_images(
    reader: ImageRowReader, rows: TaskTable, batch: pa.RecordBatch, named: ImageNumbers
) -> tuple[list[Task], Sequence[int]]:
    """Some tasks with what is known of their images, and which of them each row of a batch is like. Rows with the same images
    and settings are alike; where anything is wrong with one, each stands for itself, as what is said of it names the row."""
    which, firsts = alike(batch)
    num_problems = len(reader.problems)
    tasks = _looked_at(reader, rows, batch.take(pa.array(firsts)), named)
    if len(reader.problems) == num_problems and all(task.error is None for task in tasks):
        return tasks, which
    del reader.problems[num_problems:]
    return _looked_at(reader, rows, batch, named), range(batch.num_rows)


def _looked_at(reader: ImageRowReader, rows: TaskTable, some: pa.RecordBatch, named: ImageNumbers) -> list[Task]:
    """The tasks of some rows with what is known of their images."""
    tasks = rows.tasks_of(some)
    reader.inputs = dict(zip((task.index for task in tasks), named.inputs_of(some)))
    reader.add_inputs(tasks)
    return tasks


def _refuse_many(reader: RowReader, place: str) -> None:
    """Read no further where something is wrong with all rows.

    Args:
        place: of the last row that was read.
    """
    if len(reader.problems) >= MOST_PROBLEMS:
        raise InputError(reader.source, reader.problems, f"Reading ended at {place}. Correct them and start again.")


def _schema(reader: RowReader, table: Table) -> pa.Schema:
    """The columns that the tasks of a table need: what its own columns say, where they are known beforehand."""
    has_inputs = isinstance(reader, ImageRowReader)
    if not column_reader.fits(reader.config) or table.parquet is None:
        return schema_of([*SETTINGS], [*OTHERS], has_inputs=has_inputs)
    _, found = table.parquet
    column_of = reader.columns.meaning_of(tuple(found.names)).column_of
    steps = {"num_inference_steps"} if "steps" in column_of else set()
    sizes = {name for name in FOLLOWING if has_inputs}
    settings = [name for name in SETTINGS if name in column_of.keys() | steps | sizes]
    others = [REST] if reader.samples == 1 and "num_images_per_prompt" not in column_of else ["sample", REST]
    taken = {column for name, column in column_of.items() if name not in PLACES}
    extras = [pa.field(field.name, _plain(field.type)) for field in found if field.name not in taken]
    return schema_of(settings, others, [field for field in extras if may_be_carried(field.type)], has_inputs=has_inputs)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _note_repeated(reader: RowReader, table: Table, numbers: ManyNumbers) -> None:
    """Note the rows whose index another row has had: who that was is looked up now."""
    repeated = numbers.repeated(MOST_PROBLEMS)
    wanted = {number for _, *both in repeated for number in both}
    labels: dict[int, str] = {}
    for number, (label, _) in enumerate(table.rows() if wanted else ()):
        if number in wanted:
            labels[number] = label
        if len(labels) == len(wanted):
            break
    for index, before, number in repeated:
        reader.note_repeated(index, labels[number], labels[before], "id")
