"""Writing results: an image under a temporary name, then under its own, and only then its ledger line.

So a line means a whole file, whenever the process dies. One process writes to one ledger, and its writer is used by one
thread at a time.
"""

import contextlib
import hashlib
import io
import os
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from dglaunch import strict_json
from dglaunch.atomic import atomic_write, temporary_path
from dglaunch.data.many import ManyTasks
from dglaunch.data.task import INPUT_FIELDS, SAMPLING, Record, Result, Task, file_name
from dglaunch.errors import OutputError, UserError
from dglaunch.files import open_for_appending
from dglaunch.output import ownership, resume, segments
from dglaunch.output.far import far_of
from dglaunch.output.file_index import FileIndex, kept_at
from dglaunch.output.ledger import FAILURES, METADATA, RUN, OutputFolder, Part, read_run
from dglaunch.output.lines import LedgerFile, TaskId, append_line, file_name_of, id_of
from dglaunch.output.ordering import publish_all, put_in_order
from dglaunch.output.replaced import PendingRedo, Replacing
from dglaunch.output.shard_writer import AS_FILES, Keeping, ShardWriter, drop_replaced, settle_remains
from dglaunch.output.shards import shard_of
from dglaunch.storage.errors import StorageError

if TYPE_CHECKING:
    from dglaunch.data.images import InputImage

CONTENT = (
    "prompt", *SAMPLING, "input_sha256", "mask_sha256", "control_sha256", *INPUT_FIELDS, "lora_sha256",
)  # fmt: skip
"""Of a task or a ledger line: what decides the image."""
LOCK_AGAIN_S = 1.0
RESERVED = 1 << 16
"""Bytes of the disk kept for the last run.json."""


