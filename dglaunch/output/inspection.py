"""A folder of results compared with its ledgers, file by file: what `verify` prints and repairs, and `merge` insists on."""

import hashlib
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from dglaunch.data.task import Record
from dglaunch.errors import OutputError
from dglaunch.output import ownership
from dglaunch.output.ledger import (
    FAILURES,
    IMAGE_SUFFIXES,
    METADATA,
    OutputFolder,
    TaskId,
    count_lines,
    file_name_of,
    id_of,
    read_lines,
)
from dglaunch.output.resume import rewrite

SHOWN = 20
"""Gaps that a sentence names."""


@dataclass(slots=True)
class Inspection:
    """What a folder says of itself, and what is wrong with it."""

    records: dict[TaskId, Record] = field(default_factory=dict)
    """Good ledger lines."""
    kept_lines: dict[Path, list[str]] = field(default_factory=dict)
    """The good lines of each ledger that also has wrong ones."""
    problems: list[str] = field(default_factory=list)
    wrong_files: set[str] = field(default_factory=set)
    """Files of dglaunch's that a repair removes."""
    checked: dict[str, str | None] = field(default_factory=dict)
    """What is wrong with each file that was read, or None."""
    named: set[str] = field(default_factory=set)
    """All files that have a ledger line."""


def inspect(folder: OutputFolder) -> Inspection:
    """Compare every ledger line with its file, and every file with the lines."""
    found = Inspection()
    for path in folder.files(METADATA):
        _inspect_ledger(folder, path, found)
    for name in sorted(os.listdir(folder.path)):
        if name.endswith(IMAGE_SUFFIXES) and name not in found.named and not name.startswith("."):
            _report_unlisted(name, found)
    return found


def _inspect_ledger(folder: OutputFolder, path: Path, found: Inspection) -> None:
    kept: list[str] = []
    seen: set[TaskId] = set()
    num_lines = 0
    for text, record in read_lines(path):
        num_lines += 1
        found.named.add(file_name_of(record))
        if id_of(record) in seen:
            found.problems.append(f"{path.name}: {file_name_of(record)} has two lines")
            continue
        seen.add(id_of(record))
        if _has_good_file(folder, record, found):
            found.records[id_of(record)] = record
            kept.append(text)
    torn = count_lines(path) - num_lines
    if torn:
        found.problems.append(f"{path.name}: {torn} lines cannot be read")
    if torn or len(kept) < num_lines:
        found.kept_lines[path] = kept


def _has_good_file(folder: OutputFolder, record: Record, found: Inspection) -> bool:
    name = file_name_of(record)
    if name not in found.checked:
        problem = found.checked[name] = _problem_with(folder, record)
        if problem is not None:
            found.problems.append(problem)
            found.wrong_files.add(name)
    return found.checked[name] is None


def _report_unlisted(name: str, found: Inspection) -> None:
    if ownership.is_image_name(name):
        found.problems.append(f"{name} has no ledger line")
        found.wrong_files.add(name)
    else:
        found.problems.append(f"{name} has no ledger line (left alone)")


def _problem_with(folder: OutputFolder, record: Record) -> str | None:
    """What is wrong with the file of a ledger line."""
    name = file_name_of(record)
    if not ownership.is_plain_name(name):
        return f"index {record['index']}: {name!r} is no file name"
    try:
        data = (folder.path / name).read_bytes()
    except FileNotFoundError:
        return f"{name} has a ledger line but no file"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror or error}"
    if len(data) != record.get("bytes"):
        return f"{name} has {len(data):,} bytes, the ledger says {record.get('bytes')}"
    if hashlib.sha256(data).hexdigest() != record.get("sha256"):
        return f"{name} was changed: its sha256 is not the ledger's"
    return _decoding_problem(folder.path / name)


def _decoding_problem(path: Path) -> str | None:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, ValueError, SyntaxError) as error:  # all of these are what Pillow says of a broken file
        return f"{path.name} does not decode: {error}"
    return None


def repair(folder: OutputFolder, found: Inspection) -> None:
    """Remove wrong lines, then wrong files: a line must never stand without its file.

    Raises:
        OutputError: a ledger cannot be written.
    """
    for path, lines in found.kept_lines.items():
        try:
            rewrite(path, lines)
        except OSError as error:
            raise OutputError(f"Writing {path} failed: {error.strerror or error}. It is as it was.") from None
    ownership.remove_images(folder, found.wrong_files)


def describe_missing(folder: OutputFolder, present: Collection[TaskId]) -> str | None:
    """Return a sentence about the images that the job has and the folder does not, or None if it has all."""
    total = folder.num_tasks()
    if len(present) >= total:
        return None
    text = f"{total - len(present):,} of {total:,} images are missing"
    if all(index < total and sample == 0 for index, sample in present):
        gaps = sorted(set(range(total)) - {index for index, _ in present})
        text += f" (index {', '.join(map(str, gaps[:SHOWN]))}{', ...' if len(gaps) > SHOWN else ''})"
    num_failed = len(folder.records_by_id(FAILURES).keys() - set(present))
    return text + (f"; {num_failed:,} of them failed, see failures.jsonl" if num_failed else "")
