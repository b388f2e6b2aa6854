"""The lines of a ledger and of failures.jsonl: how one is read, which is dglaunch's own, and how one is added.

Anyone may have written such a file, so every line is looked at before it is used, and a bad one costs itself.
"""

import io
import os
import re
from collections.abc import Callable, Iterator
from enum import Enum, auto
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dglaunch import strict_json
from dglaunch.data.task import Record
from dglaunch.errors import UserError
from dglaunch.files import open_regular

TaskId = tuple[int, int]
"""Index and sample of a task."""
IMAGE_SUFFIXES = (".png", ".jpg", ".webp")
"""Of the images that dglaunch writes: a dot and --output_format."""
FAILURES_STEM = "failures"
"""How the names of the files of failures begin."""
MOST_LINE = 1 << 24
"""Bytes of a ledger line; a longer one is none of dglaunch's."""
MOST_SAMPLE = 1 << 31
"""A sample is smaller."""
FOLDER = r"(?:\d{4}|[1-9]\d{4,8})"
"""How a folder of images is called (--files_per_folder): its number in four digits, or more where it has more."""
_IN_FOLDER = re.compile(rf"{FOLDER}/", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"[0-9a-f]{16}")
_OF_REDO = b'"redo_of": "'
"""In each line that `dglaunch redo` has added."""


class LineKind(Enum):
    """What a line of a ledger is."""

    OURS = auto()
    REPLACED = auto()
    """One of ours about an image that a later line of the same file is about, which `dglaunch redo` has added."""
    FOREIGN = auto()
    """A JSON object that dglaunch has not written, as of an ImageFolder's own pictures: it stays where it is."""
    TOO_LONG = auto()
    """Longer than dglaunch writes one; it is not kept in memory, and a file that has one is not rewritten."""
    BAD = auto()
    """Torn, or with values that dglaunch does not write."""


class LedgerFile(NamedTuple):
    """A file of ledger lines."""

    path: Path
    inside: str = ""
    """Of a folder of images, which has a metadata.jsonl of its own with the names as they are seen from there: what they are
    called from the output folder begins with this ("0001/")."""


class Line(NamedTuple):
    """One line of a ledger or of failures.jsonl."""

    text: str
    """With its newline."""
    kind: LineKind
    record: Record
    """Empty, unless it is ours."""
    is_torn: bool
    """The last one, without a newline."""

    @property
    def is_rest(self) -> bool:
        """Whether it is the beginning of a line of ours, as a killed run leaves it."""
        return self.kind is LineKind.BAD and self.is_torn and self.text.startswith(('{"file_name": ', '{"index": '))


def scan(path: Path, inside: str = "") -> Iterator[Line]:
    """Yield every line of a ledger or of failures.jsonl, and what it is; none if there is no such file.

    Anyone may have written it. A line of ours has all that dglaunch writes, of the right types, and the name of an image
    that cannot leave the folder.

    Args:
        inside: the folder of images that the file is in (`LedgerFile`); the texts stay as they are.

    Raises:
        UserError: it cannot be read.
    """
    return (line for _, line in scan_places(path, inside))


def scan_places(path: Path, inside: str = "") -> Iterator[tuple[int, Line]]:
    """Yield the same with the byte at which each line begins, for `record_at`."""
    redone = _redone(path)
    for start, line in _lines_as_written(path, inside):
        if redone and line.kind is LineKind.OURS and start < redone.get(id_of(line.record), 0):
            line = Line(line.text, LineKind.REPLACED, {}, line.is_torn)
        yield start, line


def _lines_as_written(path: Path, inside: str = "") -> Iterator[tuple[int, Line]]:
    """The same, in one pass: a line that a redo has replaced is still one of ours."""
    is_ours = _shape_of(path)
    for start, raw in raw_lines(path):
        yield start, _line(raw, is_ours, inside) if raw else Line("", LineKind.TOO_LONG, {}, False)


def _redone(path: Path) -> dict[TaskId, int]:
    """Where the last line of a redo about an image begins, by its task."""
    if path.name.startswith(FAILURES_STEM):
        return {}
    lines = ((start, _line(raw, _is_result).record) for start, raw in raw_lines(path) if _OF_REDO in raw)
    return {id_of(record): start for start, record in lines if record and is_redone(record)}


def record_at(path: Path, data: BinaryIO, start: int, inside: str = "") -> Record:
    """Return our line that begins there in an open ledger of this path; an empty one if it is not ours."""
    return _line(_raw_at(data, start), _shape_of(path), inside).record


def result_of(raw: bytes) -> Record | None:
    """Return the line of a finished image that stands alone, as in a shard; None if it is not ours."""
    return _line(raw, _is_result).record or None


def text_at(data: BinaryIO, start: int) -> str:
    """Return the text of any line that begins there in an open ledger, with its newline."""
    return _text(_raw_at(data, start))


def _raw_at(data: BinaryIO, start: int) -> bytes:
    data.seek(start)
    return data.readline(MOST_LINE)


