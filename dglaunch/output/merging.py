"""Several output folders of one job become one: of nodes that share no file system."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dglaunch import strict_json
from dglaunch.atomic import atomic_write
from dglaunch.data.task import Record
from dglaunch.errors import OutputError, UserError
from dglaunch.output.asked import Asked, TaskRanges, asked_of, together
from dglaunch.output.batch_jobs import refuse_open_jobs
from dglaunch.output.images import StoredImage, image_of
from dglaunch.output.inspection import SHOWN, Inspection, describe_missing, inspect
from dglaunch.output.ledger import FAILURES, METADATA, RUN, OutputFolder
from dglaunch.output.lines import TaskId, file_name_of, id_of, read_lines
from dglaunch.output.ownership import link_or_copy
from dglaunch.output.resume import rewrite
from dglaunch.output.shard_writer import Keeping, ShardWriter, take_over
from dglaunch.output.shards import IMAGE_SHARD, ShardName, closed_shards, index_of


@dataclass(slots=True)
class Merged:
    """What the folders hold together."""

    images: dict[TaskId, StoredImage] = field(default_factory=dict)
    records: dict[TaskId, Record] = field(default_factory=dict)
    failures: dict[TaskId, str] = field(default_factory=dict)
    asked: Asked = field(default_factory=lambda: Asked(TaskRanges()))
    """What the folders were asked for together."""
    missing: str | None = None
    """A sentence about the images that none of them has."""


def merge_folders(folders: Sequence[OutputFolder], target: OutputFolder) -> Merged:
    """Check each image and link it into the target, or copy it, and write one ledger of all.

    Raises:
        UserError: the target is not empty, a folder is not right, or two of them belong to different jobs.
        OutputError: the target cannot be written.
    """
    if target.path.is_symlink() or (target.path.exists() and not target.path.is_dir()):
        raise UserError(f"--output_dir {target.path} is no folder; choose another name.")
    if target.path.exists() and any(target.path.iterdir()):
        raise UserError(f"--output_dir {target.path} is not empty; choose another folder.")
    if not folders:
        raise UserError("Name the folders to join: dglaunch merge OUT0 OUT1 --output_dir OUT.")
    _refuse_different_jobs(folders)
    merged = Merged()
    with contextlib.ExitStack() as locks:
        for folder in folders:  # all are looked at before the first file is linked
            locks.enter_context(folder.keep_runs_out())
            refuse_open_jobs(folder, "Start its own command again with --api_batch, which takes them, and merge then.")
            _add(folder, _inspect_closely(folder), merged)
        target.path.mkdir(parents=True, exist_ok=True)
        _bring_images(merged, target)
    merged.failures = {task_id: text for task_id, text in merged.failures.items() if task_id not in merged.records}
    try:
        _write_ledgers(merged, target)
        _write_run(folders, merged, target)
    except OSError as error:
        raise OutputError(f"Writing to {target.path} failed: {error.strerror or error}.") from None
    merged.missing = describe_missing(target, merged.records)
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
    for task_id, record in found.records.items():
        known = merged.records.get(task_id)
        if known is None:
            image = image_of(folder.path, record)
            assert image is not None, "inspect has looked at it"
            merged.images[task_id] = image
        elif known["sha256"] != record["sha256"]:
            raise UserError(f"{file_name_of(record)} is in two of the folders and differs; which is right?")
        merged.records[task_id] = record
    failures = {id_of(record): text for path in folder.files(FAILURES) for text, record in read_lines(path)}
    merged.failures |= failures
    merged.asked = together([merged.asked, asked_of(folder, [*found.records, *failures])])


def _bring_images(merged: Merged, target: OutputFolder) -> None:
    """Link or copy each image; whole shards where all of their images are wanted, else image by image."""
    in_shards: dict[tuple[Path, str], list[TaskId]] = {}
    for task_id, image in merged.images.items():
        if image.shard:
            in_shards.setdefault((image.folder, image.shard), []).append(task_id)
        else:
            _link(image.path, target)
    names = [file_name_of(merged.records[task_id]) for ids in in_shards.values() for task_id in ids]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise _two_of_a_name(twice[0])
    try:
        rest = [
            ids for (folder, shard), ids in in_shards.items() if not _link_shard(folder, shard, ids, merged, target)
        ]
        _copy_from_shards([task_id for ids in rest for task_id in ids], merged, target)
    except OSError as error:
        raise OutputError(f"Copying to {target.path} failed: {error.strerror or error}.") from None


def _link(file: Path, target: OutputFolder) -> None:
    try:
        link_or_copy(file, target.path / file.name)
    except FileExistsError:
        raise _two_of_a_name(file.name) from None
    except OSError as error:
        raise OutputError(f"Copying {file} to {target.path} failed: {error.strerror or error}.") from None


def _two_of_a_name(name: str) -> UserError:
    return UserError(f"{name} stands for different images in two of the folders.")


def _link_shard(folder: Path, shard: str, ids: Sequence[TaskId], merged: Merged, target: OutputFolder) -> bool:
    """Take a shard over as it is, under a number of the target's; whether that can be done."""
    if shard not in closed_shards(folder) or len(index_of(folder, shard)) != len(ids):
        return False
    kept = take_over(target, folder, shard)
    for task_id in ids:
        merged.records[task_id] = {**merged.records[task_id], IMAGE_SHARD: kept}
    return True


def _copy_from_shards(ids: Sequence[TaskId], merged: Merged, target: OutputFolder) -> None:
    """Write images into shards of the target, of the kind that they are in."""
    kinds = {ShardName.parse(merged.images[task_id].shard).kind for task_id in ids}
    for kind in sorted(kinds):
        writer = ShardWriter(target, Keeping(kind), "", lambda record: merged.records.update({id_of(record): record}))
        for task_id in ids:
            if ShardName.parse(merged.images[task_id].shard).kind == kind:
                said = {name: value for name, value in merged.records[task_id].items() if name != IMAGE_SHARD}
                writer.add(said, merged.images[task_id].read())
        writer.settle()


def _write_ledgers(merged: Merged, target: OutputFolder) -> None:
    texts = [strict_json.dumps(merged.records[task_id]) + "\n" for task_id in sorted(merged.records)]
    rewrite(target.file(METADATA), texts)
    if merged.failures:
        rewrite(target.file(FAILURES), [merged.failures[task_id] for task_id in sorted(merged.failures)])


def _write_run(folders: Sequence[OutputFolder], merged: Merged, target: OutputFolder) -> None:
    """The first folder's run.json, with the counts of all."""
    asked = merged.asked
    num_ok, num_failed = asked.named.num_of(merged.records), asked.named.num_of(merged.failures)
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
        "merged_from": [str(folder.path) for folder in folders],
    }
    with atomic_write(target.file(RUN)) as temporary:
        temporary.write_text(strict_json.dumps(run, indent=2) + "\n", encoding="utf-8")


def _outcome(num_ok: int, num_failed: int, total: int) -> str:
    if num_ok >= total:
        return "done"
    return "failed" if num_ok + num_failed >= total else "drained"
