"""The public view: when a job has ended, its ledger stands in the order of index, and its failures are those that are still open.

While a job runs, lines stand in the order in which images were finished, of a large job in segments. At the end each writer
puts its own in order: a new file takes the place of the old one in one step, so that whoever reads meanwhile finds all lines.
Where images are in folders, each folder has a metadata.jsonl of its own, with the names as they are seen from there, and there is
none above them: each folder is an ImageFolder for itself, and all of them together are one, in which each image has one line.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress

import numpy as np

from dglaunch.output import ownership, segments
from dglaunch.output.file_index import FileIndex, Ints, kept_at, pack, state_of
from dglaunch.output.ledger import FAILURES, METADATA, OutputFolder, Part
from dglaunch.output.ledger_index import LedgerIndex
from dglaunch.output.lines import LedgerFile, LineKind, TaskId, id_of, read_lines, scan
from dglaunch.output.resume import rewrite
from dglaunch.output.segments import FOLDER, closed


def put_in_order(folder: OutputFolder, part: Part, failed_now: Collection[TaskId]) -> None:
    """Put the ledger of a writer that writes no more into the order of index and sample, and drop the failures that were made
    good since. What others have written there comes last; where a file has a line that nobody can read, all stays as it is.

    Of several nodes without a rendezvous each orders its open segment only; who finds everything done publishes the rest.

    Args:
        folder: the output folder.
        part: the part of the job that writes.
        failed_now: what failed in this start; an earlier image of it may be there all the same.

    Raises:
        OSError: it cannot be written; the files are as they were.
        UserError: one cannot be read.
    """
    index = LedgerIndex.read(folder)
    taken = set() if part.node else set(closed(folder.path))
    own = folder.file(METADATA, part.ledger_suffix)
    sources = [n for n, file in enumerate(index.files) if file.ledger.path == own or file.ledger.path in taken]
    if _publish(index, sources, LedgerFile(own), part.ledger_suffix):
        forget(folder, [index.files[n] for n in sources if index.files[n].ledger.path in taken])
    _drop_failures(folder, part.ledger_suffix, index, failed_now)


def publish_all(folder: OutputFolder, part: Part) -> None:
    """Write the public view of what all nodes without a rendezvous have made. Any of them may, and several at a time: what they
    write is the same. Their own ledgers and segments stay.

    Raises:
        OSError: it cannot be written.
        UserError: a ledger cannot be read.
    """
    index = LedgerIndex.read(folder)
    _publish(index, range(len(index.files)), LedgerFile(folder.file(METADATA)), part.ledger_suffix)


def forget(folder: OutputFolder, files: Sequence[FileIndex]) -> None:
    """Remove segments whose lines are in the public view, and what is kept of them."""
    kept = folder.path / FOLDER
    for file in files:
        ownership.remove([file.ledger.path, kept_at(kept, file.ledger)])


def _publish(index: LedgerIndex, sources: Sequence[int], top: LedgerFile, ledger_suffix: str) -> bool:
    """Write the lines of some files to where the public view has them; whether all of them are there now."""
    if any(index.files[n].num_bad or index.files[n].num_too_long for n in sources):
        return False
    folders, is_source = index.columns["folder"], np.isin(index.file, sources)
    rows = index.last()
    by_folder = rows[np.argsort(folders[rows], kind="stable")]
    for some in np.split(by_folder, np.flatnonzero(np.diff(folders[by_folder])) + 1):
        if len(some) and folders[some[0]] >= 0 and is_source[some].any():
            _publish_folder(index, some, ledger_suffix)
    _publish_top(index, sources, index.last((folders < 0) & is_source), top, ledger_suffix)  # what it replaces was read
    if (folders[rows] >= 0).any():
        ownership.remove([top.path] if ownership.is_empty(top.path) else [])
    return True


def _publish_top(index: LedgerIndex, sources: Sequence[int], rows: Ints, top: LedgerFile, ledger_suffix: str) -> None:
    """The lines of images that are in no folder, and what others have written."""
    files = [index.files[n] for n in sources if len(index.files[n]) or not index.files[n].is_clean]
    if [file.ledger for file in files] in ([], [top]) and not any(file.num_replaced for file in files):
        starts = index.columns["start"][rows]
        if len(rows) == sum(map(len, files)) and bool((np.diff(starts) > 0).all()):
            return
    foreign = [text for file in files for text in _foreign(file.ledger)]
    _write(index, rows, top, foreign, ledger_suffix)


def _publish_folder(index: LedgerIndex, rows: Ints, ledger_suffix: str) -> None:
    """All lines of one folder of images."""
    name = f"{int(index.columns['folder'][rows[0]]):04d}"
    view = LedgerFile(index.folder.path / name / "".join(METADATA), f"{name}/")
    _write(index, rows, view, _foreign(view), ledger_suffix)


def _foreign(ledger: LedgerFile) -> list[str]:
    return [line.text for line in scan(*ledger) if line.kind is LineKind.FOREIGN]


def _write(index: LedgerIndex, rows: Ints, target: LedgerFile, foreign: Sequence[str], ledger_suffix: str) -> None:
    """Replace a file of the public view, and keep its columns, which are known, for the next start."""
    lengths: list[int] = []

    def lines() -> Iterator[str]:
        for text in index.texts(rows):
            inside = from_inside(text, target.inside)
            lengths.append(len(inside.encode("utf-8", "surrogateescape")))
            yield inside
        yield from foreign

    rewrite(target.path, lines(), ledger_suffix, index.folder.path)
    if foreign or (len(rows) < segments.SEGMENT_LINES and not target.inside):
        return
    columns = {name: column[rows] for name, column in index.columns.items()}
    columns["start"] = np.cumsum([0, *lengths[:-1]], dtype=np.int64)
    made = FileIndex(target, columns, pack(index.packed_names(rows)), state=state_of(target))
    with suppress(OSError):  # a help for the next start
        kept = index.folder.path / FOLDER
        ownership.make_folder(kept)
        made.keep(kept_at(kept, target))


def from_inside(text: str, inside: str) -> str:
    """Return the text of a line with its name as it is seen from a folder of images."""
    return text.replace(f'"file_name": "{inside}', '"file_name": "', 1) if inside else text


def _drop_failures(
    folder: OutputFolder, ledger_suffix: str, index: LedgerIndex, failed_now: Collection[TaskId]
) -> None:
    """Leave one line for each failure that is still open, in order."""
    path = folder.file(FAILURES, ledger_suffix)
    failed = {id_of(record): text for text, record in read_lines(path)}
    if not failed:
        return
    made = index.id_set(np.array(index.ids.find_all(failed), dtype=np.int64)).difference(failed_now)
    others = [line.text for line in scan(path) if line.kind is LineKind.FOREIGN]
    rewrite(path, [*(failed[task_id] for task_id in sorted(failed.keys() - made)), *others], ledger_suffix)
