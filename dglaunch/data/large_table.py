"""Large tables: one process of a node reads and checks all rows and writes their tasks into a file of columns, which all map.

    write_tasks(reader, table, path)        # on one rank of a node: every problem at once, as of a small table
    tasks = open_tasks(reader, path)        # on all of them

A small table needs none of this: reading its rows one by one takes less than importing Arrow (`Table.is_large`).
"""

import numpy as np
import pyarrow as pa

from dglaunch.data import column_reader
from dglaunch.data.column_reader import ColumnReader, may_be_carried
from dglaunch.data.columns import PLACES
from dglaunch.data.many_numbers import ManyNumbers
from dglaunch.data.prompts import RowReader
from dglaunch.data.sampling import is_sampled
from dglaunch.data.tables import Table
from dglaunch.data.task_table import OTHERS, REST, SETTINGS, TaskFile, TaskTable, schema_of
from dglaunch.errors import InputError

MOST_PROBLEMS = 10_000
"""Bad rows after which a large table is read no further: that something is wrong with all of it is plain by then."""


def write_tasks(reader: RowReader, table: Table, path: str) -> None:
    """Read and check all rows of a table, and write their tasks into a file.

    Raises:
        InputError: rows are bad; all of them are named, up to MOST_PROBLEMS.
        UserError: the table or a flag is wrong.
        OSError: the file cannot be written.
    """
    reader.table = table
    reader.numbering = numbers = ManyNumbers()
    schema = _schema(reader, table)
    fast = ColumnReader(reader, numbers, schema) if column_reader.fits(reader.config) else None
    file = TaskFile(path, schema, reader.defaults)
    for chunk in table.chunks():
        found = None
        if fast is not None and isinstance(chunk.rows, pa.RecordBatch):
            found = fast.tasks_of(chunk.rows, chunk.first, chunk.label_of)
        file.add(reader.tasks_of(chunk.as_rows(), chunk.first) if found is None else found)
        if reader.has_all:
            break
        if len(reader.problems) >= MOST_PROBLEMS:
            raise InputError(
                reader.source,
                reader.problems,
                f"Reading ended at {chunk.label_of(chunk.last)}. Correct them and start again.",
            )
    file.close()
    reader.check_names()
    _note_repeated(reader, table, numbers)
    reader.check_rows(file.num_tasks)


def open_tasks(reader: RowReader, path: str) -> TaskTable:
    """Map the tasks that `write_tasks` of the same table has written."""
    tasks = TaskTable.open(path, reader.defaults, reader.loras.of_row)
    config = reader.config
    if config.shuffle_seed is None or config.limit is None:
        return tasks
    rows = tasks.indices // len(reader.grid)
    return tasks.at(np.flatnonzero(is_sampled(rows, config.shuffle_seed, config.limit)))


def _schema(reader: RowReader, table: Table) -> pa.Schema:
    """The columns that the tasks of a table need: what its own columns say, where they are known beforehand."""
    if not column_reader.fits(reader.config) or table.parquet is None:
        return schema_of([*SETTINGS], [*OTHERS])
    _, found = table.parquet
    column_of = reader.columns.meaning_of(tuple(found.names)).column_of
    settings = [
        name for name in SETTINGS if name in column_of or (name == "num_inference_steps" and "steps" in column_of)
    ]
    others = [REST] if reader.samples == 1 and "num_images_per_prompt" not in column_of else ["sample", REST]
    taken = {column for name, column in column_of.items() if name not in PLACES}
    extras = [pa.field(field.name, _plain(field.type)) for field in found if field.name not in taken]
    return schema_of(settings, others, [field for field in extras if may_be_carried(field.type)])


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
