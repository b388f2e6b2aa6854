"""Several output folders of one job become one: of nodes that share no file system."""

import contextlib
import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from pathlib import Path

from dglaunch import strict_json
from dglaunch.atomic import atomic_write
from dglaunch.data.task import Record
from dglaunch.elsewhere import PathElsewhere
from dglaunch.errors import OutputError, UserError
from dglaunch.output.asked import Asked, TaskRanges, asked_of, together
from dglaunch.output.batch_jobs import refuse_open_jobs
from dglaunch.output.far import REQUESTS, far_of
from dglaunch.output.image_folders import IMAGE_FOLDERS, ImageFolders, common_folders
from dglaunch.output.images import StoredImage
from dglaunch.output.in_window import in_window
from dglaunch.output.inspection import SHOWN, Inspection, describe_missing, inspect
from dglaunch.output.ledger import FAILURES, METADATA, RUN, OutputFolder, Part
from dglaunch.output.ledger_index import LedgerIndex
from dglaunch.output.lines import TaskId, file_name_of, id_of, read_lines
from dglaunch.output.ordering import put_in_order
from dglaunch.output.ownership import link_or_copy
from dglaunch.output.resume import rewrite
from dglaunch.output.shard_writer import Keeping, ShardWriter, take_over
from dglaunch.output.shards import IMAGE_SHARD, ShardKind, ShardName, closed_shards, index_of, shard_of


@dataclass(slots=True)
class Merged:
    """What the folders hold together."""

    parts: list[Inspection] = field(default_factory=list)
    """What each of them says of itself."""
    num_images: int = 0
    failures: dict[TaskId, str] = field(default_factory=dict)
    asked: Asked = field(default_factory=lambda: Asked(TaskRanges()))
    """What the folders were asked for together."""
    missing: str | None = None
    """A sentence about the images that none of them has."""

    def has(self, task_id: TaskId) -> bool:
        """Return whether one of the folders has this image."""
        return any(task_id in part.right for part in self.parts)


def merge_folders(folders: Sequence[OutputFolder], target: OutputFolder) -> Merged:
    """Check each image and link it into the target, or copy it, and write one ledger of all.

    Raises:
        UserError: the target is not empty, a folder is not right, or two of them belong to different jobs.
        OutputError: the target cannot be written.
    """
    if target.path.is_symlink() or (target.path.exists() and not target.path.is_dir()):
        raise UserError(f"--output_dir {target.path} is no folder; choose another name.")
    if not folders:
        raise UserError("Name the folders to join: dglaunch merge OUT0 OUT1 --output_dir OUT.")
    _refuse_different_jobs(folders)
    merged = Merged()
    with contextlib.ExitStack() as locks:
        if (far := far_of(target.path)) is not None:
            locks.enter_context(target.keep_runs_out(changes=True))
        if target.path.exists() and any(path.suffix != ".lock" for path in target.path.iterdir()):
            raise UserError(f"--output_dir {target.path} is not empty; choose another folder.")
        for folder in folders:  # all are looked at before the first file is linked
            locks.enter_context(folder.keep_runs_out())
            refuse_open_jobs(folder, "Start its own command again with --api_batch, which takes them, and merge then.")
            _add(folder, _inspect_closely(folder), merged)
        in_shards: Counter[tuple[Path, str]] = Counter()
        for folder, record in _together(merged.parts):  # two that differ are told before anything is written
            merged.num_images += 1
            if shard := shard_of(record):
                in_shards[folder.path, shard] += 1
        target.path.mkdir(parents=True, exist_ok=True)
        image_folders = common_folders(folders)
        try:
            shards = _Shards(target, in_shards)
            rewrite(target.file(METADATA), _linked(merged, target, image_folders, shards))
            shards.close()
            merged.failures = {id_: text for id_, text in merged.failures.items() if not merged.has(id_)}
            if merged.failures:
                rewrite(target.file(FAILURES), [merged.failures[task_id] for task_id in sorted(merged.failures)])
            _write_run(folders, merged, target, image_folders)
            put_in_order(target, Part(), merged.failures)
            if far is not None:
                far.flush()
                far.sync(has_ended=True)
        except OSError as error:
            raise OutputError(f"Writing to {target.path} failed: {error.strerror or error}.") from None
    merged.missing = describe_missing(target, LedgerIndex.read(target).compare().done())
    return merged


def _refuse_different_jobs(folders: Sequence[OutputFolder]) -> None:
    settings: object = None
    for folder in folders:
        folder.require_results()
        for run in folder.runs().values():
            if settings is None:
                settings = run.get("settings")
            if run.get("settings") != settings:
                raise UserError(
                    f"{folder.path} holds another job than {folders[0].path}: {run.get('settings')} and {settings}."
                )


def _inspect_closely(folder: OutputFolder) -> Inspection:
    found = inspect(folder)
    if found.problems:
        listed = "\n".join(f"  {problem}" for problem in found.problems[:SHOWN])
        raise UserError(f"{folder.path} is not right; dglaunch verify --repair {folder.path} first.\n{listed}")
    return found


def _add(folder: OutputFolder, found: Inspection, merged: Merged) -> None:
    merged.parts.append(found)
    failures = {id_of(record): text for path in folder.files(FAILURES) for text, record in read_lines(path)}
    merged.failures |= failures
    merged.asked = together([merged.asked, asked_of(folder, chain(found.right, failures))])


