"""What a start finds in its output folder: what is done, what was damaged, and whether it is the same job at all.

A ledger line means a whole file, whenever the process died; an image without a line is made again. A line's `bytes` is
the file's size, which finds empty and truncated files. Every start reads all ledgers of its folder. Rank 0 joins those
of ranks to one at the start, whichever ranks wrote before, and at the end; of several nodes without a rendezvous, the one
that finds everything done publishes theirs (output/ordering.py). Closed segments stay as they are.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from dglaunch.atomic import atomic_write
from dglaunch.data.many import ManyTasks, ids_among
from dglaunch.data.task import LORA, SAMPLING, Record, Task, file_name
from dglaunch.errors import UserError
from dglaunch.files import is_regular
from dglaunch.output import ownership
from dglaunch.output.file_index import IN_SHARD
from dglaunch.output.images import is_as_its_line_says
from dglaunch.output.ledger import FAILURES, METADATA, RUN, OutputFolder, Part, read_run
from dglaunch.output.ledger_index import Done, LedgerIndex, from_above
from dglaunch.output.lines import (
    MOST_LINE,
    LedgerFile,
    LineKind,
    TaskId,
    file_name_of,
    id_of,
    is_redone,
    is_whole,
    read_lines,
    scan,
)
from dglaunch.output.looks import Looks
from dglaunch.output.replaced import PendingRedo
from dglaunch.output.shard_lines import lines_of
from dglaunch.output.shard_writer import Remains, remains_of
from dglaunch.output.shards import Shards, open_shards, shard_of

FINGERPRINT = "tasks_fingerprint"
"""What run.json says of a large table's tasks (data/many.py)."""
SHOWN = 5
"""Differences that an error shows."""


@dataclass(slots=True)
class Progress:
    """What of a job its output folder already has."""

    done: Done = field(default_factory=Done)
    """Key and file name of each image whose file is there in full."""
    damaged: int = 0
    """Lines that could not be read or whose file is missing or of another size: those images are made again."""
    to_repair: list[LedgerFile] = field(default_factory=list)
    """Closed ledgers that have such lines."""
    unlisted: list[str] = field(default_factory=list)
    """Files that look like images, of which no line says anything."""
    index: LedgerIndex | None = None
    """All that the ledgers say."""
    looks: Looks | None = None
    """What is known of its folders of images."""
    num_open: int = 0
    """Lines of this part's open ledger, with those that it takes over."""
    shards: Shards | None = None
    """Those of the folder, as they were when it was looked at."""
    remains: list[Remains] = field(default_factory=list)
    """What killed processes were filling that this part takes over."""
    folder: Path = Path()
    doubtful: Collection[TaskId] = ()
    """Images of which the size says too little: a redo was killed, perhaps between an image and its line."""

    def keep(self) -> None:
        """Keep what was read of the ledgers and found in the folders of images, for the next start.

        Raises:
            OSError: it cannot be written.
        """
        if self.index is not None:
            self.index.keep()
        if self.looks is not None:
            self.looks.keep()

    def has_file(self, record: Record) -> bool:
        """Return whether the file of a ledger line is there in full."""
        if not self._is_whole(record):
            return False
        return id_of(record) not in self.doubtful or is_as_its_line_says(self.folder, record)

    def _is_whole(self, record: Record) -> bool:
        name, size = file_name_of(record), record["bytes"]
        if shard := shard_of(record):
            return self.shards is not None and isinstance(size, int) and self.shards.has(shard, name, size)
        path = self.folder / name
        return is_regular(path) and is_whole(record, path.lstat().st_size)


