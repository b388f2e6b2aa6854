"""The output folder: images, the ledger, failures, and what is left to do. One process writes to one ledger.

    000000.png ...      metadata.jsonl (a line per finished image)      failures.jsonl      run.json

An image is written to a temporary name, moved to its own with `os.replace`, and only then gets its ledger line. So a
line means a whole file, whenever the process dies; an image without a line is made again. A ledger line's `bytes` is
the file's size, which finds empty and truncated files on the next start. With `file_name` in each line the folder is a
Hugging Face ImageFolder as it stands.

Where several processes write, each has a ledger of its own, named by its part of the work, so that they may share a
folder or have one each: metadata-node0of4.jsonl with --num_nodes, metadata-rank3of8.jsonl with --writer node or rank.
Every start reads all ledgers of its folder. Rank 0 joins those of ranks to one at the start, whichever ranks wrote
before, and at the end; of several nodes without a rendezvous, the one that finds everything done joins theirs.
"""

import contextlib
import fcntl
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dglaunch.atomic import replacing
from dglaunch.data.task import Result, Task, file_name
from dglaunch.errors import OutputError, UserError
from dglaunch.output.ledger import (
    PART,
    TEMPORARY,
    Ledger,
    count_newlines,
    ends_with_newline,
    id_of,
    is_held,
    read_lines,
    read_runs,
)

if TYPE_CHECKING:
    from dglaunch.data.images import InputImage

OUT_OF_MEMORY = f"{TEMPORARY}oom-"
SAVED_INPUT = re.compile(r"inputs/\d+_\d+\.\w+")
RESERVED = 1 << 16
"""Bytes of the disk kept for the last run.json."""
SAMPLE = 5
"""Differences that an error shows."""


