"""Tables of rows: the files, patterns and folders that --prompts_file or --input names, read as one table.

    table = Table([Path("a.csv"), Path("more/*.jsonl.gz")])
    for label, row in table.rows(): ...

What a file holds is in table_formats.py.
"""

import glob
import io
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dglaunch.addresses import Address, is_address, path_or_address
from dglaunch.data.table_formats import (
    GZIP,
    GZIP_MAGIC,
    KINDS,
    PARQUET,
    TEXT_READERS,
    Row,
    guess,
    kind_of,
    read_parquet,
    read_text,
)
from dglaunch.errors import UserError
from dglaunch.files import MOST_STREAM, at_home, read_once, unpacked
from dglaunch.storage.local import local_file, matching

PROMPT_FILE = "prompt_file"
"""Column of a table that was read from a folder of .txt files: the name of the prompt's file without its suffix."""


class Table:
    """The rows of all files that are named, one after the other."""

    def __init__(self, named: Sequence[Path]) -> None:
        """
        Args:
            named: files, patterns of files (prompts/*.csv) and folders.
        """
        self.named = tuple(named)
        self.base = base_of(self.named)
        """What the relative paths in the table are relative to, as far as they stand for all of its files."""
        self._firsts: list[int] = []
        self._files: list[Path] = []
        self._bases: dict[Path, Path] = {}
        """Of its files: what the relative paths in one are relative to, looked up once and not for each row."""

    def __str__(self) -> str:
        return shown(self.named)

    def rows(self) -> Iterator[Row]:
        """Yield all rows, in order; of several files each says in which of them it stands.

        Raises:
            UserError: a file is missing, unreadable, not UTF-8 or of another kind.
        """
        files = [(file, file != path) for path in files_named(self.named) for file in _files_in(path)]
        names = Counter(file.name for file, _ in files)
        number = 0
        for file, is_in_folder in files:
            self._firsts.append(number)
            self._files.append(file)
            place = (file.name if names[file.name] == 1 else str(file)) if len(files) > 1 or is_in_folder else ""
            for label, row in _prompt_of(file) if is_in_folder and _is_txt(file) else read_table(file):
                yield " of ".join(filter(None, (label, place))), row
                number += 1

    def place(self, number: int) -> tuple[Path, int]:
        """Return in which file a row that was read stands, and its number there."""
        at = bisect_right(self._firsts, number) - 1
        return self._files[at], number - self._firsts[at]

    def file_of(self, file: Path, text: str) -> Path:
        """Return the file that a row of this file names."""
        return path_in(self._base_of(file), text)

    def name_of(self, file: Path, text: str) -> str:
        """Return how a path that a row of this file names is called beside those of all files: as it stands there, unless
        the file lies in another folder than the base."""
        here = self._base_of(file)
        if is_address(text):
            return str(path_or_address(text))
        if here == self.base or at_home(Path(text)).is_absolute():
            return text
        return os.path.relpath(path_in(here, text), self.base)

    def _base_of(self, file: Path) -> Path:
        if file not in self._bases:
            self._bases[file] = base_of([file])
        return self._bases[file]


def read_table(path: Path) -> Iterator[Row]:
    """Yield the rows of one file, in order.

    Raises:
        UserError: the file is missing, unreadable, not UTF-8 or of another kind.
    """
    suffix, is_packed = kind_of(path)
    with _errors_of(path):
        path = local_file(path) if isinstance(path, Address) else path
        if suffix not in KINDS or (is_packed and suffix == PARQUET):
            kinds = ", ".join(KINDS)
            raise UserError(
                f"{path} is none of the tables dglaunch reads ({kinds}; all but Parquet also as {GZIP}). Rename it, or save it "
                "as one of them."
            )
        if not path.is_file():
            if path.exists():
                raise UserError(f"{path} is no regular file; save what comes out of it to one first.")
            raise UserError(f"There is no file {path} (looked in {Path.cwd()}).")
        if suffix == PARQUET:
            yield from read_parquet(path)
            return
        data = path.open("rb")
        yield from read_text(unpacked(data) if is_packed else data, suffix)


def read_pipe(path: Path) -> bytes:
    """Return all that comes out of a pipe.

    Raises:
        UserError: it cannot be read, or is too long.
    """
    try:
        with _errors_of(path):
            return read_once(path)
    except UserError as error:
        if path.exists():
            raise
        raise UserError(
            f"{error} Torchrun hands its standard input on to rank 0, and no other open file: pipe the prompts into it and "
            "give --prompts_file -, or name a pipe that mkfifo made."
        ) from None