def read_progress(folder: OutputFolder, part: Part) -> Progress:
    """Compare all ledgers of the folder with its files. Damage counts only in ledgers that this part may repair.

    Raises:
        UserError: a ledger cannot be read.
    """
    pending = PendingRedo.read(folder)
    doubtful = pending.task_ids if pending is not None else ()
    index = LedgerIndex.read(folder)
    remains = _remains(folder, part, index)
    if remains:
        index = LedgerIndex(folder, [*index.files, *map(lines_of, remains)])
    for file in index.files:
        if file.num_too_long:
            raise UserError(
                f"{file.ledger.path} has a line of more than {MOST_LINE:,} bytes, which dglaunch did not write. Choose another "
                "--output_dir, or move the file away."
            )
    compared = index.compare(doubtful)
    progress = Progress(
        compared.done(), unlisted=compared.unlisted, index=index, looks=compared.looks, folder=folder.path,
        doubtful=doubtful, shards=Shards(folder.path), remains=remains,
    )  # fmt: skip
    opened = {folder.file(METADATA, part.ledger_suffix), *folder.files_beside(METADATA, part)}
    closed = set(folder.closed_ledgers(part))
    for file, damaged in zip(index.files, compared.num_damaged()):
        progress.num_open += len(file) if file.ledger.path in opened else 0
        if damaged and file.ledger in closed:
            progress.to_repair.append(file.ledger)
        if file.ledger in closed or file.ledger.path in opened:
            progress.damaged += damaged
    return progress


def _remains(folder: OutputFolder, part: Part, index: LedgerIndex) -> list[Remains]:
    """What killed processes were filling. An image that has no line, and is there elsewhere by now, is one too many."""
    names: dict[str, set[str]] = {shard: set() for shard in open_shards(folder.path)}
    if not names:
        return []
    rows = np.flatnonzero(index.columns["folder"] == IN_SHARD)
    for name, shard in zip(index.names(rows), index.shards(rows)):
        if shard in names:
            names[shard].add(name)
    found = remains_of(folder, names, part.takes_over)
    done = index.compare().done()
    for remains in found:
        elsewhere = [line for line in remains.missing_lines if id_of(line) in done and not is_redone(line)]
        remains.superseded.extend(elsewhere)
    return found


# -- the same job? ------------------------------------------------------------------------------------------------


def refuse_other_job(
    folder: OutputFolder,
    progress: Progress,
    settings: Record,
    tasks: Sequence[Task],
    output_format: str,
    is_partial: bool = False,
) -> None:
    """Check that an unfinished job goes on as the job that it was. Where run.json says that the tasks are the very same, none of
    them is looked at: ten million keys take minutes.

    Args:
        is_partial: the tasks are some of the job's, so that others may have been made before.

    Raises:
        UserError: it is another job; the message says what changed.
    """
    if not progress.done:
        return
    changes = [*_changed_settings(folder, settings)]
    if not _are_the_same(folder, tasks):
        changes += _changed_rows(progress, tasks, output_format)
        changes += [] if is_partial else _rows_that_are_gone(progress, tasks)
    if changes:
        shown = "\n".join(f"  {change}" for change in changes[:SHOWN])
        more = f"\n  ... and {len(changes) - SHOWN:,} more" if len(changes) > SHOWN else ""
        raise UserError(
            f"{folder.path} holds the results of another job. Choose another --output_dir, or --overwrite to remove "
            "them and start anew; to make some of its images again, also with other values: dglaunch redo "
            f"{folder.path} --filter_rows 3,7,11 --set seed=8. What changed:\n{shown}{more}"
        )


def refuse_other_store(folder: OutputFolder, progress: Progress, store: str) -> None:
    """Check that a job goes on keeping its images as it began.

    Raises:
        UserError: it does not.
    """
    before = progress.done.first_store()
    if before not in (None, store):
        raise UserError(
            f"{folder.path} keeps its images with --store {before} since its first start, and this one says --store {store}. "
            f"Go on with --store {before}, or choose another --output_dir. (--layout webdataset and --layout parquet write "
            "shards of the finished images, however they are kept.)"
        )


def _are_the_same(folder: OutputFolder, tasks: Sequence[Task]) -> bool:
    """Whether each start until now had these tasks, as their run.json says: each has compared what was done before it."""
    said = {run.get(FINGERPRINT) for run in folder.all_runs().values()}
    if len(said) != 1 or None in said or not isinstance(tasks, ManyTasks):
        return False
    return said == {tasks.fingerprint()}