class Writer:
    """Writes one process's results; used by one thread at a time.

    `node` is the part of a machine among nodes without a rendezvous ("-node0of4"), `rank` that of a rank that writes
    beside rank 0 ("-rank3of8").
    """

    def __init__(self, folder: Path, node: str = "", rank: str = "") -> None:
        self.folder = folder
        self.node = node
        self.beside = bool(rank)
        self.suffix = node + rank
        self.ledger_path = folder / f"metadata{self.suffix}.jsonl"
        self.failures_path = folder / f"failures{self.suffix}.jsonl"
        self.run_path = folder / f"run{self.suffix}.json"
        self._reserve = folder / f"{TEMPORARY}reserve{self.suffix}"
        self._ledger: io.FileIO | None = None
        self._failures: io.FileIO | None = None
        self._lock: IO[str] | None = None

    # -- before the run -------------------------------------------------------------------------------------------

    def open(self, settings: dict[str, Any], tasks: Sequence[Task], output_format: str, overwrite: bool) -> Ledger:
        """Take the folder, repair what a killed run left, and tell what is done.

        Raises:
            UserError: the folder cannot be written, is in use, or holds another job's results.
        """
        self._take_folder()
        if overwrite:
            self.start_anew()
        ledger = self.read_ledger()
        self._refuse_other_job(ledger, settings, tasks, output_format)
        for leftover in self.folder.glob(f"{TEMPORARY}[0-9]*"):
            if f"{self.suffix}-" in leftover.name:
                leftover.unlink(missing_ok=True)
        self._settle(ledger, tasks)
        self._ledger = self.ledger_path.open("ab", buffering=0)
        self._failures = self.failures_path.open("ab", buffering=0)
        return ledger

    def _take_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / f"{TEMPORARY[:-1]}{self.suffix}.lock").open("w")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._lock = lock
            if not self.beside:
                self.refuse_other_writers(f"{self.node}-*")
                if self.node:
                    self.refuse_other_writers("")  # a run as one world takes over what nodes have left
                for left in self.folder.glob(f"{TEMPORARY[:-1]}{self.node}-*.lock"):
                    left.unlink(missing_ok=True)
                self._reserve.write_bytes(bytes(RESERVED))
        except BlockingIOError:
            raise self._in_use() from None
        except OSError as error:
            raise UserError(
                f"--output_dir {self.folder} cannot be written: {error.strerror or error}. Choose another folder or "
                "correct its permissions."
            ) from None

    def refuse_other_writers(self, parts: str = "*") -> None:
        """Look whether a process of another run holds the folder, or such parts of it.

        Raises:
            UserError: one does.
        """
        if is_held(self.folder, parts):
            raise self._in_use()

    def _in_use(self) -> UserError:
        return UserError(
            f"Another dglaunch is writing to {self.folder}. Wait for it, or choose another --output_dir (several "
            "nodes without a rendezvous: --node_rank and --num_nodes)."
        )

    def start_anew(self) -> None:
        """Remove what dglaunch wrote here, and nothing else."""
        for path in self._ledgers():
            for _, line in read_lines(path):
                name = line.get("file_name", "")
                if name and Path(name).name == name:
                    (self.folder / name).unlink(missing_ok=True)
                for copy in line.get("input_file_names", ()):
                    if SAVED_INPUT.fullmatch(copy):
                        (self.folder / copy).unlink(missing_ok=True)
        for pattern in ("metadata*.jsonl", "failures*.jsonl", "run*.json", f"{OUT_OF_MEMORY}*.json"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    def _ledgers(self) -> list[Path]:
        return sorted(self.folder.glob("metadata*.jsonl"))

    def read_ledger(self) -> Ledger:
        """All ledgers of the folder, checked against the files that are there."""
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(self.folder) if entry.is_file()}
        ledger = Ledger(sizes=sizes)
        own = {self.ledger_path, *self._parts("metadata", ".jsonl")}
        for path in self._ledgers():
            seen: set[tuple[int, int]] = set()
            lines = bad = 0
            for _, line in read_lines(path):
                lines += 1
                if ledger.is_good(line) and id_of(line) not in seen:
                    seen.add(id_of(line))
                    ledger.done[id_of(line)] = line.get("key", ""), line["file_name"]
                else:
                    bad += 1
            if path in own:
                ledger.damaged += bad + (count_newlines(path) != lines or not ends_with_newline(path))
        return ledger

    def _parts(self, kind: str, ending: str) -> list[Path]:
        """For rank 0: what ranks wrote beside it. A start as one world also takes over what nodes without a rendezvous
        have left."""
        if self.beside:
            return []
        found = []
        for path in sorted(self.folder.glob(f"{kind}{self.node}-*{ending}")):
            if PART.fullmatch(path.name.removeprefix(kind).removesuffix(ending)):
                found.append(path)
        return found

    def _settle(self, ledger: Ledger, tasks: Sequence[Task]) -> None:
        """Leave one ledger of good lines, and one of the failures that are still open, in the place of all own ones.

        The parts go last: a start that is killed here finds each line once or twice, never not at all."""
        ledgers, failures = self._parts("metadata", ".jsonl"), self._parts("failures", ".jsonl")
        if ledger.damaged or ledgers:
            self._rewrite(self.ledger_path, self._good_lines([self.ledger_path, *ledgers], ledger))
        if failures or self.failures_path.exists():
            wanted = {task.id for task in tasks} - ledger.done.keys()
            lines = (pair for path in (self.failures_path, *failures) for pair in read_lines(path))
            self._rewrite(self.failures_path, {id_of(line): t for t, line in lines if id_of(line) in wanted}.values())
        for path in (*ledgers, *failures, *self._parts("run", ".json")):
            path.unlink(missing_ok=True)

    def _good_lines(self, paths: Sequence[Path], ledger: Ledger) -> Iterator[str]:
        left = set(ledger.done)
        for path in paths:
            for text, line in read_lines(path):
                if id_of(line) in left and ledger.is_good(line):
                    left.remove(id_of(line))
                    yield text

    def _refuse_other_job(
        self, ledger: Ledger, settings: dict[str, Any], tasks: Sequence[Task], output_format: str
    ) -> None:
        """An unfinished job may go on only as the job it was."""
        changes = self._changed_settings(settings) if ledger.done else []
        by_id = {task.id: task for task in tasks} if ledger.done else {}
        missing = [name for task_id, (_, name) in ledger.done.items() if task_id not in by_id]
        changed = {
            task_id: task
            for task_id, (key, name) in ledger.done.items()
            if (task := by_id.get(task_id)) is not None
            and (key != task.key or name != file_name(task, output_format))
            # An input image that is gone by now does not undo its result.
            and task.error is None
        }
        if changed:
            lines = {
                id_of(line): line for path in self._ledgers() for _, line in read_lines(path) if id_of(line) in changed
            }
            changes += [
                c for task_id, task in changed.items() for c in _changed_fields(lines[task_id], task, output_format)
            ]
        if missing:
            shown = ", ".join(missing[:SAMPLE])
            changes.append(f"{len(missing):,} images made there have no row any more ({shown})")
        if changes:
            shown = "\n".join(f"  {change}" for change in changes[:SAMPLE])
            more = f"\n  ... and {len(changes) - SAMPLE:,} more" if len(changes) > SAMPLE else ""
            raise UserError(
                f"{self.folder} holds the results of another job. Choose another --output_dir, or --overwrite to remove "
                f"them and start anew. What changed:\n{shown}{more}"
            )
        if not ledger.done and not any(self.folder.glob("run*.json")):
            present = {entry.name for entry in os.scandir(self.folder)}
            foreign = [name for task in tasks if (name := file_name(task, output_format)) in present]
            if foreign:
                raise UserError(
                    f"{self.folder} has files that dglaunch did not make and would overwrite ({', '.join(foreign[:SAMPLE])}). "
                    "Choose another --output_dir, or move them away."
                )

    def _changed_settings(self, settings: dict[str, Any]) -> list[str]:
        for run in read_runs(self.folder).values():
            before = run.get("settings")
            if not isinstance(before, dict):
                continue
            names = sorted(before.keys() | settings.keys())
            changed = [
                f"{n}: {before.get(n)!r} -> {settings.get(n)!r}" for n in names if before.get(n) != settings.get(n)
            ]
            if changed:
                return changed
        return []

    def _rewrite(self, path: Path, lines: Iterable[str]) -> None:
        temporary = path.with_name(f"{TEMPORARY}{path.name}{self.suffix}")
        with replacing(path, temporary), temporary.open("w", encoding="utf-8") as out:
            out.writelines(lines)

    # -- during the run -------------------------------------------------------------------------------------------

    def write(self, result: Result) -> None:
        """One image and its ledger line, or one line of failures.jsonl.

        Raises:
            OutputError: the disk is full, the folder is gone, ...
        """
        assert self._ledger is not None and self._failures is not None, "open() comes first"
        try:
            if result.data is None:
                self._append(self._failures, result.record)
                return
            temporary = self.folder / f"{TEMPORARY}{os.getpid()}{self.suffix}-{result.file_name}.tmp"
            with replacing(self.folder / result.file_name, temporary):
                temporary.write_bytes(result.data)
            self._append(self._ledger, {"file_name": result.file_name, **result.record, "bytes": len(result.data)})
        except OSError as error:
            raise OutputError(
                f"Writing {result.file_name} to {self.folder} failed: {error.strerror or error}. Everything written "
                "before is valid; make room or restore the folder and start the same command again."
            ) from None

    def copy_inputs(self, images: "Mapping[str, InputImage]") -> None:
        """Copies of input images under these names, before the ledger line that names them.

        Raises:
            OutputError: the disk is full, the folder is gone, ...
        """
        for name, image in images.items():
            target = self.folder / name
            if target.exists() and target.stat().st_size:
                continue
            temporary = self.folder / f"{TEMPORARY}{os.getpid()}{self.suffix}-{target.name}"
            try:
                target.parent.mkdir(exist_ok=True)
                with replacing(target, temporary):
                    temporary.write_bytes(image.read())
            except (OSError, ValueError) as error:
                raise OutputError(f"Copying the input image {image.name} to {target} failed: {error}.") from None

    @staticmethod
    def _append(stream: io.FileIO, line: dict[str, Any]) -> None:
        """Add one whole line; a half-written one is taken back, so that the file stays valid on a full disk.

        The stream has no buffer: one would keep the rest of the line and write it later, behind the cut."""
        end = stream.seek(0, os.SEEK_END)
        left = memoryview(_dump(line).encode())
        try:
            while left:
                left = left[stream.write(left) :]
        except OSError:
            os.ftruncate(stream.fileno(), end)
            raise

    def write_run(self, run: dict[str, Any]) -> None:
        """Replace run.json. On a full disk there is room kept for it: it says why the run ended."""
        text = json.dumps(run, indent=2, ensure_ascii=False) + "\n"
        try:
            try:
                self._replace_run(text)
            except OSError:
                self._reserve.unlink(missing_ok=True)
                self._replace_run(text)
        except OSError as error:
            raise OutputError(f"Writing {self.run_path} failed: {error.strerror or error}.") from None

    def _replace_run(self, text: str) -> None:
        temporary = self.folder / f"{TEMPORARY}run{self.suffix}.json"
        with replacing(self.run_path, temporary):
            temporary.write_text(text, encoding="utf-8")

    def close(self) -> None:
        """Let the folder go. Closing twice does nothing."""
        if self._lock is None:
            return
        if self.beside:  # a thousand ranks would leave as many; rank 0's lock guards the folder
            Path(self._lock.name).unlink(missing_ok=True)
        for stream in (self._ledger, self._failures, self._lock):
            if stream is not None:
                with contextlib.suppress(OSError):  # a full disk was told when the line was written
                    stream.close()
        self._ledger = self._failures = self._lock = None
        self._reserve.unlink(missing_ok=True)
        if self.failures_path.exists() and not self.failures_path.stat().st_size:
            self.failures_path.unlink(missing_ok=True)

    def join(self, tasks: Sequence[Task]) -> None:
        """At the end, when nobody writes any more: one ledger of what ranks wrote beside rank 0 to the same folder.

        Of nodes without a rendezvous, the one that finds everything done writes metadata.jsonl in the order of the tasks.
        Any of them may: the result is the same, and it replaces the file in one step."""
        if self._parts("metadata", ".jsonl"):
            self._settle(self.read_ledger(), tasks)
        if not self.node:
            return
        ledger = self.read_ledger()
        if all(task.id in ledger.done for task in tasks):
            lines = (pair for path in self._ledgers() for pair in read_lines(path))
            texts = {id_of(line): text for text, line in lines if ledger.is_good(line)}
            self._rewrite(self.folder / "metadata.jsonl", (texts[task.id] for task in tasks))

    def is_joined(self) -> bool:
        """Whether rank 0 has taken over this ledger: not where the ranks have a folder each."""
        return not self.ledger_path.exists()


