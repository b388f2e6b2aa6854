"""The rows of a large job's gallery, in script files beside the page: a page of ten million rows opens as one of ten.

    gallery.html
    gallery-rows/3f9c2a1b7d04e586/0000.js    rows 0 to 3999: galleryRows(0,'{"columns":{...},"files":[...],...}')
    gallery-rows/3f9c2a1b7d04e586/0001.js    rows 4000 to 7999

They are scripts because a page that is opened from a disk may read nothing else. Each page has a folder of files of its own: they
are written first and the page last, so that there is never a page whose rows are those of another. A killed command leaves files
that no page names; the next one for the same page takes them away, as those of the page before.
"""

import fcntl
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from dglaunch.atomic import atomic_write
from dglaunch.data.task import Record
from dglaunch.files import is_regular, open_regular
from dglaunch.output import ownership
from dglaunch.output.forks import in_forks
from dglaunch.output.gallery_columns import Beside, RowColumns
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.page_parts import Column, script_json, url_of

MOST_IN_PAGE = 100_000
"""Rows that a page holds itself: these open in a second."""
ROWS_OF_FILE, WITH_PICTURES = 4_000, 500
"""Rows of a file, and of one with small pictures: a megabyte, which a browser reads in some ten milliseconds."""
ROWS_AT_A_TIME = 500
MOST_RANKS = 1_000
"""Ranks of a file's rows that are told apart."""
BEGINS = "galleryRows("
MARK = "dglaunch-rows"
"""The name in a page's head that says which files are its own."""
_TOKEN = re.compile(r"[0-9a-f]{16}", re.ASCII)
_FILE = re.compile(r"\d{4,12}\.js", re.ASCII)
_NAMED = re.compile(rb'<meta name="' + MARK.encode() + rb'" content="([0-9a-f]{16})">')
_DIGITS = re.compile(r"\d{1,40}", re.ASCII)


@dataclass(slots=True)
class RowFiles:
    """What a page says of the files that hold its rows: enough to know which of them a search need not read."""

    folder: Path
    """Theirs."""
    size: int
    """Rows of each, but the last."""
    firsts: Column = field(default_factory=Column)
    """Of each file the index of its first row."""
    failed: Column = field(default_factory=Column)
    """How many of its rows have no image."""
    seeds: Column = field(default_factory=Column)
    """The least and the greatest seed; null: no row has one."""
    ranks: Column = field(default_factory=Column)
    """The ranks that made them; null: who knows."""

    @property
    def token(self) -> str:
        """What tells them from those of another page."""
        return self.folder.name

    def add(self, found: "Summary") -> None:
        """Add what is known of the next file."""
        self.firsts.add(found.first)
        self.failed.add(found.num_failed)
        self.seeds.add(found.seeds or None)
        self.ranks.add(sorted(found.ranks) if found.ranks is not None and len(found.ranks) <= MOST_RANKS else None)

    def pieces(self) -> Iterator[str]:
        """Return it as JSON for the page, in pieces."""
        address = url_of(Path(self.folder.parent.name, self.folder.name)) + "/"
        yield script_json({"folder": address, "size": self.size})[:-1]
        for name, column in {
            "first": self.firsts,
            "failed": self.failed,
            "seeds": self.seeds,
            "ranks": self.ranks,
        }.items():
            yield f',"{name}":'
            yield from column.whole()
        yield "}"


@dataclass(slots=True)
class Summary:
    """What a page has to know of one file."""

    first: object
    """The index of its first row."""
    num_failed: int = 0
    seeds: list[int] = field(default_factory=list)
    """The least and the greatest; empty: no row has one."""
    ranks: set[int] | None = field(default_factory=set)
    """None: some rows say something else."""

    def add(self, rows: Sequence[Record]) -> None:
        """Add what is to be known of some more rows."""
        seeds = [*self.seeds, *(seed for seed in map(_seed_of, rows) if seed is not None)]
        self.seeds = [min(seeds), max(seeds)] if seeds else []
        said = [row.get("rank") for row in rows]
        known = {rank for rank in said if isinstance(rank, int)}
        are_known = all(rank is None or isinstance(rank, int) for rank in said)
        self.ranks = self.ranks | known if self.ranks is not None and are_known else None