def _changed_settings(folder: OutputFolder, settings: Record) -> list[str]:
    """The differences to the first run.json that has any."""
    for run in folder.all_runs().values():
        before = run.get("settings")
        if not isinstance(before, dict):
            continue
        names = sorted(before.keys() | settings.keys())
        changes = [f"{n}: {before.get(n)!r} -> {settings.get(n)!r}" for n in names if before.get(n) != settings.get(n)]
        if changes:
            return changes
    return []


def _changed_rows(progress: Progress, tasks: Sequence[Task], output_format: str) -> Iterator[str]:
    """What the rows of images that are done say differently now."""
    changed: dict[TaskId, Task] = {}
    for task, row in zip(tasks, progress.done.rows_of(tasks)):
        if row < 0 or task.error is not None:
            continue  # an input image that is gone by now does not undo its result
        if not progress.done.is_same(row, task.key, file_name(task, output_format)):
            changed[task.id] = task
    if not changed:
        return
    assert progress.index is not None, "something is done"
    guess: tuple[str, ...] = ()
    for _, record in progress.index.records(progress.done.find(changed)):
        task = changed[id_of(record)]
        was_given = _given_before(record, task, guess)
        guess = was_given or guess
        yield from _changed_fields(record, task, output_format, was_given)


def _given_before(record: Record, task: Task, guess: tuple[str, ...]) -> tuple[str, ...] | None:
    """Which of its values the row had when the image was made; None: its key is of none of these. The line has the pipeline's own in place of the others, but
    its key is of what was given. Rows are much alike: the `guess` is what was right for another."""
    names = [name for name in SAMPLING if name != "seed" and record.get(name) is not None]
    some = (given for count in range(len(names) + 1) for given in combinations(names, count))
    for given in (guess, *some):
        values = {name: record.get(name) if name in given else None for name in SAMPLING if name != "seed"}
        before = replace(task, prompt=record.get("prompt"), seed=record.get("seed"), **values)  # type: ignore[arg-type]  # of a line: any type, and only hashed
        if before.key == record.get("key"):
            return given
    return None


def _changed_fields(record: Record, task: Task, output_format: str, was_given: Collection[str] | None) -> list[str]:
    """What a row says differently. A value that is given now and was the pipeline's own before is the same image."""
    changes: list[str] = []
    if record.get(LORA) and task.lora is None:
        changes.append(f"row {task.index}, {LORA}: {record[LORA]!r} -> none")
    for name, value in task.content().items():
        if value is not None and record.get(name) != value:
            changes.append(f"row {task.index}, {name}: {record.get(name)!r} -> {value!r}")
        elif value is None and name in (was_given or ()):
            changes.append(
                f"row {task.index}, {name}: {record.get(name)!r} was given before, now it is left to its default"
            )
    if is_redone(record):
        changes = [f"row {task.index} is not the one any more of which `dglaunch redo` made an image"]
    before, now = file_name_of(record), file_name(task, output_format)
    if before != now:
        changes.append(f"row {task.index}, file name: {before} -> {now}")
    if was_given is None and not changes:
        changes.append(f"row {task.index}: its key in the ledger is of other values than the line has")
    return changes


def _rows_that_are_gone(progress: Progress, tasks: Sequence[Task]) -> list[str]:
    rows = progress.done.rows_without(tasks)
    if not len(rows) or progress.index is None:
        return []
    names = ", ".join(progress.index.names(rows[:SHOWN]))
    return [f"{len(rows):,} images made there have no row any more ({names})"]


# -- one ledger of all --------------------------------------------------------------------------------------------


