"""A folder of results compared with its ledgers, file by file: what `verify` prints and repairs, and `merge` insists on."""

import hashlib
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from dglaunch.data.images import BadImage, damage_is_a_bad_image, open_image
from dglaunch.data.task import Record
from dglaunch.errors import OutputError
from dglaunch.output import ownership
from dglaunch.output.asked import asked_of
from dglaunch.output.ledger import FAILURES, METADATA, RUN, OutputFolder, is_foreign_run, read_run
from dglaunch.output.lines import IMAGE_SUFFIXES, LineKind, TaskId, file_name_of, id_of, is_our_ledger, scan
from dglaunch.output.replaced import PendingRedo
from dglaunch.output.resume import bad_lines, rewrite

SHOWN = 20
"""Gaps that a sentence names."""
PICTURE_SUFFIXES = (*IMAGE_SUFFIXES, ".jpeg")


@dataclass(slots=True)
class Inspection:
    """What a folder says of itself, and what is wrong with it."""

    records: dict[TaskId, Record] = field(default_factory=dict)
    """Good ledger lines."""
    kept_lines: dict[Path, list[str]] = field(default_factory=dict)
    """The good lines of each ledger that also has wrong ones."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is there besides, and is nobody's fault: pictures of the user's, lines of others."""
    wrong_files: set[str] = field(default_factory=set)
    """Files of dglaunch's that a repair moves aside."""
    checked: dict[str, str | None] = field(default_factory=dict)
    """What is wrong with each file that was read, or None."""
    named: set[str] = field(default_factory=set)
    """All files that have a ledger line."""


def inspect(folder: OutputFolder) -> Inspection:
    """Compare every ledger line with its file, and every file with the lines."""
    found = Inspection()
    for path in folder.files(METADATA):
        if is_our_ledger(path):
            _inspect_ledger(folder, path, found)
        else:
            found.notes.append(f"{path.name} is not dglaunch's (left alone)")
    for path in folder.files(RUN):
        if is_foreign_run(path):
            found.notes.append(f"{path.name} is not dglaunch's (left alone)")
        elif read_run(path) is None:
            found.problems.append(f"{path.name} cannot be read; how many images the job has is not known from it")
    if PendingRedo.read(folder) is not None:
        found.notes.append("a dglaunch redo was stopped before its end; the same command goes on with it")
    for name in sorted(os.listdir(folder.path)):
        if name.lower().endswith(PICTURE_SUFFIXES) and name not in found.named and not name.startswith("."):
            _report_unlisted(folder, name, found)
    return found


def _inspect_ledger(folder: OutputFolder, path: Path, found: Inspection) -> None:
    kept: list[str] = []
    seen: set[TaskId] = set()
    bad = foreign = wrong = 0
    too_long = False
    for text, kind, record, _ in scan(path):
        bad += kind in (LineKind.BAD, LineKind.TOO_LONG)
        too_long = too_long or kind is LineKind.TOO_LONG
        foreign += kind is LineKind.FOREIGN
        if kind is LineKind.FOREIGN:
            kept.append(text)
        if kind is not LineKind.OURS:
            continue
        found.named.add(file_name_of(record))
        if id_of(record) in seen:
            found.problems.append(f"{path.name}: {file_name_of(record)} has two lines")
            wrong += 1
            continue
        seen.add(id_of(record))
        if _has_good_file(folder, record, found):
            found.records[id_of(record)] = record
            kept.append(text)
        else:
            wrong += 1
    if foreign:
        found.notes.append(f"{path.name}: {foreign} lines are not dglaunch's (left alone)")
    if bad:
        found.problems.append(f"{path.name}: {bad} lines cannot be read")
    if (bad or wrong) and not too_long:  # what cannot be written again is not taken out
        found.kept_lines[path] = kept


def _has_good_file(folder: OutputFolder, record: Record, found: Inspection) -> bool:
    name = file_name_of(record)
    if name not in found.checked:
        problem = found.checked[name] = _problem_with(folder, record)
        if problem is not None:
            found.problems.append(problem)
            found.wrong_files.add(name)
    return found.checked[name] is None


def _report_unlisted(folder: OutputFolder, name: str, found: Inspection) -> None:
    described = ownership.own_text(folder.path / name)
    if described is not None and (described["index"], described["sample"]) not in found.records:  # else it is a copy
        found.problems.append(f"{name} has no ledger line")
        found.wrong_files.add(name)
    else:
        found.notes.append(f"{name} has no ledger line (left alone)")


def _problem_with(folder: OutputFolder, record: Record) -> str | None:
    """What is wrong with the file of a ledger line."""
    name = file_name_of(record)
    try:
        data = folder.read_image(name)
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
    for path, lines in found.kept_lines.items():
        try:
            ownership.keep_bad_lines(folder, path.name, bad_lines(path))
            rewrite(path, lines)
        except OSError as error:
            raise OutputError(f"Writing {path} failed: {error.strerror or error}. It is as it was.") from None
    for name in sorted(found.wrong_files):
        try:
            ownership.set_aside(folder, folder.path / name)
        except OSError as error:
            raise OutputError(f"Moving {folder.path / name} failed: {error.strerror or error}.") from None


def describe_missing(folder: OutputFolder, present: Collection[TaskId]) -> str | None:
    """Return a sentence about the images that the job has and the folder does not, or None if it has all."""
    failed = folder.records_by_id(FAILURES).keys() - set(present)
    asked = asked_of(folder, [*present, *failed])
    num_missing = asked.num_missing(present)
    if not num_missing:
        return None
    text = f"{num_missing:,} of {asked.total:,} images are missing"
    if names := list(islice(asked.named.names_without(present), SHOWN)):
        text += f" (index {', '.join(names)}{', ...' if num_missing > len(names) else ''})"
    num_failed = asked.named.num_of(failed)
    return text + (f"; {num_failed:,} of them failed, see failures.jsonl" if num_failed else "")
