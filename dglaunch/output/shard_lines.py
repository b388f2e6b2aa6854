"""The lines that the ledger lacks of a shard which a killed process was filling, as the columns of a ledger that stands in it."""

from dglaunch.output import shards
from dglaunch.output.file_index import FileIndex, Rows
from dglaunch.output.lines import LedgerFile, file_name_of
from dglaunch.output.shard_writer import Remains


def lines_of(remains: Remains) -> FileIndex:
    """Return them as a file of the ledger: each line stands in the shard itself, with its newline."""
    rows = Rows()
    missing = {file_name_of(record): record for record in remains.missing_lines}
    for sample in remains.samples:
        if sample.name in missing:
            rows.add(missing[sample.name], sample.line)
    path = shards.open_path(remains.folder, remains.shard)
    return FileIndex(LedgerFile(path), rows.columns(), rows.packed(), is_kept=True)