def _seed_of(row: Record) -> int | None:
    """The seed of a row, as the page's script takes it for one."""
    seed = row.get("seed")
    text = str(int(seed)) if isinstance(seed, float) and seed.is_integer() else str(seed)
    return int(text) if _DIGITS.fullmatch(text) else None


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes one file after the other, in whichever process."""

    rows: Sequence[Record]
    beside: Beside
    folder: Path
    size: int

    def write(self, number: int) -> Summary:
        """Write the file of this number whole.

        Raises:
            OSError: it cannot be written.
        """
        part = self.rows[number * self.size : (number + 1) * self.size]
        columns, found, coming = RowColumns(self.beside), Summary(part[0].get("index")), iter(part)
        while some := list(islice(coming, ROWS_AT_A_TIME)):
            columns.add(some)
            found.add(some)
        if lost := len(part) - columns.count:  # a run has replaced their lines since: they keep their places
            columns.add([{}] * lost)
        text = chain([f"{BEGINS}{number},'{{"], map(_in_quotes, columns.pieces()), ["}')\n"])
        with (
            atomic_write(self.folder / f"{number:04d}.js") as temporary,
            temporary.open("w", encoding="utf-8", errors="replace") as out,
        ):
            out.writelines(text)
        found.num_failed = columns.num_failed
        return found


def _in_quotes(json: str) -> str:
    """A piece of JSON inside a script's text in single quotes: parsed as JSON, no name of a column is more than a name."""
    return json.replace("\\", "\\\\").replace("'", "\\'")


@contextmanager
def written(
    page: Path, rows: Sequence[Record], beside: Beside, processes: int, advance: Callable[[int], None]
) -> Iterator[RowFiles]:
    """Write the files of a page's rows, and yield what the page says of them; when the block has ended, the page is there, and files
    that no page names are taken away.

    Args:
        page: where the page will lie.
        rows: its rows; in memory are few of them at a time.
        beside: what there is to them beside their lines.
        processes: how many work on it; more than one are forks of this one.
        advance: is told how many more rows are written.

    Raises:
        OSError: one cannot be written.
    """
    there = folder_of(page)
    ownership.make_folder(there)
    folder = there / os.urandom(8).hex()
    folder.mkdir()
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)  # another command for the same page leaves it alone
        files = RowFiles(folder, WITH_PICTURES if beside.thumbnails else ROWS_OF_FILE)
        writer = _Writer(rows, beside, folder, files.size)
        for found in in_forks(writer.write, range(-(-len(rows) // files.size)), processes):
            files.add(found)
            advance(files.size)
        yield files
    finally:
        os.close(lock)
        remove_unnamed(page)


# -- whose are they? -------------------------------------------------------------------------------------------------


def folder_of(page: Path) -> Path:
    """Return the folder beside a page for the files of its rows."""
    return page.with_name(f"{page.stem}-rows")


def named_by(page: Path) -> str | None:
    """Return which files a page says are its own; None: it holds its rows itself, or is none."""
    try:
        with open_regular(page) as data:
            found = _NAMED.search(data.read(1 << 12))
    except OSError:
        return None
    return found[1].decode() if found is not None else None


def remove_unnamed(page: Path) -> None:
    """Take away files of rows that were written for a page which is not there any more. Whatever else lies there stays."""
    there = folder_of(page)
    if there.is_symlink() or not there.is_dir():
        return
    named = named_by(page)
    for folder in sorted(there.iterdir()):
        if _TOKEN.fullmatch(folder.name) and folder.name != named and folder.is_dir() and not folder.is_symlink():
            _remove(folder)
    with suppress(OSError):  # something else is in it
        there.rmdir()


def _remove(folder: Path) -> None:
    """Remove the files of a page, unless another command is writing them."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ownership.remove(path for path in folder.iterdir() if _is_ours(path))
        ownership.remove(OutputFolder(folder).temporary_files())
        with suppress(OSError):  # something else is in it
            folder.rmdir()
    except BlockingIOError:
        return
    finally:
        os.close(lock)


def _is_ours(path: Path) -> bool:
    """Whether it is a file of rows."""
    if not is_regular(path) or not _FILE.fullmatch(path.name):
        return False
    with open_regular(path) as data:
        return data.read(len(BEGINS)) == BEGINS.encode()
