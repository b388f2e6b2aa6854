"""A folder of results compared with its ledgers, file by file: what `verify` prints and repairs, and `merge` insists on."""

import hashlib
import os
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from dglaunch.data.images import BadImage, damage_is_a_bad_image, open_image
from dglaunch.data.task import Record
from dglaunch.errors import OutputError
from dglaunch.files import read_bytes
from dglaunch.output import ownership
from dglaunch.output.asked import asked_of
from dglaunch.output.file_index import Ints
from dglaunch.output.ledger import FAILURES, RUN, OutputFolder, is_foreign_run, read_run
from dglaunch.output.ledger_index import Done, LedgerIndex, Readers
from dglaunch.output.lines import LedgerFile, LineKind, file_name_of, is_our_ledger, record_at, scan_places
from dglaunch.output.replaced import PendingRedo
from dglaunch.output.resume import bad_lines, rewrite

SHOWN = 20
"""Gaps that a sentence names."""
AT_A_TIME = 500
"""Images that a process looks at together."""
MOST_ALONE = 4_000
"""Images of a folder that one process looks at: to start others takes as long."""


@dataclass(slots=True)
class Inspection:
    """What a folder says of itself, and what is wrong with it."""

    index: LedgerIndex
    """All that its ledgers say."""
    right: Done
    """The images whose file is as their line says."""
    wrong_lines: dict[LedgerFile, set[int]] = field(default_factory=dict)
    """Of each ledger that has lines which a repair takes out, where these begin; besides those that nobody can read."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is there besides, and is nobody's fault: pictures of the user's, lines of others."""
    wrong_files: set[str] = field(default_factory=set)
    """Files of dglaunch's that a repair moves aside."""


def inspect(folder: OutputFolder) -> Inspection:
    """Compare every ledger line with its file, and every file with the lines; on all cores, where there are many."""
    index = LedgerIndex.read(folder)
    compared = index.compare()
    rows = index.last()
    found = Inspection(index, compared.done())
    _look_at_lines(index, rows, found)
    right = np.zeros(len(index), dtype=bool)
    checked: dict[str, bool] = {}
    for row, name, problem in zip(rows.tolist(), index.names(rows), problems_with(index, rows)):
        right[row] = problem is None
        if problem is not None:
            if name not in checked:
                found.problems.append(problem)
            checked[name] = False
            found.wrong_files.add(name)
            found.wrong_lines.setdefault(index.files[index.file[row]].ledger, set()).add(
                int(index.columns["start"][row])
            )
    found.right = compared.done(right)
    _look_at_runs(folder, found)
    for name in sorted(compared.unlisted):
        _report_unlisted(folder, name, found)
    return found


def _look_at_lines(index: LedgerIndex, rows: Ints, found: Inspection) -> None:
    """What can be said of the ledgers without looking at a file."""
    counts = np.zeros(len(index), dtype=bool)
    counts[rows] = True
    for file in index.files:
        path, shown = file.ledger.path, file.ledger.inside + file.ledger.path.name
        if not is_our_ledger(path):
            found.notes.append(f"{shown} is not dglaunch's (left alone)")
            continue
        if file.num_foreign:
            found.notes.append(f"{shown}: {file.num_foreign} lines are not dglaunch's (left alone)")
        if num_bad := file.num_bad + file.num_too_long:
            found.problems.append(f"{shown}: {num_bad} lines cannot be read")
            found.wrong_lines.setdefault(file.ledger, set())
    for row in np.flatnonzero(~counts).tolist():
        better = index.same_as(row, rows)
        if index.file[row] == index.file[better]:
            file = index.files[index.file[row]]
            shown = file.ledger.inside + file.ledger.path.name
            found.problems.append(f"{shown}: {index.name(row)} has two lines")
            found.wrong_lines.setdefault(file.ledger, set()).add(int(index.columns["start"][row]))


def _look_at_runs(folder: OutputFolder, found: Inspection) -> None:
    for path in folder.files(RUN):
        if is_foreign_run(path):
            found.notes.append(f"{path.name} is not dglaunch's (left alone)")
        elif read_run(path) is None:
            found.problems.append(f"{path.name} cannot be read; how many images the job has is not known from it")
    if PendingRedo.read(folder) is not None:
        found.notes.append("a dglaunch redo was stopped before its end; the same command goes on with it")


