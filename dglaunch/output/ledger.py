"""An output folder: the names of its files, the locks of the processes that write there, and how its ledgers are read.

    000000.png ...      metadata.jsonl (a line per finished image)      failures.jsonl      run.json

With `file_name` in each line the folder is a Hugging Face ImageFolder as it stands. Where several processes write, each
has files of its own, named by its part of the job: metadata-node0of4.jsonl with --num_nodes, metadata-rank3of8.jsonl with
--writer node or rank. They may share a folder or have one each, and every reader reads all ledgers of a folder
(`OutputFolder.ledgers`). That of a large job is in segments (output/segments.py), its images in folders 0000, 0001, ...
(output/image_folders.py).
"""

import contextlib
import fcntl
import fnmatch
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dglaunch import strict_json
from dglaunch.addresses import is_address, path_or_address
from dglaunch.atomic import TEMPORARY
from dglaunch.data.task import Record
from dglaunch.errors import UserError
from dglaunch.files import is_regular, open_for_appending, open_lock, open_regular, read_bytes
from dglaunch.models.shape import Shape
from dglaunch.output import segments
from dglaunch.output.far import far_of
from dglaunch.output.lines import (
    FAILURES_STEM,
    FOLDER,
    IMAGE_SUFFIXES,
    LedgerFile,
    TaskId,
    id_of,
    is_our_ledger,
    read_lines,
)

MOST_RUN = 1 << 26
"""Bytes of a run.json."""
_OWN = ".dglaunch"
_IMAGE_FOLDER = re.compile(FOLDER, re.ASCII)
_OUT_OF_MEMORY = f"{TEMPORARY}oom-"
_PARTS = re.compile(r"(-node\d+of\d+)?(-rank\d+of\d+)?")
_RANK = re.compile(r"-rank\d+of\d+")
_BATCH_JOB = f"{TEMPORARY}job-"
_BATCH_JOB_FILE = re.compile(re.escape(_BATCH_JOB) + r"[0-9a-f]{16}\.json")
_TEMPORARY = re.compile(re.escape(TEMPORARY) + r"\d+(-node\d+of\d+)?(-rank\d+of\d+)?-[0-9a-f]{16}\.tmp")


class FileKind(NamedTuple):
    """A file that each writing process has one of; the part of the job stands between the two halves of its name."""

    stem: str
    ending: str


METADATA = FileKind("metadata", ".jsonl")
"""The ledger: a line per finished image."""
_VIEW = "".join(METADATA)
FAILURES = FileKind(FAILURES_STEM, ".jsonl")
"""A line per image that could not be made."""
RUN = FileKind("run", ".json")
"""Settings, versions, counts and outcome of the last start."""


