"""An output folder: the names of its files, the locks of the processes that write there, and how its ledgers are read.

    000000.png ...      metadata.jsonl (a line per finished image)      failures.jsonl      run.json

With `file_name` in each line the folder is a Hugging Face ImageFolder as it stands. Where several processes write, each
has files of its own, named by its part of the job: metadata-node0of4.jsonl with --num_nodes, metadata-rank3of8.jsonl with
--writer node or rank. They may share a folder or have one each, and every reader reads all ledgers of a folder.
"""

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from dglaunch.atomic import TEMPORARY
from dglaunch.data.task import Record
from dglaunch.errors import UserError
from dglaunch.models.shape import Shape

TaskId = tuple[int, int]
"""Index and sample of a task."""
IMAGE_SUFFIXES = (".png", ".jpg", ".webp")
"""Of the images that dglaunch writes: a dot and --output_format."""
_LOCK = ".dglaunch"
_RESERVE = f"{TEMPORARY}reserve"
_OUT_OF_MEMORY = f"{TEMPORARY}oom-"
_PARTS = re.compile(r"(-node\d+of\d+)?(-rank\d+of\d+)?")
_RANK = re.compile(r"-rank\d+of\d+")


class FileKind(NamedTuple):
    """A file that each writing process has one of; the part of the job stands between the two halves of its name."""

    stem: str
    ending: str


