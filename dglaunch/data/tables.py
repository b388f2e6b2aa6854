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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from dglaunch.addresses import Address, is_address, path_or_address
from dglaunch.data.hub_tables import files_of_hub, is_on_hub
from dglaunch.data.table_formats import (
    CELLS,
    GZIP,
    GZIP_MAGIC,
    KINDS,
    PARQUET,
    TEXT_READERS,
    UNNAMED,
    Row,
    guess,
    kind_of,
    parquet_shape,
    read_batches,
    read_parquet,
    read_text,
    row_label,
)
from dglaunch.errors import UserError
from dglaunch.files import MOST_STREAM, at_home, read_once, unpacked
from dglaunch.storage.local import local_file, matching

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 8192
"""Of a table that is text."""
LARGE_ROWS, LARGE_BYTES = 50_000, 8_000_000
"""From where a table is large: up to there its rows one by one take a second and 50 MB."""
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
        self._shapes: dict[Path, tuple[int, pa.Schema]] = {}
        """Of its Parquet files, each of which is opened for it once."""

    def __str__(self) -> str:
        return shown(self.named)

    def rows(self) -> Iterator[Row]:
        """Yield all rows, in order; of several files each says in which of them it stands.

        Raises:
            UserError: a file is missing, unreadable, not UTF-8 or of another kind.
        """
        number = 0
        for file in self._begin():
            self._note_file(file.path, number)
            for label, row in file.rows():
                yield file.placed(label), row
                number += 1

    def chunks(self) -> "Iterator[Chunk]":
        """Yield the same rows, many at a time: those of a Parquet file in columns.

        Raises:
            UserError: as `rows`.
        """
        number = 0
        for file in self._begin():
            self._note_file(file.path, number)
            first = number
            for rows in file.chunks():
                yield Chunk(file, first, number, rows)
                number += len(rows)

    def _begin(self) -> "list[_File]":
        """Its files, from the first one on."""
        self._firsts, self._files = [], []
        return self._found

    @cached_property
    def _found(self) -> "list[_File]":
        """The files that are named.

        Raises:
            UserError: there is none, or a shard is of another kind than the others.
        """
        files: list[tuple[Path, bool]] = []
        for path in self.named:
            shards = [(file, file != named) for named in files_named([path]) for file in _files_in(named)]
            if len(shards) > 1:
                _check_columns({file: columns for file, _ in shards if (columns := self._columns_of(file))})
            files += shards
        names = Counter(file.name for file, _ in files)

        def place(file: Path, is_in_folder: bool) -> str:
            if len(files) == 1 and not is_in_folder:
                return ""
            return file.name if names[file.name] == 1 else str(file)

        return [_File(file, place(file, is_in), is_in and _is_txt(file)) for file, is_in in files]

    @cached_property
    def parquet(self) -> "tuple[int, pa.Schema] | None":
        """How many rows there are and what columns the first file has, if all files are Parquet.

        Raises:
            UserError: one of them cannot be read.
        """
        paths = [file.path for file in self._found]
        if not all(path in self._shapes or _is_parquet(path) for path in paths):
            return None
        shapes = [self._shape(path) for path in paths]
        return sum(num_rows for num_rows, _ in shapes), shapes[0][1]

    def _shape(self, path: Path) -> "tuple[int, pa.Schema]":
        if path not in self._shapes:
            self._shapes[path] = parquet_shape(_here(path))
        return self._shapes[path]

    def _columns_of(self, path: Path) -> Sequence[str]:
        """The names of the columns that all rows of a file have; none of a kind whose rows each name their own."""
        if _is_parquet(path):
            return list(map(str, self._shape(path)[1].names))
        if kind_of(path)[0] not in CELLS or not _here(path).is_file():
            return []
        first = next((row for _, row in read_table(path)), None)
        names = first if isinstance(first, dict) else {}
        return [name.casefold() for name in names if not name.startswith(UNNAMED)]  # known in any case, row by row

    def _note_file(self, path: Path, first: int) -> None:
        self._firsts.append(first)
        self._files.append(path)

    @property
    def is_large(self) -> bool:
        """Whether it has so many rows that they had better be kept in columns, as far as this shows without reading it."""
        if self.parquet is not None:
            return self.parquet[0] >= LARGE_ROWS
        paths = [_here(file.path) for file in self._found]
        return sum(path.stat().st_size for path in paths if path.is_file()) >= LARGE_BYTES

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