@dataclass(frozen=True, slots=True)
class Part:
    """Which part of a job a process writes, as the names of its files say it."""

    node: str = ""
    """"-node0of4" on a machine among nodes without a rendezvous."""
    rank: str = ""
    """"-rank3of8" on a rank that writes beside rank 0."""

    @property
    def ledger_suffix(self) -> str:
        return self.node + self.rank

    @property
    def is_beside(self) -> bool:
        """Whether rank 0 writes too, and takes over this part's ledger at the end or at the next start."""
        return bool(self.rank)

    def takes_over(self, ledger_suffix: str) -> bool:
        """Return whether what was left under this suffix is this part's to go on with: its own, and of rank 0 what ranks wrote
        beside it."""
        return ledger_suffix == self.ledger_suffix or (not self.is_beside and ledger_suffix.startswith(f"{self.node}-"))


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """The folder that --output_dir names. All file names, locks and reads of it go through this class."""

    path: Path

    # -- names ----------------------------------------------------------------------------------------------------

    def file(self, kind: FileKind, ledger_suffix: str = "") -> Path:
        """Return the path of one part's file: that of rank 0 in a job without independent nodes, if no part is given."""
        return self.path / f"{kind.stem}{ledger_suffix}{kind.ending}"

    def files(self, kind: FileKind, pattern: str = "*") -> list[Path]:
        """Return the files of this kind that exist, of all parts or of those that the pattern fits. What is merely called
        alike (metadata_val.jsonl, run_config.json) is the user's."""
        return [
            self.path / name
            for name in self._names(f"{kind.stem}{pattern}{kind.ending}")
            if _PARTS.fullmatch(name.removeprefix(kind.stem).removesuffix(kind.ending))
        ]

    def _names(self, pattern: str) -> list[str]:
        """The names in the folder that a pattern fits, in order: Path.glob takes ten times as long among 100,000."""
        try:
            return sorted(fnmatch.filter(os.listdir(self.path), pattern))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def image_folders(self) -> list[str]:
        """Return the names of the folders of images: those that are called so, are no links, and are not the output folder of
        a job of their own."""
        try:
            with os.scandir(self.path) as entries:
                names = [e.name for e in entries if _IMAGE_FOLDER.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted((name for name in names if not (self.path / name / "run.json").exists()), key=int)

    def ledgers(self) -> list[LedgerFile]:
        """Return all files of ledger lines, in the order in which they count: the public views of the folders of images, closed
        segments, and what is at the top, where lines are added."""
        return [*self._views(), *map(LedgerFile, segments.closed(self.path)), *map(LedgerFile, self.files(METADATA))]

    def _views(self) -> list[LedgerFile]:
        views = (LedgerFile(self.path / name / _VIEW, f"{name}/") for name in self.image_folders())
        return [view for view in views if is_regular(view.path)]

    def closed_ledgers(self, part: Part) -> list[LedgerFile]:
        """Return those of them that no line is added to any more and that `part` may repair: a rank or a node its own segments,
        a run as one world all."""

        def is_ours(suffix: str) -> bool:
            return suffix == part.ledger_suffix if part.is_beside else suffix.startswith(part.node)

        own = [LedgerFile(path) for path in segments.closed(self.path) if is_ours(segments.suffix_of(path))]
        return own if part.ledger_suffix else [*self._views(), *own]

    def files_beside(self, kind: FileKind, part: Part) -> list[Path]:
        """Return the files that `part` takes over at a start and at the end: what ranks wrote beside this rank 0. A run
        as one world also takes over what nodes without a rendezvous have left."""
        if part.is_beside:
            return []
        return self.files(kind, f"{part.node}-*")

    def lock_file(self, ledger_suffix: str = "") -> Path:
        return self.path / f"{_OWN}{ledger_suffix}.lock"

    def kept_prompts(self, ledger_suffix: str = "") -> Path:
        """Return where a part keeps the prompts that came out of a pipe."""
        return self.path / f"{_OWN}{ledger_suffix}.prompts"

    def all_kept_prompts(self) -> list[Path]:
        """Return what all parts keep of that kind."""
        found = [self.path / name for name in self._names(f"{_OWN}*.prompts")]
        return [path for path in found if _PARTS.fullmatch(path.name.removeprefix(_OWN).removesuffix(".prompts"))]

    def lock_files(self, pattern: str = "*") -> list[Path]:
        return [
            path
            for path in map(self.path.__truediv__, self._names(f"{_OWN}{pattern}.lock"))
            if _PARTS.fullmatch(path.name.removeprefix(_OWN).removesuffix(".lock")) and is_regular(path)
        ]

    def temporary_files(self, ledger_suffix: str = "") -> list[Path]:
        """Return what killed processes of this part (or, without one, of any part) left half written."""
        return [
            path
            for path in map(self.path.__truediv__, self._names(f"{TEMPORARY}[0-9]*.tmp"))
            if _TEMPORARY.fullmatch(path.name) and f"{ledger_suffix}-" in path.name and is_regular(path)
        ]

    def batch_job(self, token: str) -> Path:
        """Return where a batch job of an API is recorded (output/batch_jobs.py)."""
        return self.path / f"{_BATCH_JOB}{token}.json"

    def batch_jobs(self) -> list[Path]:
        """Return the records of batch jobs, of all that there are."""
        found = map(self.path.__truediv__, self._names(f"{_BATCH_JOB}*.json"))
        return [path for path in found if _BATCH_JOB_FILE.fullmatch(path.name) and is_regular(path)]

    def out_of_memory_notes(self) -> dict[Path, tuple[Shape, int]]:
        """Return the notes of earlier starts about batches that were too large: shape and size, by file. All that a note
        says is its name: a file with content is not one."""
        found: dict[Path, tuple[Shape, int]] = {}
        for path in map(self.path.__truediv__, self._names(f"{_OUT_OF_MEMORY}*.json")):
            text, _, size = path.stem.removeprefix(_OUT_OF_MEMORY).rpartition("-")
            shape = Shape.parse(text)
            is_empty = is_regular(path) and path.lstat().st_size == 0
            if re.fullmatch(r"[1-9]\d{0,5}", size) and shape is not None and is_empty:
                found[path] = shape, int(size)
        return found

    # -- reading --------------------------------------------------------------------------------------------------

    def records(self, kind: FileKind = METADATA) -> Iterator[Record]:
        """Yield the readable lines of all ledgers (or of all failures*.jsonl)."""
        ledgers = self.ledgers() if kind is METADATA else map(LedgerFile, self.files(kind))
        for path, inside in ledgers:
            for _, record in read_lines(path, inside):
                yield record

    def records_by_id(self, kind: FileKind = METADATA) -> dict[TaskId, Record]:
        """Return the readable lines by task; of several lines about one task the last one counts."""
        return {id_of(record): record for record in self.records(kind)}

    def all_runs(self, pattern: str = "*") -> dict[str, Record]:
        """Return every run*.json of dglaunch's that can be read, by its file's name."""
        found = ((path.name, read_run(path)) for path in self.files(RUN, pattern))
        return {name: run for name, run in found if run is not None}

    def regular_files(self) -> dict[str, os.stat_result]:
        """Return what the system says of each file of the folder and of its folders of images, by name; a link is none."""
        found: dict[str, os.stat_result] = {}
        for inside in ("", *(f"{name}/" for name in self.image_folders())):
            with os.scandir(self.path / inside) as entries:
                found |= {inside + e.name: e.stat() for e in entries if e.is_file(follow_symlinks=False)}
        return found

    def runs(self, node_rank: int | None = None) -> dict[str, Record]:
        """Return the run.json of each independent node by its file's name, or that of one node; that of a rank only where
        rank 0 has its folder elsewhere."""
        found = self.all_runs("*" if node_rank is None else f"-node{node_rank}of*")
        return {name: run for name, run in found.items() if _RANK.sub("", name) not in found.keys() - {name}}

    def num_tasks(self, default: int = 0, node_rank: int | None = None) -> int:
        """Return how many images the job has, finished or not, as its run.json (or that of one node) says."""
        totals = [run["num_tasks"] for run in self.runs(node_rank).values()]
        return max([total for total in totals if isinstance(total, int) and total >= 0], default=default)

    def input_table(self) -> tuple[Path, ...]:
        """Return the files of the table that the command of a run with input images named; none of any other."""
        for run in self.runs().values():
            config = object_at(run, "config")
            has_inputs = any(object_at(config, name).get("value") for name in ("image_column", "control_column"))
            given = object_at(config, "prompts_file" if has_inputs and "prompts_file" in config else "input").get(
                "value"
            )
            names = given if isinstance(given, list) else [given]
            if names and all(isinstance(name, str) for name in names):
                return tuple(map(Path, names))
        return ()

    def require_results(self) -> None:
        """Check that this is a folder that a run has written to.

        Raises:
            UserError: it is missing, or holds no results.
        """
        if is_address(str(self.path)) and far_of(self.path) is None:
            raise UserError(
                f"{path_or_address(self.path)} is in an object store, where status, verify, redo, merge, score and gallery look. "
                "Copy it to a folder on this machine for anything else."
            )
        if not self.path.is_dir():
            raise UserError(f"There is no folder {self.path}; name what --output_dir was.")
        if not self.all_runs() and not any(is_our_ledger(ledger.path) for ledger in self.ledgers()):
            raise UserError(f"{self.path} holds no results of dglaunch (no run.json, no metadata.jsonl that it wrote).")

    # -- locks ----------------------------------------------------------------------------------------------------

    def lock(self, part: Part) -> BinaryIO:
        """Create the folder and lock this part of it until the returned file is closed.

        Raises:
            UserError: another run holds the part, or one that this part would take over.
            OSError: the folder cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if (far := far_of(self.path)) is not None:
            others = [] if part.is_beside else [f"{part.node}-*", *([""] if part.node else [])]
            far.lock(part.ledger_suffix, others, self._in_use)
        with contextlib.ExitStack() as refused:
            stream = refused.enter_context(open_lock(self.lock_file(part.ledger_suffix)))
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._in_use() from None
            if not part.is_beside and far is None:
                self.refuse_other_writers(f"{part.node}-*")
                if part.node:
                    self.refuse_other_writers("")  # a run as one world takes over what nodes have left
            refused.pop_all()
        return stream

    def is_held(self, pattern: str = "*") -> bool:
        """Return whether a run writes to the folder, or to such parts of it, as far as this file system knows the locks of
        other machines."""
        if (far := far_of(self.path)) is not None:
            return far.leases.is_held(pattern)
        for path in self.lock_files(pattern):
            try:
                with open_regular(path) as stream:
                    fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except FileNotFoundError:
                continue
            except OSError:
                return True
        return False

    def refuse_other_writers(self, pattern: str = "*") -> None:
        """Check that no process of another run holds the folder, or such parts of it.

        Raises:
            UserError: one does.
        """
        if self.is_held(pattern):
            raise self._in_use()

    def _in_use(self, by: str = "") -> UserError:
        return UserError(
            f"Another dglaunch is writing to {self.path}{f' ({by})' if by else ''}. Wait for it, or choose another --output_dir (several "
            "nodes without a rendezvous: --node_rank and --num_nodes)."
        )

    @contextlib.contextmanager
    def keep_runs_out(self, changes: bool = False) -> Iterator[None]:
        """Hold the locks that a run would take, so that none starts inside the block.

        Args:
            changes: the block changes the folder: the lock is made where there is none (a copy has no dot-files).

        Raises:
            UserError: one is running, or the lock cannot be made.
        """
        with contextlib.ExitStack() as held:
            if (far := far_of(self.path)) is not None:
                if self.is_held():
                    raise self._is_being_written()
                if changes:
                    held.callback(far.close)
                    far.hold_all(self._in_use)
            try:
                if changes:
                    held.enter_context(open_lock(self.lock_file()))
                for path in self.lock_files():
                    stream = held.enter_context(open_regular(path))
                    fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._is_being_written() from None
            except OSError as error:
                where = f": {error.filename}" if error.filename else ""
                raise UserError(f"{self.path} cannot be locked ({error.strerror or error}{where}).") from None
            yield

    def _is_being_written(self) -> UserError:
        return UserError(f"A dglaunch is writing to {self.path}. Wait for it; dglaunch status shows how far it is.")

    # -- out of memory --------------------------------------------------------------------------------------------

    def note_out_of_memory(self, shape: Shape, batch_size: int) -> None:
        """Note a batch that was too large, from any rank, before the rank may be lost: the next start begins below it."""
        note = self.path / f"{_OUT_OF_MEMORY}{shape}-{batch_size}.json"
        with contextlib.suppress(OSError):  # the note is a help for the next start, not part of the result
            open_for_appending(note).close()
            if (far := far_of(self.path)) is not None:
                far.store.put(note.name, b"")

    def out_of_memory_limits(self) -> dict[Shape, int]:
        """Return the largest batch size that no earlier start was short of memory for, by shape."""
        limits: dict[Shape, int] = {}
        for shape, size in self.out_of_memory_notes().values():
            limit = max(size - 1, 1)
            limits[shape] = min(limits.get(shape, limit), limit)
        return limits


def is_foreign_run(path: Path) -> bool:
    """Return whether a file called as a run.json is somebody else's. One of ours may be torn, after a copy, or empty, where a
    machine lost power: it begins as ours do."""
    try:
        with open_regular(path) as data:
            begins = data.read(32)
    except OSError:
        return True
    return (
        bool(begins) and not begins.startswith((b'{\n  "num_tasks": ', b'{\n  "outcome": ')) and read_run(path) is None
    )


def read_run(path: Path) -> Record | None:
    """Return a run.json that dglaunch wrote, or None: it is torn, another's, not to be read, or just being replaced."""
    try:
        run = strict_json.loads(read_bytes(path, MOST_RUN))
    except (OSError, ValueError):
        return None
    if not isinstance(run, dict):
        return None
    return run if isinstance(run.get("outcome"), str) and type(run.get("num_tasks")) is int else None


def object_at(record: Record, name: str) -> Record:
    """Return a JSON object inside of another, or an empty one if there is something else."""
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def format_of(path: Path) -> str | None:
    """Return the --output_format that a file's suffix asks for, or None for another kind of file."""
    suffix = path.suffix.lower().replace(".jpeg", ".jpg")
    return suffix[1:] if suffix in IMAGE_SUFFIXES else None