METADATA = FileKind("metadata", ".jsonl")
"""The ledger: a line per finished image."""
FAILURES = FileKind("failures", ".jsonl")
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


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """The folder that --output_dir names. All file names, locks and reads of it go through this class."""

    path: Path

    # -- names ----------------------------------------------------------------------------------------------------

    def file(self, kind: FileKind, ledger_suffix: str = "") -> Path:
        """Return the path of one part's file: that of rank 0 in a job without independent nodes, if no part is given."""
        return self.path / f"{kind.stem}{ledger_suffix}{kind.ending}"

    def files(self, kind: FileKind, pattern: str = "*") -> list[Path]:
        """Return the files of this kind that exist, of all parts or of those that the pattern fits."""
        return sorted(self.path.glob(f"{kind.stem}{pattern}{kind.ending}"))

    def files_beside(self, kind: FileKind, part: Part) -> list[Path]:
        """Return the files that `part` takes over at a start and at the end: what ranks wrote beside this rank 0. A run
        as one world also takes over what nodes without a rendezvous have left."""
        if part.is_beside:
            return []
        return [
            path
            for path in self.files(kind, f"{part.node}-*")
            if _PARTS.fullmatch(path.name.removeprefix(kind.stem).removesuffix(kind.ending))
        ]

    def lock_file(self, ledger_suffix: str = "") -> Path:
        return self.path / f"{_LOCK}{ledger_suffix}.lock"

    def lock_files(self, pattern: str = "*") -> list[Path]:
        return sorted(self.path.glob(f"{_LOCK}{pattern}.lock"))

    def reserve_file(self, ledger_suffix: str = "") -> Path:
        """Return the file that keeps room on the disk for the last run.json."""
        return self.path / f"{_RESERVE}{ledger_suffix}"

    def temporary_files(self, ledger_suffix: str = "") -> list[Path]:
        """Return what killed processes of this part (or, without one, of any part) left half written."""
        return [path for path in self.path.glob(f"{TEMPORARY}[0-9]*") if f"{ledger_suffix}-" in path.name]

    def out_of_memory_notes(self) -> list[Path]:
        return sorted(self.path.glob(f"{_OUT_OF_MEMORY}*.json"))

    # -- reading --------------------------------------------------------------------------------------------------

    def records(self, kind: FileKind = METADATA) -> Iterator[Record]:
        """Yield the readable lines of all ledgers (or of all failures*.jsonl)."""
        for path in self.files(kind):
            for _, record in read_lines(path):
                yield record

    def records_by_id(self, kind: FileKind = METADATA) -> dict[TaskId, Record]:
        """Return the readable lines by task; of several lines about one task the last one counts."""
        return {id_of(record): record for record in self.records(kind)}

    def all_runs(self, pattern: str = "*") -> dict[str, Record]:
        """Return every run*.json that can be read, by its file's name."""
        found: dict[str, Record] = {}
        for path in self.files(RUN, pattern):
            with contextlib.suppress(OSError, ValueError):  # another version's, or being replaced
                run = json.loads(path.read_text(encoding="utf-8"))
                if isinstance(run, dict):
                    found[path.name] = run
        return found

    def runs(self, node_rank: int | None = None) -> dict[str, Record]:
        """Return the run.json of each independent node by its file's name, or that of one node; that of a rank only where
        rank 0 has its folder elsewhere."""
        found = self.all_runs("*" if node_rank is None else f"-node{node_rank}of*")
        return {name: run for name, run in found.items() if _RANK.sub("", name) not in found.keys() - {name}}

    def num_tasks(self, default: int = 0, node_rank: int | None = None) -> int:
        """Return how many images the job has, finished or not, as its run.json (or that of one node) says."""
        totals = [total for run in self.runs(node_rank).values() if isinstance(total := run.get("num_tasks", 0), int)]
        return max(totals, default=default)

    def input_table(self) -> Path | None:
        """Return the table that the command of an editing run named."""
        for run in self.runs().values():
            given = object_at(object_at(run, "config"), "input").get("value")
            if isinstance(given, str):
                return Path(given)
        return None

    def require_results(self) -> None:
        """Check that this is a folder that a run has written to.

        Raises:
            UserError: it is missing, or holds no results.
        """
        if not self.path.is_dir():
            raise UserError(f"There is no folder {self.path}; name what --output_dir was.")
        if not self.files(RUN) and not self.files(METADATA):
            raise UserError(f"{self.path} holds no results of dglaunch (no run.json, no metadata.jsonl).")

    # -- locks ----------------------------------------------------------------------------------------------------

    def lock(self, part: Part) -> IO[str]:
        """Create the folder and lock this part of it until the returned file is closed.

        Raises:
            UserError: another run holds the part, or one that this part would take over.
            OSError: the folder cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as refused:
            stream = refused.enter_context(self.lock_file(part.ledger_suffix).open("w"))
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._in_use() from None
            if not part.is_beside:
                self.refuse_other_writers(f"{part.node}-*")
                if part.node:
                    self.refuse_other_writers("")  # a run as one world takes over what nodes have left
            refused.pop_all()
        return stream

    def is_held(self, pattern: str = "*") -> bool:
        """Return whether a run writes to the folder, or to such parts of it, as far as this file system knows the locks of
        other machines."""
        for path in self.lock_files(pattern):
            try:
                with path.open("r") as stream:
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

    def _in_use(self) -> UserError:
        return UserError(
            f"Another dglaunch is writing to {self.path}. Wait for it, or choose another --output_dir (several "
            "nodes without a rendezvous: --node_rank and --num_nodes)."
        )

    @contextlib.contextmanager
    def keep_runs_out(self) -> Iterator[None]:
        """Hold the locks that a run would take, so that none starts inside the block.

        Raises:
            UserError: one is running.
        """
        with contextlib.ExitStack() as held:
            for path in self.lock_files():
                stream = held.enter_context(path.open("r"))
                try:
                    fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:
                    raise UserError(
                        f"A dglaunch is writing to {self.path}. Wait for it; dglaunch status shows how far it is."
                    ) from None
            yield

    # -- out of memory --------------------------------------------------------------------------------------------

    def note_out_of_memory(self, shape: Shape, batch_size: int) -> None:
        """Note a batch that was too large, from any rank, before the rank may be lost: the next start begins below it."""
        note = self.path / f"{_OUT_OF_MEMORY}{shape}-{batch_size}.json"
        with contextlib.suppress(OSError):  # the note is a help for the next start, not part of the result
            note.write_text("{}\n")

    def out_of_memory_limits(self) -> dict[Shape, int]:
        """Return the largest batch size that no earlier start was short of memory for, by shape."""
        limits: dict[Shape, int] = {}
        for path in self.out_of_memory_notes():
            text, _, size = path.stem.removeprefix(_OUT_OF_MEMORY).rpartition("-")
            if size.isdecimal() and (shape := Shape.parse(text)) is not None:
                limit = max(int(size) - 1, 1)
                limits[shape] = min(limits.get(shape, limit), limit)
        return limits


# -- lines --------------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield the readable lines of a ledger as text and parsed; a torn or foreign line is passed over."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for text in lines:
            try:
                record = json.loads(text)
                has_id = all(type(record[name]) is int for name in ("index", "sample"))
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            if has_id and isinstance(record.get("file_name", ""), str):
                yield (text if text.endswith("\n") else text + "\n"), record


def id_of(record: Record) -> TaskId:
    index, sample = record["index"], record["sample"]
    assert isinstance(index, int) and isinstance(sample, int), "read_lines passes over lines without them"
    return index, sample


def file_name_of(record: Record) -> str:
    """Return the image's name in the folder; empty for a failure."""
    return str(record.get("file_name", ""))


def object_at(record: Record, name: str) -> Record:
    """Return a JSON object inside of another, or an empty one if there is something else."""
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def count_lines(path: Path) -> int:
    """Return the number of lines of a file, a last one without a newline too."""
    with path.open("rb") as data:
        newlines = sum(chunk.count(b"\n") for chunk in iter(lambda: data.read(1 << 20), b""))
    return newlines if ends_with_newline(path) else newlines + 1


def ends_with_newline(path: Path) -> bool:
    """Return whether the last line of a file is whole; an empty file has none that is not."""
    with path.open("rb") as data:
        if data.seek(0, os.SEEK_END) == 0:
            return True
        data.seek(-1, os.SEEK_END)
        return data.read(1) == b"\n"


def format_of(path: Path) -> str | None:
    """Return the --output_format that a file's suffix asks for, or None for another kind of file."""
    suffix = path.suffix.lower().replace(".jpeg", ".jpg")
    return suffix[1:] if suffix in IMAGE_SUFFIXES else None