def _shape_of(path: Path) -> Callable[[Record], bool]:
    return _is_failure if path.name.startswith(FAILURES_STEM) else _is_result


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file that anyone may have written, with their newlines and the byte at which each begins; none if
    there is no such file. Of a line that is too long nothing is kept: it comes empty.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open_regular(path) as data:
            start = 0
            while raw := data.readline(MOST_LINE):
                end = start + len(raw)  # to ask the file for it after each line takes longer than to read the line
                if len(raw) == MOST_LINE and not raw.endswith(b"\n"):
                    while (more := data.readline(MOST_LINE)) and not more.endswith(b"\n"):
                        continue
                    raw, end = b"", data.tell()
                yield start, raw
                start = end
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None


def append_line(stream: io.FileIO, record: Record) -> None:
    """Add one whole line; a half-written one is taken back, so that the file stays valid on a full disk.

    The stream has no buffer: one would keep the rest of the line and write it later, behind the cut.

    Raises:
        OSError: it cannot be written.
    """
    append_whole(stream, (strict_json.dumps(record) + "\n").encode())


def append_whole(stream: io.FileIO, data: bytes) -> None:
    """Add all of it, or nothing; the stream has no buffer.

    Raises:
        OSError: it cannot be written.
    """
    end = stream.seek(0, os.SEEK_END)
    left = memoryview(data)
    try:
        while left:
            left = left[stream.write(left) :]
    except OSError:
        os.ftruncate(stream.fileno(), end)
        raise


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape") + "\n" * (not raw.endswith(b"\n"))


def _line(raw: bytes, is_ours: Callable[[Record], bool], inside: str = "") -> Line:
    text, is_torn = _text(raw), not raw.endswith(b"\n")
    try:
        record = strict_json.loads(raw)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        return Line(text, LineKind.BAD, {}, is_torn)
    if inside and isinstance(name := record.get("file_name"), str):
        record["file_name"] = inside + name
    if is_ours(record):
        return Line(text, LineKind.OURS, record, is_torn)
    has_marker = "index" in record and "sample" in record and ("key" in record or "error" in record)
    return Line(text, LineKind.BAD if has_marker else LineKind.FOREIGN, {}, is_torn)


def _is_result(record: Record) -> bool:
    return (
        _has_id(record)
        and is_image_name(record.get("file_name"))
        and type(record.get("bytes")) is int
        and _matches(_KEY, record.get("key"))
        and _matches(_SHA256, record.get("sha256"))
    )


def _is_failure(record: Record) -> bool:
    return _has_id(record) and isinstance(record.get("error"), str) and "file_name" not in record


def _has_id(record: Record) -> bool:
    index, sample = record.get("index"), record.get("sample")
    return type(index) is int and 0 <= index < 2**63 and type(sample) is int and 0 <= sample < MOST_SAMPLE


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def is_image_name(name: object) -> bool:
    """Return whether it is a name that dglaunch gives an image: of this folder or of a folder of images in it, not hidden, that
    a file system can hold."""
    if not isinstance(name, str):
        return False
    if (folder := _IN_FOLDER.match(name)) is not None:
        name = name[folder.end() :]
    if not name.endswith(IMAGE_SUFFIXES) or name.startswith("."):
        return False
    if re.search(r"[/\\\x00-\x1f]", name):
        return False
    try:
        return len(name.encode()) <= 255
    except UnicodeEncodeError:
        return False


def is_our_ledger(path: Path) -> bool:
    """Return whether a ledger (or a failures.jsonl) is dglaunch's: it has a line of ours, or nothing but the beginnings of
    some, as a killed run or a machine that lost power leaves them."""
    only_torn = True
    for _, line in _lines_as_written(path):
        if line.kind is LineKind.OURS:
            return True
        only_torn = only_torn and (line.is_rest or (line.kind is LineKind.BAD and not line.text.strip("\0\n")))
    return only_torn


def read_lines(path: Path, inside: str = "") -> Iterator[tuple[str, Record]]:
    """Yield our own lines of a ledger as text and parsed; all others are passed over.

    Raises:
        UserError: it cannot be read.
    """
    return ((line.text, line.record) for line in scan(path, inside) if line.kind is LineKind.OURS)


def id_of(record: Record) -> TaskId:
    index, sample = record["index"], record["sample"]
    assert isinstance(index, int) and isinstance(sample, int), "read_lines passes over lines without them"
    return index, sample


def is_redone(record: Record) -> bool:
    """Return whether `dglaunch redo` made the image of a ledger line."""
    return _matches(_KEY, record.get("redo")) and _matches(_KEY, record.get("redo_of"))


def row_key_of(record: Record) -> str:
    """Return the key of the row that an image is of: where it was made anew with other values, of the row as the table has it."""
    return str(record["redo_of"] if is_redone(record) else record["key"])


def file_name_of(record: Record) -> str:
    """Return the image's name in the folder; empty for a failure."""
    return str(record.get("file_name", ""))


def is_whole(record: Record, size: int | None) -> bool:
    """Return whether a file of so many bytes (None: there is none) is all of a ledger line's image."""
    return bool(size) and record.get("bytes") == size


def inputs_of(record: Record) -> list[tuple[object, object]]:
    """Return name and sha256 of each input image that a line names: what it starts from, the mask, the control image. What
    one of the two lists lacks is None."""
    names, hashes = (record.get(name) for name in ("input_images", "input_sha256"))
    found = list(zip_longest(*(each if isinstance(each, list) else [] for each in (names, hashes))))
    for role, name in (("mask", "mask"), ("control", "control_image")):
        if (digest := record.get(f"{role}_sha256")) is not None:
            found.append((record.get(name), digest))
    return found