def rows_of_pipe(path: Path, data: bytes, text_column: str = "prompt") -> Iterator[Row]:
    """Yield the rows that came out of a pipe, in the format that its name says, else in that which they seem to have.

    Raises:
        UserError: it is not UTF-8.
    """
    suffix, _ = kind_of(path)
    with _errors_of(path):
        if data.startswith(GZIP_MAGIC):
            data = unpacked(io.BytesIO(data), MOST_STREAM).read()
        yield from read_text(io.BytesIO(data), suffix if suffix in TEXT_READERS else guess(data, text_column))


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); convert it: iconv -t UTF-8.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None


# -- which files ----------------------------------------------------------------------------------------------------


def shown(named: Sequence[Path]) -> str:
    """Return a table's name for messages."""
    return ", ".join(map(str, named))


def files_named(named: Sequence[Path]) -> list[Path]:
    """Return the files and folders that are named; in the place of a pattern all files that it fits, by name.

    Raises:
        UserError: a pattern fits none.
    """
    found: list[Path] = []
    for path in named:
        with _errors_of(path):
            if isinstance(path, Address):
                found += matching(path)
            else:
                found += _matches(path) if _is_pattern(path) else [path]
    return found


def files_there(named: Sequence[Path]) -> list[Path]:
    """Return those of the files and folders that are named which exist."""
    found = [
        name
        for path in named
        for name in (sorted(glob.glob(str(path), recursive=True)) if _is_pattern(path) else [path])
    ]
    return [Path(name) for name in found if os.path.exists(name)]


def _is_pattern(path: Path) -> bool:
    """Whether it stands for others: it has one of the characters *, ? and [, and there is no file of that very name."""
    return glob.has_magic(str(path)) and not os.path.lexists(path)


def _matches(pattern: Path) -> list[Path]:
    files = [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True)) if os.path.isfile(name)]
    if not files:
        raise UserError(f"There is no file that {pattern} fits (looked in {Path.cwd()}).")
    return files


def _files_in(path: Path) -> list[Path]:
    """The file itself, or those of a folder: .txt files with a prompt each, named as DPG-Bench does, or a table in parts, as
    GenArena's."""
    with _errors_of(path):
        if not path.is_dir():
            return [path]
        files = files_of(path)
    if not files:
        raise UserError(
            f"The folder {path} has neither .txt files with a prompt each nor .parquet files. Tables of another kind are "
            f"named by a pattern: '{path}/*.csv'."
        )
    return files


def files_of(folder: Path) -> list[Path]:
    """Return the files that a folder of tables or prompts is made of: all of its .parquet, else all of its .txt, by name.
    Hidden ones are none of them (macOS puts a ._a.txt beside each a.txt on a foreign disk)."""
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    kinds = ([path for path in files if path.suffix.lower() == suffix] for suffix in (PARQUET, ".txt"))
    return next(filter(None, kinds), [])


def _is_txt(file: Path) -> bool:
    return file.suffix.lower() == ".txt"


def _prompt_of(file: Path) -> Iterator[Row]:
    """A file of a folder of prompts, as one row."""
    text = " ".join(str(text) for _, row in read_table(file) if isinstance(row, dict) for text in row.values())
    empty = "the file is empty; write a prompt into it, or take it out of the folder"
    yield "", {"prompt": text, PROMPT_FILE: file.stem} if text else empty


def base_of(named: Sequence[Path]) -> Path:
    """Return what the relative paths in a table are relative to: its folder, or that which all of its files lie in. It does
    not depend on which files there are."""
    bases = list(dict.fromkeys(map(_base_of, named)))
    if len(bases) == 1:
        return bases[0]
    wholes = [str(base) if isinstance(base, Address) else os.path.abspath(base) for base in bases]
    if len({os.path.isabs(whole) or whole.partition("/")[0] for whole in wholes}) > 1:
        raise UserError(f"{shown(named)}: name tables of one place, either on this machine or of one object store.")
    return path_or_address(os.path.commonpath(wholes))


def _base_of(path: Path) -> Path:
    if isinstance(path, Address):
        while glob.has_magic(str(path.parent)):
            path = path.parent
        return path.parent if path.suffix or glob.has_magic(path.name) else path
    if os.path.isdir(path):  # also of a name that no file can have
        return path
    while _is_pattern(path) and glob.has_magic(str(path.parent)):
        path = path.parent
    return path.parent


def path_in(base: Path, text: str) -> Path:
    """Return the file that a cell of a table names."""
    path = path_or_address(text)
    if isinstance(path, Address):
        return path
    path = at_home(path)
    return path if path.is_absolute() else base / path