class Writer:
    """The writer puts the results of one process into an output folder.

    Args:
        path: --output_dir.
        node: the part of a machine among nodes without a rendezvous ("-node0of4").
        rank: the part of a rank that writes beside rank 0 ("-rank3of8").
        keeping: as files, or in shards.
    """

    def __init__(self, path: Path, node: str = "", rank: str = "", keeping: Keeping = AS_FILES) -> None:
        self.folder = OutputFolder(path)
        self.far = far_of(path)
        """Of results in an object store."""
        self.part = Part(node, rank)
        suffix = self.part.ledger_suffix
        self.ledger_path = self.folder.file(METADATA, suffix)
        self.failures_path = self.folder.file(FAILURES, suffix)
        self.run_path = self.folder.file(RUN, suffix)
        self.has_begun = False
        """Whether `begin` was called: before that, nothing but the lock is written."""
        self._keeping = keeping
        self._shards: ShardWriter | None = None
        """Where --store says so."""
        self.is_published = False
        """Whether nothing is missing of what this process joins: `join` has found so."""
        self._replacing_images: Replacing | None = None
        """Of a redo: what keeps the images that are there already."""
        self._pending: PendingRedo | None = None
        self._failed: set[TaskId] = set()
        """What has failed in this start."""
        self._model: object = None
        self._reserve: Path | None = None
        self._ledger: io.FileIO | None = None
        self._num_open = 0
        """Lines of the open segment."""
        self._image_folders: set[Path] = set()
        """Folders of images that are there."""
        self._failures: io.FileIO | None = None
        self._lock: BinaryIO | None = None
        self._adding = threading.Lock()
        self.in_use = threading.RLock()
        """Held by who writes during the run: results come on one thread, and run.json is refreshed on another."""

    # -- before the run -------------------------------------------------------------------------------------------

    def open(
        self,
        settings: Record,
        tasks: Sequence[Task],
        output_format: str,
        overwrite: bool,
        is_partial: bool = False,
        patience: float = 0.0,
        image_folders: Collection[str] = (),
    ) -> resume.Progress:
        """Lock the folder, refuse what does not fit, and return what is done. Nothing is changed yet.

        Args:
            is_partial: the tasks are some of the job's.
            patience: seconds for which a lock that another process holds is waited for.
            image_folders: names of the folders that their images go to.

        Raises:
            UserError: the folder cannot be written, is in use, holds another job's results, or files of the user's that
                would be replaced.
        """
        self._lock_folder(patience)
        if self.far is not None:
            with self._refusing():
                self.far.pull(self.part.takes_over)
        found = resume.read_progress(self.folder, self.part)
        progress = resume.Progress() if overwrite else found
        resume.refuse_other_store(self.folder, progress, self._keeping.store)
        resume.refuse_other_job(self.folder, progress, settings, tasks, output_format, is_partial)
        self._model = settings.get("model_name")
        images = self._unfinished_among(found.unlisted, progress, tasks, output_format)
        ownership.refuse_foreign_files(self.folder, images, image_folders)
        if self._keeping.kind is not None:
            ownership.refuse_foreign_shards(self.folder)
        return progress

    def _unfinished_among(
        self, names: Sequence[str], progress: resume.Progress, tasks: Sequence[Task], output_format: str
    ) -> dict[str, ownership.Identity]:
        """Which of some files have the name of an image that is not done, and what that would say of itself."""
        if not names:
            return {}
        there = set(names)
        if isinstance(tasks, ManyTasks):
            tasks = tasks.maybe_called({name.rpartition(".")[0] for name in names})
        missing = (task for task in tasks if file_name(task, output_format) in there and task.id not in progress.done)
        return {file_name(task, output_format): self._identity(task.id, task.content()) for task in missing}

    def _identity(self, task_id: TaskId, content: Record) -> ownership.Identity:
        """What the file of this image says of itself, as far as it is known; `content` may be a ledger line."""
        known = {name: content[name] for name in CONTENT if content.get(name) is not None}
        return {"index": task_id[0], "sample": task_id[1], "model": self._model, **known}

    def _lock_folder(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        with self._refusing():
            while self._lock is None:
                try:
                    self._lock = self.folder.lock(self.part)
                except UserError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(LOCK_AGAIN_S)

    def clear(self) -> None:
        """Remove the results of earlier runs, for --overwrite; all that could refuse the run has been asked by now.

        Raises:
            UserError: the folder cannot be written.
        """
        with self._refusing():
            ownership.remove_results(self.folder)
            if (pending := PendingRedo.read(self.folder)) is not None:
                pending.remove(self.folder)

    def begin(self, progress: resume.Progress, tasks: Sequence[Task]) -> None:
        """Repair what a killed run left, and open the ledger.

        Raises:
            UserError: the folder cannot be written.
        """
        with self._refusing():
            if not self.part.is_beside:
                ownership.remove_old_locks(self.folder, self.part)
            ownership.remove_temporary_files(self.folder, self.part)
            with contextlib.suppress(OSError):  # a help for the next start
                progress.keep()
            self._num_open = progress.num_open
            resume.settle(self.folder, self.part, progress, tasks)
            if read_run(self.run_path) is None and not ownership.is_empty(self.run_path):
                ownership.set_aside(self.folder, self.run_path)  # torn, as after a copy
            if not self.part.is_beside:
                self._reserve = temporary_path(self.folder.path, self.part.ledger_suffix)
                self._reserve.write_bytes(bytes(RESERVED))
            for path in (self.ledger_path, self.failures_path):
                resume.part_from_copies(path)
            self._ledger = open_for_appending(self.ledger_path)
            self._failures = open_for_appending(self.failures_path)
            self._settle_shards(progress)
            if self.far is not None:
                self.far.sync(has_ended=True)
        self.has_begun = True

    def _settle_shards(self, progress: resume.Progress) -> None:
        """Close what killed processes were filling: first their images get the lines that they lack."""
        if self._keeping.kind is None:
            return
        for remains in progress.remains:
            for record in remains.missing_lines:
                self._add_line(record)
        self._sync_lines()
        settle_remains(self.folder, progress.remains, self.part.takes_over)
        suffix = self.part.ledger_suffix
        self._shards = ShardWriter(self.folder, self._keeping, suffix, self._add_line, self._sync_lines)

    def _sync_lines(self) -> None:
        """Bring the lines to where they survive the machine."""
        assert self._ledger is not None, "begin() comes first"
        if self.far is not None:
            self.far.flush_lines()
        else:
            os.fsync(self._ledger.fileno())

    def begin_anew(self, pending: PendingRedo, records: Mapping[TaskId, Record]) -> None:
        """Of a redo: note what is asked, before anything is replaced; `begin` comes next.

        Args:
            pending: what is asked.
            records: the ledger lines of the images that are there of it.

        Raises:
            UserError: the folder cannot be written, or what is replaced would lie among files of the user's.
        """
        replacing = Replacing(self.folder, records)
        replacing.refuse_foreign()
        with self._refusing():
            pending.write(self.folder)
        self._replacing_images, self._pending = replacing, pending

    def end_anew(self) -> None:
        """Of a redo: all of it is made."""
        if self._pending is not None:
            self._pending.remove(self.folder)

    def drop_replaced(self) -> None:
        """Of a redo, when no one writes any more: closed shards have each image once.

        Raises:
            OSError: a shard cannot be written.
        """
        if self._pending is not None and self._shards is not None:
            lines = (line for line in self.folder.records() if id_of(line) in self._pending.task_ids)
            drop_replaced(self.folder, {file_name_of(line): shard_of(line) for line in lines})

    def keep_prompts(self, data: bytes) -> None:
        """Keep what came out of a pipe, for the next start; what an earlier one kept is moved aside.

        Raises:
            UserError: the folder cannot be written.
        """
        path = self.folder.kept_prompts(self.part.node)
        with self._refusing():
            if ownership.is_as_written(path, hashlib.sha256(data).hexdigest()):
                return
            ownership.set_aside(self.folder, path)
            with self._replacing(path) as temporary:
                temporary.write_bytes(data)

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"--output_dir {self.folder.path} cannot be written: {error.strerror or error}. Choose another folder or "
                "correct its permissions."
            ) from None

    # -- during the run -------------------------------------------------------------------------------------------

    def write(self, result: Result) -> None:
        """Write one image and its ledger line, or one line of failures.jsonl.

        Raises:
            OutputError: the disk is full, the folder is gone, ...
        """
        with self.in_use:
            self._write_alone(result)

    def _write_alone(self, result: Result) -> None:
        assert self._failures is not None, "begin() comes first"
        try:
            if result.data is None:
                self._failed.add(result.task_id)
                self._add_failure(result.record)
                return
            record = {"file_name": result.file_name, **result.record, "bytes": len(result.data)}
            replaced = self._replacing_images
            is_kept = replaced is not None and replaced.keep(result.task_id, result.file_name)
            if self._shards is not None:
                self._shards.add(record, result.data)
                return
            if not is_kept:
                ownership.make_way(self.folder, result.file_name, self._identity(result.task_id, result.record))
            if self.far is not None:
                self.far.put_image(result.file_name, result.data, lambda: self._add_line(record))
                return
            path = self.folder.path / result.file_name
            self._make_folder(path.parent)
            with self._replacing(path) as temporary:
                temporary.write_bytes(result.data)
            self._add_line(record)
        except StorageError as error:
            raise self._not_put(error) from None
        except OSError as error:
            raise self._cannot_write(result.file_name, error) from None

    def settle(self) -> None:
        """All that this start makes has been written: a shard that is open is closed, what is on its way arrives.

        Raises:
            OutputError: it cannot be; the next start does it.
        """
        if self._shards is not None:
            try:
                with self.in_use:
                    self._shards.settle()
            except OSError as error:
                raise self._cannot_write("a shard", error) from None
        self.flush()

    def _cannot_write(self, what: str, error: OSError) -> OutputError:
        return OutputError(
            f"Writing {what} to {self.folder.path} failed: {error.strerror or error}. Everything written before is valid; make "
            "room or restore the folder and start the same command again."
        )

    def _make_folder(self, path: Path) -> None:
        """A folder of images, once."""
        if path != self.folder.path and path not in self._image_folders:
            ownership.make_folder(path)
            self._image_folders.add(path)

    def _add_line(self, record: Record) -> None:
        """To the open segment; a full one is closed first. Of results in an object store several threads do so."""
        with self._adding:
            self._add_line_alone(record)
            if self.far is not None:
                self.far.note_line(self.ledger_path.name, record)

    def _add_failure(self, record: Record) -> None:
        assert self._failures is not None, "open() comes first"
        append_line(self._failures, record)
        if self.far is not None:
            self.far.note_line(self.failures_path.name, record)

    def _add_line_alone(self, record: Record) -> None:
        assert self._ledger is not None, "open() comes first"
        if self._num_open >= segments.SEGMENT_LINES:
            if self._shards is not None:
                self._sync_lines()
            self._ledger.close()
            closed = LedgerFile(segments.close(self.ledger_path, self.folder.path, self.part.ledger_suffix))
            self._ledger = open_for_appending(self.ledger_path)
            self._num_open = 0
            with contextlib.suppress(OSError):  # a help for the next start
                FileIndex.of_lines(closed).keep(kept_at(closed.path.parent, closed))
        append_line(self._ledger, record)
        self._num_open += 1

    def flush(self) -> None:
        """Wait until all that was written is where it is to stay: at once on a disk, on its way to an object store.

        Raises:
            OutputError: it does not get there.
        """
        if self.far is None or not self.has_begun:
            return
        try:
            self.far.flush()
        except OSError as error:
            raise self._not_put(error) from None

    def _not_put(self, error: OSError) -> OutputError:
        return OutputError(
            f"Writing to {self.folder.path} failed: {error.strerror or error}. Every image with a ledger line is whole there; "
            "see to the store and start the same command again."
        )

    def sync(self) -> None:
        """Of results in an object store: leave there all that this part's folder has, when no line is added any more.

        Raises:
            OSError: it cannot be put.
        """
        if self.far is not None:
            self.far.sync(has_ended=True)

    def copy_inputs(self, images: "Mapping[str, InputImage]") -> None:
        """Copy input images to these names, before the ledger line that names them.

        Raises:
            OutputError: the disk is full, the folder is gone, ...
        """
        for name, image in images.items():
            target = self.folder.path / name
            try:
                with self.in_use:
                    self._copy_input(image, target)
            except (OSError, ValueError) as error:
                raise OutputError(f"Copying the input image {image.name} to {target} failed: {error}.") from None

    def _copy_input(self, image: "InputImage", target: Path) -> None:
        ownership.make_folder(target.parent)
        if ownership.is_as_written(target, image.sha256):
            return
        if not ownership.is_empty(target):
            ownership.set_aside(self.folder, target)
        with self._replacing(target) as temporary:
            temporary.write_bytes(image.read())

    def write_run(self, run: Record) -> None:
        """Replace run.json. On a full disk there is room kept for it: it says why the run ended.

        Raises:
            OutputError: it cannot be written.
        """
        text = strict_json.dumps(run, indent=2) + "\n"
        try:
            try:
                self._replace_run(text)
            except OSError:
                self._give_reserve_back()
                self._replace_run(text)
            if self.far is not None:
                self.far.sync()
        except OSError as error:
            raise OutputError(f"Writing {self.run_path} failed: {error.strerror or error}.") from None

    def _give_reserve_back(self) -> None:
        if self._reserve is not None:
            ownership.remove([self._reserve])
            self._reserve = None

    def _replace_run(self, text: str) -> None:
        with self._replacing(self.run_path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _replacing(self, target: Path) -> contextlib.AbstractContextManager[Path]:
        """The temporary file is in the folder itself, where the next start finds what a killed run left."""
        return atomic_write(target, self.folder.path, self.part.ledger_suffix)

    # -- at the end -----------------------------------------------------------------------------------------------

    def join(self, tasks: Sequence[Task]) -> None:
        """Make one ledger of what ranks or nodes wrote, when none of them writes any more (see `resume.join`)."""
        if self.far is not None:
            own = self.part.ledger_suffix
            self.far.pull_ledgers(lambda suffix: suffix not in ("", own))
        self.is_published = resume.join(self.folder, self.part, tasks)
        if self.part.node and self.is_published:
            publish_all(self.folder, self.part)

    def put_in_order(self) -> None:
        """Put this writer's own ledger in the order of index, when the job has ended."""
        put_in_order(self.folder, self.part, self._failed)

    def is_joined(self) -> bool:
        """Return whether rank 0 has taken over this ledger: not where the ranks have a folder each."""
        return not self.ledger_path.exists() or (self.far is not None and self.part.is_beside)

    def close(self) -> None:
        """Unlock the folder. Closing twice does nothing."""
        if self._lock is None:
            return
        if self.part.is_beside:  # a thousand ranks would leave as many; rank 0's lock guards the folder
            ownership.remove([self.folder.lock_file(self.part.ledger_suffix)])
        if self._shards is not None:
            self._shards.abandon()
        for stream in (self._ledger, self._failures, self._lock):
            if stream is not None:
                with contextlib.suppress(OSError):  # a full disk was reported when the line was written
                    stream.close()
        self._ledger = self._failures = self._lock = None
        self._give_reserve_back()
        if ownership.is_empty(self.failures_path):
            ownership.remove([self.failures_path])
        if self.far is not None:
            self.far.close()
