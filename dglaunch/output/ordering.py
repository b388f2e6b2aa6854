"""The ledger of a job that has ended stands in the order of index, and its failures are those that are still open.

While a job runs, lines stand in the order in which images were finished. At the end each writer puts its own in order: a new
file takes the place of the old one in one step, so that whoever reads meanwhile finds all lines once.
"""

from array import array
from collections.abc import Collection, Iterator
from pathlib import Path

from dglaunch.files import open_regular
from dglaunch.output.ledger import FAILURES, METADATA, OutputFolder
from dglaunch.output.lines import LineKind, TaskId, id_of, read_lines, scan, scan_places, text_at
from dglaunch.output.resume import rewrite


def put_in_order(folder: OutputFolder, ledger_suffix: str, failed_now: Collection[TaskId]) -> None:
    """Put the ledger of a writer that writes no more into the order of index and sample, and drop the failures that were made
    good since. What others have written there comes last; a file with a line that nobody can read stays as it is.

    Args:
        folder: the output folder.
        ledger_suffix: the part of the job that writes.
        failed_now: what failed in this start; an earlier image of it may be there all the same.

    Raises:
        OSError: it cannot be written; the file is as it was.
        UserError: it cannot be read.
    """
    ledger, failures = folder.file(METADATA, ledger_suffix), folder.file(FAILURES, ledger_suffix)
    failed = {id_of(record): text for text, record in read_lines(failures)}
    made: set[TaskId] = set()
    places, foreign, is_in_order = array("q"), array("q"), True
    last: TaskId = (-1, -1)
    for start, line in scan_places(ledger):
        if line.kind in (LineKind.BAD, LineKind.TOO_LONG):
            return
        if line.kind is LineKind.FOREIGN:
            foreign.append(start)
        elif line.kind is LineKind.OURS:
            task_id = id_of(line.record)
            is_in_order = is_in_order and last < task_id
            last = task_id
            places.extend((*task_id, start))
            if task_id in failed:
                made.add(task_id)
        else:
            is_in_order = False
    if not is_in_order:
        rewrite(ledger, _lines_at(ledger, [*_sorted_starts(places), *foreign]), ledger_suffix)
    _drop_failures(failures, failed, made.difference(failed_now), ledger_suffix)


def _sorted_starts(places: "array[int]") -> list[int]:
    import numpy as np

    table = np.frombuffer(places, dtype=np.int64).reshape(-1, 3)
    starts: list[int] = table[np.lexsort((table[:, 1], table[:, 0])), 2].tolist()
    return starts


def _lines_at(path: Path, starts: list[int]) -> Iterator[str]:
    with open_regular(path) as data:
        yield from (text_at(data, start) for start in starts)


def _drop_failures(path: Path, failed: dict[TaskId, str], made: Collection[TaskId], ledger_suffix: str) -> None:
    """Leave one line for each failure that is still open, in order."""
    if not failed:
        return
    others = [line.text for line in scan(path) if line.kind is LineKind.FOREIGN]
    rewrite(path, [*(failed[task_id] for task_id in sorted(failed.keys() - made)), *others], ledger_suffix)
