"""A large table is read once a node: one rank writes its tasks into a file of columns, and all ranks of the node map it.

The file lies on the node's own disk (--stage_to, else the system's folder for temporary files), in a folder of its own that
nobody else can read, with a second one if the table names input images. It is removed as soon as all have mapped it: the kernel
keeps what is mapped, and only a start that is killed while it reads leaves one there.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dglaunch.atomic import temporary_path
from dglaunch.config import RunConfig
from dglaunch.data.prompts import RowReader
from dglaunch.data.tables import Table
from dglaunch.data.task import Task
from dglaunch.distributed import store
from dglaunch.distributed.channel import MODEL_TIMEOUT
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError

if TYPE_CHECKING:
    from dglaunch.data.task_table import TaskTable


def rows_in_columns(topology: Topology) -> Callable[[RowReader, Table], Sequence[Task]]:
    """Return what reads a large table, on all ranks of this job together."""
    return lambda reader, table: _read(topology, reader, table)


def _read(topology: Topology, reader: RowReader, table: Table) -> "TaskTable":
    """The tasks of a table.

    Raises:
        UserError: the table is wrong, or there is no room for the file.
        LostPeer: another rank has died.
    """
    from dglaunch.data.large_table import open_tasks  # which imports Arrow

    with _place(reader.config) as path:
        if topology.local_world_size == 1 or topology.rendezvous is None:
            _write(reader, table, path)
            return open_tasks(reader, str(path))
        _ = reader.columns.past  # all ranks come to ask for it, or none: the others will not read the table

        def make() -> str:
            _write(reader, table, path)
            return f"{path}\n{reader.columns.dumps()}"

        with store.made_on_node(topology, make, MODEL_TIMEOUT) as made:
            written, _, found = made.partition("\n")
            reader.columns.take_over(found)
            return open_tasks(reader, written)


@contextmanager
def _place(config: RunConfig) -> Iterator[Path]:
    """A file's name in a new folder on this node's disk, which is made when the file is, and removed in the end."""
    folder = temporary_path(config.backend.stage_to or Path(tempfile.gettempdir()))
    try:
        yield folder / "tasks"
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # it may never have been there


def _write(reader: RowReader, table: Table, path: Path) -> None:
    from dglaunch.data.large_table import write_tasks

    try:
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700)  # the addresses of input images may be signed
        write_tasks(reader, table, str(path))
    except OSError as error:
        raise UserError(
            f"{path.parent.parent} cannot take the rows of {reader.source} in columns: {error.strerror or error}. Make room there, or "
            "name another folder with TMPDIR or --stage_to."
        ) from None
