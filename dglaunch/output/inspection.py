"""A folder of results compared with its ledgers, file by file: what `verify` prints and repairs, and `merge` insists on."""

import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import numpy as np

from dglaunch.atomic import temporary_path
from dglaunch.data.images import BadImage, damage_is_a_bad_image, open_image
from dglaunch.data.task import Record
from dglaunch.errors import OutputError
from dglaunch.output import ownership
from dglaunch.output.asked import asked_of
from dglaunch.output.far import REQUESTS, far_of
from dglaunch.output.file_index import Ints
from dglaunch.output.forks import in_forks
from dglaunch.output.images import StoredImage, image_of
from dglaunch.output.in_window import in_window
from dglaunch.output.ledger import FAILURES, RUN, OutputFolder, is_foreign_run, read_run
from dglaunch.output.ledger_index import Done, LedgerIndex
from dglaunch.output.lines import LedgerFile, LineKind, is_our_ledger, scan_places
from dglaunch.output.replaced import PendingRedo
from dglaunch.output.resume import bad_lines, rewrite
from dglaunch.output.shard_writer import drop
from dglaunch.output.shards import SHARDS, closed_path, closed_shards, has_own, index_of, open_shards

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
    wrong_in_shards: dict[str, set[str]] = field(default_factory=dict)
    """Of closed shards, the images that a repair takes out; none of them: the shard cannot be read, and is moved as a whole."""


def inspect(folder: OutputFolder) -> Inspection:
    """Compare every ledger line with its file, and every file with the lines; on all cores, where there are many."""
    index = LedgerIndex.read(folder)
    compared = index.compare()
    rows = index.last()
    found = Inspection(index, compared.done())
    _look_at_lines(index, rows, found)
    right = np.zeros(len(index), dtype=bool)
    named: dict[str, set[str]] = {}
    told: set[str] = set()
    for row, name, shard, problem in zip(
        rows.tolist(), index.names(rows), index.shards(rows), problems_with(index, rows)
    ):
        right[row] = problem is None
        if shard:
            named.setdefault(shard, set()).add(name)
        if problem is not None:
            if name not in told:
                found.problems.append(problem)
            told.add(name)
            (found.wrong_in_shards.setdefault(shard, set()) if shard else found.wrong_files).add(name)
            found.wrong_lines.setdefault(index.files[index.file[row]].ledger, set()).add(
                int(index.columns["start"][row])
            )
    found.right = compared.done(right)
    _look_at_runs(folder, found)
    for name in sorted(compared.unlisted):
        _report_unlisted(folder, name, found)
    if has_own(folder.path) or named:
        _look_at_shards(folder, named, found)
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


def _look_at_shards(folder: OutputFolder, named: Mapping[str, Collection[str]], found: Inspection) -> None:
    """A loader reads all that a shard holds, so each image in it has its line. (After a redo that was stopped some are there
    twice, until it has come to its end.)"""
    is_replacing = PendingRedo.read(folder) is not None
    for shard in closed_shards(folder.path):
        try:
            names = index_of(folder.path, shard).keys()
        except (OSError, ValueError) as error:
            found.problems.append(f"{SHARDS}/{shard} cannot be read: {error}")
            found.wrong_in_shards[shard] = set()
            continue
        unlisted = names - named.get(shard, set())
        if unlisted and not is_replacing:
            found.problems.append(f"{SHARDS}/{shard} has {len(unlisted):,} images without a ledger line")
            found.wrong_in_shards.setdefault(shard, set()).update(unlisted)
    for shard in open_shards(folder.path):
        found.notes.append(
            f"{SHARDS}/{shard} was being filled when its process died; the next start of the same command closes it"
        )


# -- file by file -------------------------------------------------------------------------------------------------


def problems_with(index: LedgerIndex, rows: Ints) -> Iterator[str | None]:
    """Yield what is wrong with the file of each row, in their order.

    Raises:
        OutputError: a process that looks at some was killed.
    """

    def of_part(first: int) -> list[str | None]:
        return _problems_of_part(index, rows[first : first + AT_A_TIME])

    parts = range(0, len(rows), AT_A_TIME)
    if far_of(index.folder.path) is not None:
        with ThreadPoolExecutor(REQUESTS) as pool:
            for found in in_window(pool, of_part, parts, 3 * REQUESTS):
                yield from found
        return
    try:
        for found in in_forks(of_part, parts, 1 if len(rows) < MOST_ALONE else os.cpu_count() or 1):
            yield from found
    except OSError as error:
        text = f"{index.folder.path} was not looked at to its end: {error.strerror or error}"
        raise OutputError(f"{text}. Start the same command again.") from None


def _problems_of_part(index: LedgerIndex, rows: Ints) -> list[str | None]:
    """What is wrong with the files of some rows; in a process of its own, where there are many."""
    said = dict(index.records(rows))
    return [
        _problem_with(index.folder.path, said[row])
        if row in said
        else f"{index.files[index.file[row]].ledger.path} was changed meanwhile"
        for row in rows.tolist()
    ]


def _problem_with(folder: Path, record: Record) -> str | None:
    """What is wrong with the image of a ledger line."""
    image = image_of(folder, record)
    assert image is not None, "a line of ours has the name of an image"
    name = f"{image.name} in {SHARDS}/{image.shard}" if image.shard else image.name
    try:
        data = image.read()
    except FileNotFoundError:
        return f"{name} has a ledger line but {'is not there' if image.shard else 'no file'}"
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
    for shard, names in found.wrong_in_shards.items():
        try:
            _repair_shard(folder, shard, names)
        except OSError as error:
            text = f"Writing {folder.path / SHARDS / shard} anew failed: {error.strerror or error}."
            raise OutputError(f"{text} It is as it was.") from None
    if (far := far_of(folder.path)) is not None:
        try:
            far.sync(has_ended=True)
        except OSError as error:
            raise OutputError(f"Writing to {folder.path} failed: {error.strerror or error}. Start it again.") from None


def _repair_shard(folder: OutputFolder, shard: str, names: Collection[str]) -> None:
    """Write a shard without the images that are wrong, which are kept aside; one that cannot be read is moved there itself."""
    path = closed_path(folder.path, shard)
    if not path.exists():  # its lines are taken out
        return
    try:
        images = index_of(folder.path, shard)
    except (OSError, ValueError):
        images = {}
    if not images:
        ownership.set_aside(folder, path)
        return
    for name in sorted(images.keys() & names):
        temporary = temporary_path(folder.path)
        temporary.write_bytes(StoredImage(folder.path, name, shard).read())
        ownership.set_aside(folder, temporary, name)
    try:
        drop(folder, shard, names)
    except ValueError:  # what stands between its images is damaged, too
        ownership.set_aside(folder, path)


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
