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

from dglaunch.errors import EXIT_DONE

_OBEYED_OR_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of control, format (bidi, zero width) and half characters, and of the separators of lines."""


def readable(text: str) -> str:
    """Return a text in which what a terminal would obey or hide stands as an escape (\\x1b, \\u202e); newlines and tabs stay."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in _OBEYED_OR_UNSEEN:
        return character
    return character.encode("unicode_escape").decode()


def say(text: str, error: bool = False) -> None:
    """Print a text to stdout or, as an error or a remark on a run, to stderr."""
    stream = sys.stderr if error else sys.stdout
    try:
        print(readable(text), file=stream or io.StringIO(), flush=True)
    except BrokenPipeError:
        silence(stream)


def hand_over(text: str) -> None:
    """Write a text that is meant for a file to stdout: exact and in UTF-8, whatever the terminal's encoding; to a terminal
    itself as everything else."""
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper) or stream.isatty():
        say(text.removesuffix("\n"))
        return
    try:
        stream.flush()
        stream.buffer.write(text.encode("utf-8", "surrogateescape"))
        stream.buffer.flush()
    except BrokenPipeError:
        silence(stream)


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """In this block, which is a whole command, neither stream ends it.

    What an encoding lacks (PYTHONIOENCODING=ascii) is written as an escape. Where nobody reads any more (`| head`), what is
    left to write is dropped, and a text that somebody else was printing, as tyro does its help, ends the command well.
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
        except BrokenPipeError:
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
