"""stdout and stderr: texts of others are shown as they are, and a stream that fails ends nothing.

    say("usage: ...")
    say(f"dglaunch: {error}", error=True)

All that dglaunch prints passes `readable`: plain texts here, tables and progress in terminal.py.
"""

import contextlib
import io
import os
import select
import sys
import unicodedata
from collections.abc import Iterator
from typing import TextIO

from dglaunch.errors import EXIT_DONE, OutputError

_OBEYED_OR_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of control, format (bidi, zero width) and half characters, and of the separators of lines."""


def readable(text: str) -> str:
    """Return a text in which what a terminal would obey or hide stands as an escape (\\x1b, \\u202e); newlines and tabs stay."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in _OBEYED_OR_UNSEEN:
        return character
    return character.encode("unicode_escape").decode()


class Stream(io.TextIOBase):
    """A Stream writes to stdout or stderr as they are now.

    Where nobody reads any more (`| head`), what is written goes nowhere. A log on a full disk is no reason to end a run
    either; stdout there is, for it is what a command was asked for.
    """

    def __init__(self, error: bool) -> None:
        stream = sys.stderr if error else sys.stdout
        self._stream: TextIO = stream if stream is not None else io.StringIO()
        self._is_error = error

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed has an attribute
        return self._stream.encoding or "utf-8"

    def write(self, text: str) -> int:
        with self._lasting():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._lasting():
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def hand_over(self, text: str) -> None:
        """Write a text that is meant for a file: exact and in UTF-8, whatever the encoding is; a terminal gets it readable."""
        if not isinstance(self._stream, io.TextIOWrapper) or self.isatty():
            self.write(readable(text))
            return self.flush()
        self.flush()
        with self._lasting():
            self._stream.buffer.write(text.encode("utf-8", "surrogateescape"))
            self._stream.buffer.flush()

    @contextlib.contextmanager
    def _lasting(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            silence(self._stream)
        except OSError as error:
            if not self._is_error:
                raise OutputError(f"stdout cannot be written: {error.strerror or error}.") from None


def say(text: str, error: bool = False) -> None:
    """Print a text to stdout or, as an error or a remark on a run, to stderr."""
    print(readable(text), file=Stream(error), flush=True)


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """In this block, which is a whole command, neither stream ends it.

    What an encoding lacks (PYTHONIOENCODING=ascii) is written as an escape. Where nobody reads any more (`| head`), what is
    left to write is dropped, and a text that somebody else was printing ends the command well.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except BrokenPipeError:
        if _is_read(sys.stdout):  # it was a socket
            raise
        raise SystemExit(EXIT_DONE) from None
    finally:
        _flush()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            silence(stream)


def _is_read(stream: TextIO) -> bool:
    """Return whether what is written there has a reader."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return not poll.poll(0)
    except (AttributeError, OSError, ValueError):  # a stream without a file
        return True


def silence(stream: TextIO) -> None:
    """Let what is in the stream's buffer, and what comes, go nowhere: Python writes it once more when it ends."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)
