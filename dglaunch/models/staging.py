"""--stage_to: a node's own copy of a checkpoint, made by one of its ranks, so that eight ranks of a hundred nodes do not
read the same files over the network.

    staging = Staging(Path("/shared/flux"), Path("/local/scratch"))
    staging.make()              # on one rank of each node; the others wait
    staging.folder              # the same on all

A copy is whole or not there: files are copied beside it and hashed as they pass, and the folder gets its name last. What is
found there is hashed again, which also brings it into memory, so that a damaged copy is made anew.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dglaunch import strict_json
from dglaunch.atomic import TEMPORARY
from dglaunch.errors import UserError
from dglaunch.files import digest_of, open_lock, open_regular
from dglaunch.models.components import read_json
from dglaunch.models.fetching import needed
from dglaunch.models.folder import Folder

NOTE = f"{TEMPORARY}staged.json"
"""In a copy: where it is from, and the hash of each file. It also says that the folder is dglaunch's own."""
PIECE = 1 << 20
"""Bytes that are copied at a time."""
READERS = 4
"""Files that are hashed at a time."""


@dataclass(frozen=True, slots=True)
class Staged:
    """What became of a copy."""

    num_bytes: int
    seconds: float
    was_there: bool

    def __str__(self) -> str:
        what = "was there already, and is right" if self.was_there else "was copied"
        return f"{self.num_bytes / 1e9:.1f} GB, {what}, in {self.seconds:.0f} s"


class Staging:
    """The copy of one checkpoint's folder in another folder."""

    def __init__(self, source: Path, to: Path) -> None:
        """
        Args:
            source: the checkpoint's folder.
            to: the folder that holds copies, of this checkpoint and of others.
        """
        self._source = source
        self._to = to

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of each file that a run loads, by its path in the checkpoint.

        Raises:
            UserError: a network has no safetensors.
        """
        return {name: (self._source / name).stat().st_size for name in self._names}

    @cached_property
    def folder(self) -> Path:
        """Where the copy is, or will be: another one for each state of the source."""
        changed = [(name, size, (self._source / name).stat().st_mtime_ns) for name, size in self.sizes.items()]
        digest = hashlib.sha256(repr((str(self._source), changed)).encode()).hexdigest()[:12]
        return self._to / f"{self._source.resolve().name[:60]}-{digest}"

    @property
    def num_bytes(self) -> int:
        return sum(self.sizes.values())

    def make(self) -> Staged:
        """Copy what is not there yet, or is damaged.

        Raises:
            UserError: there is no room, or something else has the copy's name.
            OSError: the source cannot be read.
        """
        start = time.monotonic()
        with self._locked():
            there = self.folder.exists() and self._is_right()
            if not there:
                self._copy()
        return Staged(self.num_bytes, time.monotonic() - start, there)

    @property
    def _names(self) -> list[str]:
        found = (file for file in self._source.rglob("*") if file.is_file())
        return needed(Folder(self._source), [file.relative_to(self._source).as_posix() for file in found], code=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One job of a node copies at a time; the others wait and find it there."""
        try:
            self._to.mkdir(parents=True, exist_ok=True)
            lock = open_lock(self._to / f"{TEMPORARY}{self.folder.name}.lock")
        except OSError as error:
            raise UserError(f"--stage_to {self._to} cannot be written: {error.strerror or error}.") from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _is_right(self) -> bool:
        """Whether the copy has what was copied, byte by byte.

        Raises:
            UserError: the folder is none of dglaunch's.
        """
        if not (self.folder / NOTE).is_file():
            raise UserError(f"{self.folder} is no copy of dglaunch's. Give --stage_to another folder.")
        hashes = read_json(self.folder / NOTE).get("files")
        if not isinstance(hashes, Mapping) or set(hashes) != set(self.sizes):
            return False
        with ThreadPoolExecutor(READERS) as readers:
            return all(readers.map(lambda name: self._matches(name, hashes[name]), hashes))

    def _matches(self, name: str, expected: object) -> bool:
        try:
            return digest_of(self.folder / name) == expected
        except OSError:
            return False

    def _copy(self) -> None:
        free = shutil.disk_usage(self._to).free
        if free < self.num_bytes:
            raise UserError(
                f"--stage_to {self._to} has {free / 1e9:.1f} GB free, and {self._source} needs {self.num_bytes / 1e9:.1f}. "
                "Make room, or leave --stage_to out."
            )
        part = self._to / f"{TEMPORARY}{self.folder.name}.part"  # nobody else has the name: the lock is held
        try:
            shutil.rmtree(part, ignore_errors=True)
            hashes = {name: _copy_file(self._source / name, part / name) for name in self.sizes}
            note = {"source": str(self._source), "files": hashes}
            (part / NOTE).write_text(strict_json.dumps(note), encoding="utf-8")
            shutil.rmtree(self.folder, ignore_errors=True)
            os.rename(part, self.folder)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(f"--stage_to {self._to} is full. Make room, or leave --stage_to out.") from None
            raise


def _copy_file(source: Path, target: Path) -> str:
    """Copy a file and return the sha256 of its bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with open_regular(source) as data, target.open("xb") as copy:
        while piece := data.read(PIECE):
            digest.update(piece)
            copy.write(piece)
    return digest.hexdigest()
