"""What a start finds in its output folder: what is done, what was damaged, and whether it is the same job at all.

A ledger line means a whole file, whenever the process died; an image without a line is made again. A line's `bytes` is
the file's size, which finds empty and truncated files. Every start reads all ledgers of its folder. Rank 0 joins those
of ranks to one at the start, whichever ranks wrote before, and at the end; of several nodes without a rendezvous, the one
that finds everything done joins theirs.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, combinations
from pathlib import Path

from dglaunch.atomic import atomic_write
from dglaunch.data.task import LORA, SAMPLING, Record, Task, file_name
from dglaunch.errors import UserError
from dglaunch.files import is_regular
from dglaunch.output import ownership
from dglaunch.output.images import Present, is_as_its_line_says
from dglaunch.output.ledger import FAILURES, METADATA, RUN, OutputFolder, Part, read_run
from dglaunch.output.lines import (
    MOST_LINE,
    LineKind,
    TaskId,
    file_name_of,
    id_of,
    is_redone,
    read_lines,
    row_key_of,
    scan,
)
from dglaunch.output.replaced import PendingRedo
from dglaunch.output.shard_writer import Remains, remains_of
from dglaunch.output.shards import open_shards, shard_of, store_of

SHOWN = 5
"""Differences that an error shows."""


@dataclass(slots=True)
class Progress:
    """What of a job its output folder already has."""

    done: dict[TaskId, tuple[str, str]] = field(default_factory=dict)
    """Key and file name of each image whose file is there in full."""
    damaged: int = 0
    """Lines that could not be read or whose file is missing or of another size: those images are made again."""
    present: Present | None = None
    """What is there; None: nothing is asked of it."""
    stores: set[str] = field(default_factory=set)
    """How the images are kept that are there, as --store names it."""
    in_shards: dict[str, set[str]] = field(default_factory=dict)
    """Of the shards that were being filled, the names of the images that have a line."""
    remains: list[Remains] = field(default_factory=list)
    """Those shards themselves."""
    folder: Path = Path()
    doubtful: Collection[TaskId] = ()
    """Images of which the size says too little: a redo was killed, perhaps between an image and its line."""

    def has_file(self, record: Record) -> bool:
        """Return whether the file of a ledger line is there in full."""
        if self.present is None or not self.present.has(record):
            return False
        return id_of(record) not in self.doubtful or is_as_its_line_says(self.folder, record)

    def add(self, record: Record) -> None:
        """Add an image that is there."""
        shard, name = shard_of(record), file_name_of(record)
        self.done[id_of(record)] = row_key_of(record), name
        self.stores.add(store_of(record))
        if shard in self.in_shards:
            self.in_shards[shard].add(name)

    def take(self, remains: Remains) -> None:
        """Count what a killed process left of a shard. An image that has no line and is there elsewhere by now is one too many."""
        self.remains.append(remains)
        for record in remains.missing_lines:
            if id_of(record) in self.done and not is_redone(record):
                remains.superseded.append(record)
            else:
                self.add(record)


def read_progress(folder: OutputFolder, part: Part) -> Progress:
    """Compare all ledgers of the folder with its files. Damage counts only in ledgers that this part may repair.

    Raises:
        UserError: a ledger cannot be read.
    """
    pending = PendingRedo.read(folder)
    progress = Progress(
        present=Present(folder),
        in_shards={shard: set() for shard in open_shards(folder.path)},
        folder=folder.path,
        doubtful=pending.task_ids if pending is not None else (),
    )
    repairable = {folder.file(METADATA, part.ledger_suffix), *folder.files_beside(METADATA, part)}
    for path in folder.files(METADATA):
        damaged = _read_ledger(path, progress)
        if path in repairable:
            progress.damaged += damaged
    for remains in remains_of(folder, progress.in_shards, part.takes_over):
        progress.take(remains)
    return progress


def _read_ledger(path: Path, progress: Progress) -> int:
    """Add the images of one ledger to what is done; the number of damaged lines."""
    seen: set[TaskId] = set()
    damaged = 0
    torn = 0
    for _, kind, record, is_torn in scan(path):
        torn += is_torn
        if kind is LineKind.TOO_LONG:
            raise UserError(
                f"{path} has a line of more than {MOST_LINE:,} bytes, which dglaunch did not write. Choose another "
                "--output_dir, or move the file away."
            )
        if kind in (LineKind.FOREIGN, LineKind.REPLACED):
            continue
        if kind is LineKind.BAD or id_of(record) in seen or not progress.has_file(record):
            damaged += 1
            continue
        seen.add(id_of(record))
        progress.add(record)
    return max(damaged, torn)


# -- the same job? ------------------------------------------------------------------------------------------------


def refuse_other_job(
    folder: OutputFolder,
    progress: Progress,
    settings: Record,
    tasks: Sequence[Task],
    output_format: str,
    is_partial: bool = False,
) -> None:
    """Check that an unfinished job goes on as the job that it was.

    Args:
        is_partial: the tasks are some of the job's, so that others may have been made before.

    Raises:
        UserError: it is another job; the message says what changed.
    """
    if not progress.done:
        return
    changes = [
        *_changed_settings(folder, settings),
        *_changed_rows(folder, progress, tasks, output_format),
        *([] if is_partial else _rows_that_are_gone(progress, tasks)),
    ]
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
    others = sorted(progress.stores - {store})
    if others:
        raise UserError(
            f"{folder.path} keeps its images with --store {others[0]} since its first start, and this one says --store {store}. "
            f"Go on with --store {others[0]}, or choose another --output_dir. (--layout webdataset and --layout parquet write "
            "shards of the finished images, however they are kept.)"
        )


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


def _changed_rows(folder: OutputFolder, progress: Progress, tasks: Sequence[Task], output_format: str) -> Iterator[str]:
    """What the rows of images that are done say differently now."""
    changed: dict[TaskId, Task] = {}
    for task in tasks:
        if task.id not in progress.done or task.error is not None:
            continue  # an input image that is gone by now does not undo its result
        if progress.done[task.id] != (task.key, file_name(task, output_format)):
            changed[task.id] = task
    if not changed:
        return
    lines = chain(folder.records(), *(remains.missing_lines for remains in progress.remains))
    records = {task_id: record for record in lines if (task_id := id_of(record)) in changed}
    guess: tuple[str, ...] = ()
    for task_id in progress.done:
        if task_id in changed:
            record, task = records[task_id], changed[task_id]
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
    wanted = {task.id for task in tasks}
    names = [name for task_id, (_, name) in progress.done.items() if task_id not in wanted]
    if not names:
        return []
    return [f"{len(names):,} images made there have no row any more ({', '.join(names[:SHOWN])})"]


# -- one ledger of all --------------------------------------------------------------------------------------------


def settle(folder: OutputFolder, part: Part, progress: Progress, tasks: Sequence[Task]) -> None:
    """Leave one ledger of good lines, and one of the failures that are still open, instead of all that this part takes over.

    The other files go last: a start that is killed here finds each line once or twice, never not at all."""
    ledger, ledgers_beside = folder.file(METADATA, part.ledger_suffix), folder.files_beside(METADATA, part)
    failures, failures_beside = folder.file(FAILURES, part.ledger_suffix), folder.files_beside(FAILURES, part)
    if progress.damaged or ledgers_beside:
        for path in (ledger, *ledgers_beside):
            _leave_out(folder, path, progress)
        rewrite(ledger, _good_lines([ledger, *ledgers_beside], progress), part.ledger_suffix)
    if failures_beside or failures.exists():
        open_tasks = {task.id for task in tasks} - progress.done.keys()
        for path in (failures, *failures_beside):
            ownership.keep_bad_lines(folder, path.name, bad_lines(path))
        rewrite(failures, _lines_about([failures, *failures_beside], open_tasks), part.ledger_suffix)
    runs_beside = [path for path in folder.files_beside(RUN, part) if read_run(path) is not None]
    ownership.remove([*ledgers_beside, *failures_beside, *runs_beside])


def join(folder: OutputFolder, part: Part, tasks: Sequence[Task]) -> None:
    """Make one ledger of several at the end of a run, when nobody writes any more: of what ranks wrote beside this rank 0.

    Of nodes without a rendezvous, the one that finds everything done writes metadata.jsonl in the order of index.
    Any of them may: the result is the same, and it replaces the file in one step."""
    if folder.files_beside(METADATA, part):
        settle(folder, part, read_progress(folder, part), tasks)
    if not part.node:
        return
    progress = read_progress(folder, part)
    if all(task.id in progress.done for task in tasks):
        lines = (pair for path in folder.files(METADATA) for pair in read_lines(path))
        texts = {id_of(record): text for text, record in lines if progress.has_file(record)}
        foreign = [text for text, kind, *_ in scan(folder.file(METADATA)) if kind is LineKind.FOREIGN]
        rewrite(folder.file(METADATA), [*(texts[task_id] for task_id in sorted(texts)), *foreign], part.ledger_suffix)


def rewrite(path: Path, lines: Iterable[str], ledger_suffix: str = "") -> None:
    """Replace a ledger in one step; `lines` may read from it."""
    with atomic_write(path, ledger_suffix=ledger_suffix) as temporary, temporary.open("wb") as out:
        out.writelines(line.encode("utf-8", "surrogateescape") for line in lines)


def part_from_copies(path: Path) -> None:
    """Give a file that has several names (a backup by hard links) one of its own before it is added to."""
    if is_regular(path) and path.lstat().st_nlink > 1:
        rewrite(path, [line.text for line in scan(path)])


def _leave_out(folder: OutputFolder, path: Path, progress: Progress) -> None:
    """Keep aside what a ledger loses when it is written anew: lines that nobody can use; what is said of images that are not
    there any more (they may have been moved away, and are paid for); and files that are not as their line says, which could
    be what a person made of them: without the line nobody would know whose they are."""
    done = {name for _, name in progress.done.values()}
    lost = [(text, file_name_of(record)) for text, record in read_lines(path) if file_name_of(record) not in done]
    ownership.keep_bad_lines(folder, path.name, [*bad_lines(path), *(text for text, _ in lost)])
    for _, name in lost:
        if progress.present is not None and name in progress.present.files:
            ownership.set_aside(folder, folder.path / name)


def bad_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a ledger that nobody can use; the last one of a killed run is torn, and says nothing."""
    lines = (line for line in scan(path) if line.kind is LineKind.BAD and not line.is_rest)
    yield from (line.text for line in lines if line.text.strip("\0\n "))


def _good_lines(paths: Sequence[Path], progress: Progress) -> Iterator[str]:
    """One line for each image that is done; what others have written there stays."""
    left = set(progress.done)
    for path in paths:
        for text, kind, record, _ in scan(path):
            if kind is LineKind.FOREIGN:
                yield text
            elif kind is LineKind.OURS and id_of(record) in left and progress.has_file(record):
                left.remove(id_of(record))
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