def _together(parts: Sequence[Inspection]) -> Iterator[tuple[OutputFolder, Record]]:
    """The images of all folders in order, each once, with the folder that it is in.

    Raises:
        UserError: two folders have different ones of a name.
    """

    def lines(part: Inspection) -> Iterator[tuple[TaskId, OutputFolder, Record]]:
        for row, record in part.index.records(part.right.rows):
            yield part.index.id_at(row), part.index.folder, record

    last: Record | None = None
    for _, folder, record in heapq.merge(*map(lines, parts), key=itemgetter(0)):
        if last is None or id_of(last) != id_of(record):
            yield folder, record
        elif last["sha256"] != record["sha256"]:
            raise UserError(f"{file_name_of(record)} is in two of the folders and differs; which is right?")
        last = record


class _Shards:
    """The shards of a folder into which others are merged: whole ones are linked, under numbers of this folder's; where images of
    one are not wanted, as another folder has them, the others are copied.

    Args:
        target: the folder.
        wanted: of each shard of the others, how many of its images are wanted.
    """

    def __init__(self, target: OutputFolder, wanted: Mapping[tuple[Path, str], int]) -> None:
        self._target = target
        self._whole = {
            (folder, shard): take_over(target, folder, shard)
            for (folder, shard), count in wanted.items()
            if shard in closed_shards(folder) and len(index_of(folder, shard)) == count
        }
        self._writers: dict[ShardKind, ShardWriter] = {}
        self._names: set[str] = set()

    def take(self, folder: Path, record: Record) -> Record:
        """Bring an image here, and return its line.

        Raises:
            UserError: there is another one of its name.
            OSError: it cannot be written.
        """
        name, shard = file_name_of(record), shard_of(record)
        if name in self._names:
            raise _two_of_a_name(name)
        self._names.add(name)
        if (whole := self._whole.get((folder, shard))) is not None:
            return {**record, IMAGE_SHARD: whole}
        kind = ShardName.parse(shard).kind
        if kind not in self._writers:
            self._writers[kind] = ShardWriter(self._target, Keeping(kind), "", lambda line: None)
        said = {key: value for key, value in record.items() if key != IMAGE_SHARD}
        return {**said, IMAGE_SHARD: self._writers[kind].add(said, StoredImage(folder, name, shard).read())}

    def close(self) -> None:
        """Close what is open.

        Raises:
            OSError: it cannot be written.
        """
        for writer in self._writers.values():
            writer.settle()


def _two_of_a_name(name: str) -> UserError:
    return UserError(f"{name} stands for different images in two of the folders.")


def _linked(merged: Merged, target: OutputFolder, image_folders: ImageFolders | None, shards: _Shards) -> Iterator[str]:
    """The lines of all images, each of which is linked into the target before its line comes."""
    named = _named(merged, target, image_folders, shards)
    if all(far_of(part.index.folder.path) is None for part in merged.parts) and far_of(target.path) is None:
        yield from map(_linked_alone, named)
        return
    with ThreadPoolExecutor(REQUESTS) as pool:
        yield from in_window(pool, _linked_alone, named, REQUESTS)


def _named(
    merged: Merged, target: OutputFolder, image_folders: ImageFolders | None, shards: _Shards
) -> Iterator[tuple[Path | None, Path, Record]]:
    """Of each image its file, what that will be (None: it is in a shard, and there), and its line."""
    made: set[Path] = set()
    for folder, record in _together(merged.parts):
        if shard_of(record):
            yield None, target.path, shards.take(folder.path, record)
            continue
        file = folder.path / file_name_of(record)
        name = file.name if image_folders is None else image_folders.place(id_of(record)[0], file.name)
        path = target.path / name
        if path.parent not in made:
            path.parent.mkdir(exist_ok=True)
            made.add(path.parent)
        if isinstance(path, PathElsewhere):  # two threads must not both give it
            if path.exists():
                raise _two_of_a_name(name)
            path.touch()
        yield file, path, {**record, "file_name": name}


def _linked_alone(image: tuple[Path | None, Path, Record]) -> str:
    """Link one image into the target, and return its line."""
    file, path, record = image
    try:
        if file is not None and isinstance(path, PathElsewhere):
            with atomic_write(path) as temporary:
                link_or_copy(file, temporary)
        elif file is not None:
            link_or_copy(file, path)
    except FileExistsError:
        raise _two_of_a_name(file_name_of(record)) from None
    return strict_json.dumps(record) + "\n"


def _write_run(
    folders: Sequence[OutputFolder], merged: Merged, target: OutputFolder, image_folders: ImageFolders | None
) -> None:
    """The first folder's run.json, with the counts of all."""
    asked = merged.asked
    num_ok, num_failed = merged.num_images, asked.named.num_of(merged.failures)
    runs = [run for folder in folders for run in folder.runs().values()]
    run = {
        **(runs[0] if runs else {}),
        "outcome": _outcome(num_ok, num_failed, asked.total),
        "num_ok": num_ok,
        "num_failed": num_failed,
        "num_skipped": 0,
        "num_total": asked.total,
        "num_tasks": asked.total,
        "tasks": None if asked.num_unnamed else asked.named.text,
        **({} if image_folders is None else {IMAGE_FOLDERS: image_folders.record}),
        "merged_from": [str(folder.path) for folder in folders],
    }
    with atomic_write(target.file(RUN)) as temporary:
        temporary.write_text(strict_json.dumps(run, indent=2) + "\n", encoding="utf-8")


def _outcome(num_ok: int, num_failed: int, total: int) -> str:
    if num_ok >= total:
        return "done"
    return "failed" if num_ok + num_failed >= total else "drained"
