"""Files that strangers may have written, or put a link in the place of.

A file is read only if it is a regular one: a FIFO would hang for ever, a device has no end. Links are followed for reading
(a snapshot of the hub is made of them), and never for writing: what is written stays in the folder that it was meant for.
Reading and writing raise OSErrors whose `strerror` ends a sentence about the path.
"""

import errno
import hashlib
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from dglaunch.elsewhere import PathElsewhere
from dglaunch.errors import UserError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MOST_BYTES = 1 << 30
"""Of a file that is read whole."""
MOST_STREAM = 1 << 28
"""Bytes of what is read from a pipe."""


def at_home(path: Path) -> Path:
    """Return a path as a shell would hand it on: with the home folder in place of a leading ~.

    Raises:
        UserError: there is no home folder.
    """
    if path.parts[:1] and not path.parts[0].startswith("~"):
        return path
    found = Path(os.path.expanduser(path)) if os.environ.get("HOME") != "" else path
    if found.parts[:1] == ("~",):
        raise UserError(
            f"{path} is in the home folder, and there is none here (HOME is not set, and the system does not know this "
            "user). Set HOME, or give a path without ~, such as --cache_dir /tmp/dglaunch."
        )
    return found


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading.

    Raises:
        OSError: it is missing, not to be read, a folder, a FIFO, a device, ...; or the path is none (a NUL, too long).
    """
    if isinstance(path, PathElsewhere) and (there := path.opened_there()) is not None:
        return there
    return os.fdopen(_open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        OSError: as `open_regular`, or it is larger than `most`.
    """
    with open_regular(path) as data:
        size = os.fstat(data.fileno()).st_size
        content = data.read(most + 1) if size <= most else b""
    if size > most or len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most:,} bytes", str(path))
    return content


def digest_of(path: Path, begin: "Callable[[], hashlib._Hash]" = hashlib.sha256) -> str:
    """Return the hash of a regular file's bytes, in hexadecimal digits.

    Args:
        begin: makes the hash, which may have seen something before.

    Raises:
        OSError: as `open_regular`.
    """
    with open_regular(path) as data:
        return hashlib.file_digest(data, begin).hexdigest()


def is_stream(path: Path) -> bool:
    """Return whether the path is a pipe, a device or this process's own input: something that can be read once."""
    name = str(path)
    if name in ("-", "/dev/stdin") or name.startswith(("/dev/fd/", "/proc/self/fd/")):
        return True
    try:
        kind = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(kind) or stat.S_ISCHR(kind)


def read_once(path: Path, most: int = MOST_STREAM) -> bytes:
    """Return all that comes out of a pipe (`-` is this process's input), up to its end.

    Raises:
        OSError: it cannot be opened, or more than `most` bytes come.
    """
    with open(0 if str(path) == "-" else path, "rb", closefd=str(path) != "-") as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most:,} bytes come out of it", str(path))
    return content


class _Unpacked(io.RawIOBase):
    """What a gzip file unpacks to, up to a limit: a few bytes may unpack to terabytes."""

    def __init__(self, packed: BinaryIO, most: int) -> None:
        import gzip

        self._packed = packed
        self._stream = gzip.GzipFile(fileobj=packed)
        self._most = self._left = most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        import zlib

        view = memoryview(buffer).cast("B")
        try:
            data = self._stream.read(len(view))
        except (EOFError, zlib.error) as error:
            raise OSError(errno.EINVAL, f"it is no whole gzip file ({error})") from None
        self._left -= len(data)
        if self._left < 0:
            raise OSError(errno.EFBIG, f"it unpacks to more than {self._most:,} bytes")
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._packed.close()
        super().close()


def unpacked(packed: BinaryIO, most: int = MOST_BYTES) -> io.BufferedReader:
    """Return what a gzip file unpacks to; reading it raises an OSError where it is damaged, or larger than `most`."""
    return io.BufferedReader(_Unpacked(packed, most))


def open_for_appending(path: Path) -> io.FileIO:
    """Open or create a file in its folder to add to it, without a buffer.

    Raises:
        OSError: it cannot be written, or is a link or no regular file.
    """
    if isinstance(path, PathElsewhere):
        path.bring()
    return os.fdopen(
        _open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK), "ab", buffering=0
    )


def open_lock(path: Path) -> io.BufferedRandom:
    """Open or create a file to lock; what is in it stays.

    Raises:
        OSError: it cannot be written, or is a link or no regular file.
    """
    return os.fdopen(_open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK), "r+b")


def make_cache_folder(path: Path, mode: int = 0o775) -> None:
    """Create a folder and its parents, as the umask allows, and never so that everybody may write there.

    Raises:
        OSError: it cannot be made.
    """
    if not path.is_dir():
        make_cache_folder(path.parent)
        path.mkdir(mode, exist_ok=True)


def identity_of(path: Path) -> str:
    """Return what tells whether a file is another one than before, without reading it: the name of the blob that a link in a
    hub's cache leads to, which is named by its content; else size and time.

    Raises:
        OSError: there is no such file.
    """
    real = path.resolve()
    return real.name if path.is_symlink() else f"{real.stat().st_size} {real.stat().st_mtime_ns}"


def may_be_others(path: Path) -> str:
    """Say who else may have put there what is in a file or a folder: its owner, if that is neither this user nor root, or
    everybody. Empty: nobody else.

    Raises:
        OSError: there is no such file.
    """
    info = path.stat()
    if info.st_uid not in (os.geteuid(), 0):
        return f"it belongs to the user {info.st_uid}"
    return "everybody may write there" if info.st_mode & stat.S_IWOTH else ""


def is_regular(path: Path) -> bool:
    """Return whether there is a regular file of this very name: a link is none."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def _open(path: Path, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    except (ValueError, UnicodeEncodeError):  # a NUL, half a character
        raise OSError(errno.EINVAL, "that is no path", repr(str(path))) from None
    except OSError as error:
        if error.errno == errno.ELOOP and flags & os.O_NOFOLLOW:
            raise OSError(errno.ELOOP, "it is a link, and what is written does not follow links", str(path)) from None
        if error.errno == errno.ENXIO:  # a socket, or a FIFO without a reader
            raise OSError(errno.EINVAL, "it is no regular file", str(path)) from None
        raise
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return descriptor
