"""The content of large files, as a hash: what a job was made with, wherever the file lies.

    sha256_of(Path("flux1-dev-Q8_0.gguf"), config.cache)      # 12 GB: ten seconds once, then nothing

It is sha256 over the whole file, as no less tells two fine-tunes of one model apart: their sizes and headers are equal. It
is kept in the cache folder by path, size and time of change, so that only a file's first use costs the reading; a file of a
hub's cache has it for its name. Whoever puts another file under the same path with the same size and time of change, to the
nanosecond, goes unnoticed.
"""

import fcntl
import hashlib
import re
from pathlib import Path

from dglaunch import strict_json
from dglaunch.atomic import atomic_write
from dglaunch.errors import UserError
from dglaunch.files import digest_of, make_cache_folder, may_be_others, open_lock, read_bytes

FOLDER = "sha256"
"""In the cache folder."""
WORTH_KEEPING = 1 << 26
"""Bytes from which a hash is kept; less is read in a twentieth of a second."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST = 1 << 12


def sha256_of(path: Path, cache: Path) -> str:
    """Return the sha256 of a file's content.

    Args:
        path: the file.
        cache: the folder in which dglaunch keeps what it finds out once.

    Raises:
        UserError: it cannot be read.
    """
    real = path.resolve()
    if _SHA256.fullmatch(real.name) and real.parent.name == "blobs":
        return real.name
    try:
        if real.stat().st_size < WORTH_KEEPING:
            return digest_of(real)
        return _kept_or_read(real, cache / FOLDER)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror or error}. Correct the path, or its permissions."
        ) from None


def sha256_of_folder(folder: Path, names: list[str], cache: Path) -> str:
    """Return one hash for some files of a folder, by their names and contents.

    Raises:
        UserError: one cannot be read.
    """
    lines = [f"{name} {sha256_of(folder / name, cache)}" for name in sorted(names)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _kept_or_read(real: Path, folder: Path) -> str:
    """One of several ranks reads the file, and the others then find what it has kept."""
    note = folder / f"{hashlib.sha256(str(real).encode()).hexdigest()[:32]}.json"
    try:
        make_cache_folder(folder)
        lock = open_lock(note.with_suffix(".lock"))
    except OSError:  # a cache that cannot be written keeps nothing
        return digest_of(real)
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        info = real.stat()
        state = {"path": str(real), "size": info.st_size, "mtime_ns": info.st_mtime_ns}
        if found := _kept(note, state):
            return found
        found = digest_of(real)
        with atomic_write(note) as temporary:
            temporary.write_text(strict_json.dumps(state | {"sha256": found}), encoding="utf-8")
        return found


def _kept(note: Path, state: dict[str, object]) -> str | None:
    """What was kept of a file that has not changed since, by nobody but this user and root."""
    try:
        if may_be_others(note) or may_be_others(note.parent):
            return None
        kept = strict_json.loads(read_bytes(note, _MOST))
    except (OSError, ValueError):
        return None
    if not isinstance(kept, dict) or {name: kept.get(name) for name in state} != state:
        return None
    found = kept.get("sha256")
    return found if isinstance(found, str) and _SHA256.fullmatch(found) else None
