"""Writing results: an image under a temporary name, then under its own, and only then its ledger line.

So a line means a whole file, whenever the process dies. One process writes to one ledger, and its writer is used by one
thread at a time.
"""

import contextlib
import hashlib
import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from dglaunch import strict_json
from dglaunch.atomic import atomic_write, temporary_path
from dglaunch.data.task import INPUT_FIELDS, SAMPLING, Record, Result, Task, file_name
from dglaunch.errors import OutputError, UserError
from dglaunch.files import open_for_appending
from dglaunch.output import ownership, resume
from dglaunch.output.far import far_of
from dglaunch.output.ledger import FAILURES, METADATA, RUN, FileKind, OutputFolder, Part, read_run
from dglaunch.output.lines import TaskId, append_line
from dglaunch.output.ordering import put_in_order
from dglaunch.output.replaced import PendingRedo, Replacing
from dglaunch.storage.errors import StorageError

if TYPE_CHECKING:
    from dglaunch.data.images import InputImage

CONTENT = (
    "prompt", *SAMPLING, "input_sha256", "mask_sha256", "control_sha256", *INPUT_FIELDS, "lora_sha256",
)  # fmt: skip
"""Of a task or a ledger line: what decides the image."""
RESERVED = 1 << 16
"""Bytes of the disk kept for the last run.json."""


class Writer:
    """The writer puts the results of one process into an output folder.

    Args:
        path: --output_dir.
        node: the part of a machine among nodes without a rendezvous ("-node0of4").
        rank: the part of a rank that writes beside rank 0 ("-rank3of8").
    """

    def __init__(self, path: Path, node: str = "", rank: str = "") -> None:
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
        self._replacing_images: Replacing | None = None
        """Of a redo: what keeps the images that are there already."""
        self._pending: PendingRedo | None = None
        self._failed: set[TaskId] = set()
        """What has failed in this start."""
        self._model: object = None
        self._reserve: Path | None = None
        self._ledger: io.FileIO | None = None
        self._failures: io.FileIO | None = None
        self._lock: BinaryIO | None = None
        self._adding = threading.Lock()

    # -- before the run -------------------------------------------------------------------------------------------

    def open(
        self, settings: Record, tasks: Sequence[Task], output_format: str, overwrite: bool, is_partial: bool = False
    ) -> resume.Progress:
        """Lock the folder, refuse what does not fit, and return what is done. Nothing is changed yet.

        Args:
            is_partial: the tasks are some of the job's.

        Raises:
            UserError: the folder cannot be written, is in use, holds another job's results, or files of the user's that
                would be replaced.
        """
        self._lock_folder()
        if self.far is not None:
            with self._refusing():
                self.far.pull()
        found = resume.read_progress(self.folder, self.part)
        progress = resume.Progress() if overwrite else found
        resume.refuse_other_job(self.folder, progress, settings, tasks, output_format, is_partial)
        self._model = settings.get("model_name")
        missing = [task for task in tasks if task.id not in progress.done]
        ownership.refuse_foreign_files(
            self.folder, {file_name(task, output_format): self._identity(task.id, task.content()) for task in missing}
        )
        return progress

    def _identity(self, task_id: TaskId, content: Record) -> ownership.Identity:
        """What the file of this image says of itself, as far as it is known; `content` may be a ledger line."""
        known = {name: content[name] for name in CONTENT if content.get(name) is not None}
        return {"index": task_id[0], "sample": task_id[1], "model": self._model, **known}

    def _lock_folder(self) -> None:
        with self._refusing():
            self._lock = self.folder.lock(self.part)

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
            if self.far is not None:
                self.far.sync(has_ended=True)
        self.has_begun = True

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
        assert self._ledger is not None and self._failures is not None, "open() comes first"
        try:
            if result.data is None:
                self._failed.add(result.task_id)
                self._add_line(FAILURES, result.record)
                return
            if self.far is not None:
                line = {"file_name": result.file_name, **result.record, "bytes": len(result.data)}
                self.far.put_image(result.file_name, result.data, lambda: self._add_line(METADATA, line))
                return
            replaced = self._replacing_images
            if replaced is None or not replaced.keep(result.task_id, result.file_name):
                ownership.make_way(self.folder, result.file_name, self._identity(result.task_id, result.record))
            with self._replacing(self.folder.path / result.file_name) as temporary:
                temporary.write_bytes(result.data)
            self._add_line(METADATA, {"file_name": result.file_name, **result.record, "bytes": len(result.data)})
        except StorageError as error:
            raise self._not_put(error) from None
        except OSError as error:
            raise OutputError(
                f"Writing {result.file_name} to {self.folder.path} failed: {error.strerror or error}. Everything written "
                "before is valid; make room or restore the folder and start the same command again."
            ) from None

    def _add_line(self, kind: FileKind, record: Record) -> None:
        """Add a line to a ledger of this part; of results in an object store several threads do so."""
        stream, path = (self._ledger, self.ledger_path) if kind is METADATA else (self._failures, self.failures_path)
        assert stream is not None, "begin() comes first"
        with self._adding:
            append_line(stream, record)
            if self.far is not None:
                self.far.note_line(path.name, (strict_json.dumps(record) + "\n").encode())

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
                ownership.make_folder(target.parent)
                if ownership.is_as_written(target, image.sha256):
                    continue
                if not ownership.is_empty(target):
                    ownership.set_aside(self.folder, target)
                with self._replacing(target) as temporary:
                    temporary.write_bytes(image.read())
            except (OSError, ValueError) as error:
                raise OutputError(f"Copying the input image {image.name} to {target} failed: {error}.") from None

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
        resume.join(self.folder, self.part, tasks)

    def put_in_order(self) -> None:
        """Put this writer's own ledger in the order of index, when the job has ended."""
        put_in_order(self.folder, self.part.ledger_suffix, self._failed)

    def is_joined(self) -> bool:
        """Return whether rank 0 has taken over this ledger: not where the ranks have a folder each."""
        return not self.ledger_path.exists() or (self.far is not None and self.part.is_beside)

    def close(self) -> None:
        """Unlock the folder. Closing twice does nothing."""
        if self._lock is None:
            return
        if self.part.is_beside:  # a thousand ranks would leave as many; rank 0's lock guards the folder
            ownership.remove([self.folder.lock_file(self.part.ledger_suffix)])
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