def _report_unlisted(folder: OutputFolder, name: str, found: Inspection) -> None:
    described = ownership.own_text(folder.path / name)
    if described is not None and (described["index"], described["sample"]) not in found.right:  # else it is a copy
        found.problems.append(f"{name} has no ledger line")
        found.wrong_files.add(name)
    else:
        found.notes.append(f"{name} has no ledger line (left alone)")


# -- file by file -------------------------------------------------------------------------------------------------


def problems_with(index: LedgerIndex, rows: Ints) -> Iterator[str | None]:
    """Yield what is wrong with the file of each row, in their order."""
    parts = (index.part(rows[first : first + AT_A_TIME]) for first in range(0, len(rows), AT_A_TIME))
    if len(rows) < MOST_ALONE or (os.cpu_count() or 1) == 1:
        for part in parts:
            yield from _problems_of_part(index.folder.path, part)
        return
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        waiting: deque[Future[list[str | None]]] = deque()
        for part in parts:
            waiting.append(pool.submit(_problems_of_part, index.folder.path, part))
            if len(waiting) > 2 * (os.cpu_count() or 1):
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _problems_of_part(folder: Path, part: Sequence[tuple[LedgerFile, int]]) -> list[str | None]:
    """What is wrong with the files of some lines, which begin there; in a process of its own, where there are many."""
    with Readers() as readers:
        lines = ((ledger, record_at(ledger.path, readers.of(ledger), start, ledger.inside)) for ledger, start in part)
        return [
            _problem_with(folder, record) if record else f"{ledger.path} was changed meanwhile"
            for ledger, record in lines
        ]


def _problem_with(folder: Path, record: Record) -> str | None:
    """What is wrong with the file of a ledger line."""
    name = file_name_of(record)
    try:
        data = read_bytes(folder / name)
    except FileNotFoundError:
        return f"{name} has a ledger line but no file"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror or error}"
    if len(data) != record["bytes"]:
        return f"{name} has {len(data):,} bytes, the ledger says {record['bytes']}"
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        return f"{name} was changed: its sha256 is not the ledger's"
    return _decoding_problem(name, data)


def _decoding_problem(name: str, data: bytes) -> str | None:
    try:
        with damage_is_a_bad_image():
            open_image(data).load()
    except BadImage as error:
        return f"{name} does not decode: {error}"
    return None


def repair(folder: OutputFolder, found: Inspection) -> None:
    """Take wrong lines out, then move wrong files aside: a line must never stand without its file.

    Raises:
        OutputError: something cannot be written; the rest is as it was.
    """
    for ledger, starts in found.wrong_lines.items():
        path = ledger.path
        lines = scan_places(*ledger)
        if any(line.kind is LineKind.TOO_LONG for _, line in lines):
            continue  # what cannot be written again is not taken out
        try:
            ownership.keep_bad_lines(folder, path.name, bad_lines(path))
            rewrite(path, _lines_without(ledger, starts), folder=folder.path)
        except OSError as error:
            raise OutputError(f"Writing {path} failed: {error.strerror or error}. It is as it was.") from None
    for name in sorted(found.wrong_files):
        try:
            ownership.set_aside(folder, folder.path / name)
        except OSError as error:
            raise OutputError(f"Moving {folder.path / name} failed: {error.strerror or error}.") from None


def _lines_without(ledger: LedgerFile, starts: Collection[int]) -> Iterator[str]:
    for start, line in scan_places(*ledger):
        if line.kind is LineKind.FOREIGN or (line.kind is LineKind.OURS and start not in starts):
            yield line.text


def describe_missing(folder: OutputFolder, present: Done) -> str | None:
    """Return a sentence about the images that the job has and the folder does not, or None if it has all."""
    failed = {task_id for task_id in folder.records_by_id(FAILURES) if task_id not in present}
    asked = asked_of(folder, chain(present, failed))
    num_missing = asked.total - present.num_of(asked.named)
    if not num_missing:
        return None
    text = f"{num_missing:,} of {asked.total:,} images are missing"
    if names := list(islice(asked.named.names_without(present), SHOWN)):
        text += f" (index {', '.join(names)}{', ...' if num_missing > len(names) else ''})"
    num_failed = asked.named.num_of(failed)
    return text + (f"; {num_failed:,} of them failed, see failures.jsonl" if num_failed else "")