@dataclass(frozen=True, slots=True)
class _File:
    """One file of a table."""

    path: Path
    place: str
    """What it is called in messages; empty, if it is the only one."""
    is_prompt: bool
    """Whether it is one row, of a folder of prompts."""

    def placed(self, label: str) -> str:
        """Return where a row stands, in words."""
        return " of ".join(filter(None, (label, self.place)))

    def rows(self) -> Iterator[Row]:
        return _prompt_of(self.path) if self.is_prompt else read_table(self.path)

    def chunks(self) -> "Iterator[list[Row] | pa.RecordBatch]":
        """Yield the rows, many at a time."""
        if kind_of(self.path) == (PARQUET, False):
            with _errors_of(self.path):
                yield from read_batches(_here(self.path))
            return
        rows = self.rows()
        while some := list(islice(rows, ROWS_AT_ONCE)):
            yield some


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one file that follow one another."""

    file: _File
    file_first: int
    """The number of the file's first row in the table."""
    first: int
    """The number of these rows' first."""
    rows: "list[Row] | pa.RecordBatch"

    def label_of(self, number: int) -> str:
        """Return where a row stands, by its number in the table."""
        if isinstance(self.rows, list):
            return self.file.placed(self.rows[number - self.first][0])
        return self.file.placed(row_label(number - self.file_first))

    @property
    def last(self) -> int:
        """The number of the last row."""
        return self.first + len(self.rows) - 1

    def as_rows(self) -> Iterator[Row]:
        """Yield the rows one by one."""
        if isinstance(self.rows, list):
            yield from ((self.file.placed(label), row) for label, row in self.rows)
        else:
            yield from ((self.label_of(self.first + n), row) for n, row in enumerate(self.rows.to_pylist()))


def read_table(path: Path) -> Iterator[Row]:
    """Yield the rows of one file, in order.

    Raises:
        UserError: the file is missing, unreadable, not UTF-8 or of another kind.
    """
    suffix, is_packed = kind_of(path)
    with _errors_of(path):
        if suffix not in KINDS or (is_packed and suffix == PARQUET):
            kinds = ", ".join(KINDS)
            raise UserError(
                f"{path} is none of the tables dglaunch reads ({kinds}; all but Parquet also as {GZIP}). Rename it, or save it "
                "as one of them."
            )
        file = _here(path)
        if not file.is_file():
            if path.exists():
                raise UserError(f"{path} is no regular file; save what comes out of it to one first.")
            raise UserError(f"There is no file {path} (looked in {Path.cwd()}).")
        if suffix == PARQUET:
            yield from read_parquet(file)
            return
        data = file.open("rb")
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


def _here(path: Path) -> Path:
    """The file itself, or the copy of one that lies elsewhere.

    Raises:
        UserError: it cannot be fetched.
    """
    with _errors_of(path):
        return local_file(path) if isinstance(path, Address) else path


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
            found += _meant(path)
    return found


def _meant(path: Path) -> list[Path]:
    if is_on_hub(path):
        return files_of_hub(path)
    if isinstance(path, Address):
        return list(matching(path)) if glob.has_magic(path.key) else [path]
    return _matches(path) if _is_pattern(path) else [path]


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
    """The file itself, or those of a folder: .txt files with a prompt each, named as DPG-Bench does, or a table in shards."""
    with _errors_of(path):
        if isinstance(path, Address):
            found = matching(path)
            if found == [path]:
                return [path]
            files = _of_one_kind(path, found)
        elif path.is_dir():
            files = files_of(path)
        else:
            return [path]
    if not files:
        raise UserError(
            f"The folder {path} has no tables ({', '.join(KINDS)}) and no .txt files with a prompt each. Name another folder, "
            f"or a pattern such as '{path}/*/*.parquet'."
        )
    return files


def files_of(folder: Path) -> list[Path]:
    """Return the files that a folder of tables or prompts is made of, by name: all that are tables, which must be of one kind.
    Hidden ones are none of them (macOS puts a ._a.txt beside each a.txt on a foreign disk).

    Raises:
        UserError: they are of several kinds.
    """
    return _of_one_kind(folder, sorted(folder.iterdir()))


def _of_one_kind(folder: Path, there: Sequence[Path]) -> list[Path]:
    """Those of the files of a folder that are tables."""
    files = [path for path in there if not path.name.startswith(".") and kind_of(path)[0] in KINDS]
    kinds = Counter(kind_of(path)[0] for path in files)
    if len(kinds) > 1:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
        patterns = " or ".join(f"'{folder}/*{kind}'" for kind, _ in kinds.most_common(2))
        raise UserError(
            f"The folder {folder} has tables of several kinds ({counts}). Name those that are meant: {patterns}."
        )
    return files


def _is_parquet(file: Path) -> bool:
    """Whether it is a Parquet file, and no pipe of that name."""
    return kind_of(file) == (PARQUET, False) and _here(file).is_file()


def _check_columns(shards: Mapping[Path, Sequence[str]]) -> None:
    """Look whether the files of one folder or pattern have the same columns.

    Raises:
        UserError: one has others than the first.
    """
    before = next(iter(shards), Path())
    first = {*shards.get(before, ())}
    for shard, columns in shards.items():
        names = {*columns}
        if names != first:
            without, besides = (", ".join(sorted(some)) for some in (first - names, names - first))
            said = " and ".join(filter(None, [f"no {without}" * bool(without), f"{besides} besides" * bool(besides)]))
            raise UserError(
                f"{shard} has other columns than {before}: {said}. Parts of one table have the same columns. Mend it, or name "
                "the files one by one, if they are tables of their own."
            )


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
