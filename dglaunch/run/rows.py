"""What a folder of results says, row by row, for Python: read from its ledgers as it is asked for."""

from collections.abc import Iterator

from dglaunch.data.task import Record
from dglaunch.output.sorted_lines import SortedLines


class Rows(SortedLines):
    """Rows are read-only and in the order of index: `len(rows)`, `rows[-1]`, `rows[:10]`, `for row in rows`."""

    def __call__(self) -> Iterator[Record]:
        """Return an iterator: scripts of the time when `rows` and `failures` were methods say `result.rows()`."""
        return iter(self)

    def __repr__(self) -> str:
        return f"<{len(self):,} rows>"