# -- out of memory, remembered ------------------------------------------------------------------------------------


def remember_out_of_memory(folder: Path, height: int, width: int, size: int) -> None:
    """Note a batch that was too large, from any rank, before the rank may be lost: the next start begins below it."""
    path = folder / f"{OUT_OF_MEMORY}{height}x{width}-{size}.json"
    with contextlib.suppress(OSError):  # the note is a help for the next start, not part of the result
        path.write_text("{}\n")


def out_of_memory_limits(folder: Path) -> dict[str, int]:
    """Largest batch that did not run out of memory, by "HxW"."""
    limits: dict[str, int] = {}
    for path in folder.glob(f"{OUT_OF_MEMORY}*.json"):
        shape, _, size = path.stem.removeprefix(OUT_OF_MEMORY).rpartition("-")
        if size.isdigit():
            limits[shape] = max(min(limits.get(shape, int(size) - 1), int(size) - 1), 1)
    return limits


# -- lines --------------------------------------------------------------------------------------------------------


def _dump(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False, default=str) + "\n"


def _changed_fields(line: dict[str, Any], task: Task, output_format: str) -> list[str]:
    given = {name: value for name, value in task.content().items() if value is not None}
    changed = [
        f"row {task.index}, {name}: {line.get(name)!r} -> {value!r}"
        for name, value in given.items()
        if line.get(name) != value
    ]
    name = file_name(task, output_format)
    if line["file_name"] != name:
        changed.append(f"row {task.index}, file name: {line['file_name']} -> {name}")
    return changed or [f"row {task.index}: a value that was given before is now left to its default"]