def settle(folder: OutputFolder, part: Part, progress: Progress, tasks: Sequence[Task]) -> None:
    """Leave one ledger of good lines, and one of the failures that are still open, instead of all that this part takes over.

    Of closed ledgers those that have lines which say nothing are replaced by such without. The other files go last: a start
    that is killed here finds each line once or twice, never not at all."""
    for closed in progress.to_repair:
        _leave_out(folder, closed, progress)
        rewrite(closed.path, _good_lines([closed], progress), part.ledger_suffix, folder.path)
    ledger, ledgers_beside = folder.file(METADATA, part.ledger_suffix), folder.files_beside(METADATA, part)
    failures, failures_beside = folder.file(FAILURES, part.ledger_suffix), folder.files_beside(FAILURES, part)
    if progress.damaged or ledgers_beside:
        opened = [LedgerFile(path) for path in (ledger, *ledgers_beside)]
        for file in opened:
            _leave_out(folder, file, progress)
        rewrite(ledger, _good_lines(opened, progress), part.ledger_suffix)
    if failures_beside or failures.exists():
        failed = {id_of(record) for path in (failures, *failures_beside) for _, record in read_lines(path)}
        open_tasks = {task_id for task_id in ids_among(tasks, failed) if task_id not in progress.done}
        for path in (failures, *failures_beside):
            ownership.keep_bad_lines(folder, path.name, bad_lines(path))
        rewrite(failures, _lines_about([failures, *failures_beside], open_tasks), part.ledger_suffix)
    runs_beside = [path for path in folder.files_beside(RUN, part) if read_run(path) is not None]
    ownership.remove([*ledgers_beside, *failures_beside, *runs_beside])


def join(folder: OutputFolder, part: Part, tasks: Sequence[Task]) -> bool:
    """Make one ledger of several at the end of a run, when nobody writes any more: of what ranks wrote beside this rank 0.

    Returns:
        Whether nothing of the job is missing: of nodes without a rendezvous, who finds that publishes what all have made.
    """
    if folder.files_beside(METADATA, part):
        settle(folder, part, read_progress(folder, part), tasks)
    if not part.node:
        return True
    done = read_progress(folder, part).done
    return bool((done.rows_of(tasks) >= 0).all())


def rewrite(path: Path, lines: Iterable[str], ledger_suffix: str = "", folder: Path | None = None) -> None:
    """Replace a ledger in one step; `lines` may read from it. The temporary file is in `folder`, or beside it."""
    with atomic_write(path, folder, ledger_suffix) as temporary, temporary.open("wb") as out:
        out.writelines(line.encode("utf-8", "surrogateescape") for line in lines)


def part_from_copies(path: Path) -> None:
    """Give a file that has several names (a backup by hard links) one of its own before it is added to."""
    if is_regular(path) and path.lstat().st_nlink > 1:
        rewrite(path, [line.text for line in scan(path)])


def _leave_out(folder: OutputFolder, ledger: LedgerFile, progress: Progress) -> None:
    """Keep aside what a ledger loses when it is written anew: lines that nobody can use; what is said of images that are not
    there any more (they may have been moved away, and are paid for); and files that are not as their line says, which could
    be what a person made of them: without the line nobody would know whose they are."""

    def is_lost(record: Record) -> bool:
        task_id = id_of(record)
        return task_id not in progress.done or progress.done[task_id][1] != file_name_of(record)

    lost = [(text, file_name_of(record)) for text, record in read_lines(*ledger) if is_lost(record)]
    texts = (from_above(text, ledger.inside) for text, _ in lost)
    ownership.keep_bad_lines(folder, ledger.path.name, [*bad_lines(ledger.path), *texts])
    for _, name in lost:
        ownership.set_aside(folder, folder.path / name)


def bad_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a ledger that nobody can use; the last one of a killed run is torn, and says nothing."""
    lines = (line for line in scan(path) if line.kind is LineKind.BAD and not line.is_rest)
    yield from (line.text for line in lines if line.text.strip("\0\n "))


def _good_lines(ledgers: Sequence[LedgerFile], progress: Progress) -> Iterator[str]:
    """One line for each image that is done; what others have written there stays."""
    seen: set[TaskId] = set()
    for ledger in ledgers:
        for text, kind, record, _ in scan(*ledger):
            if kind is LineKind.FOREIGN:
                yield text
            elif kind is LineKind.OURS and id_of(record) not in seen and progress.has_file(record):
                seen.add(id_of(record))
                yield text


def _lines_about(paths: Sequence[Path], task_ids: set[TaskId]) -> Iterator[str]:
    """The last line about each of these tasks; what others have written there stays."""
    last: dict[TaskId, str] = {}
    for path in paths:
        for text, kind, record, _ in scan(path):
            if kind is LineKind.FOREIGN:
                yield text
            elif kind is LineKind.OURS and id_of(record) in task_ids:
                last[id_of(record)] = text
    yield from last.values()
