"""Paths of files whose bytes lie elsewhere: who reads, replaces or adds to such a file does so there, through what is here.

`files.py` (reading, adding), `atomic.py` (replacing) and `output/ownership.py` (another name, a second one, none) ask the path.
"""

import io
import os
from pathlib import Path


class PathElsewhere(type(Path())):  # type: ignore[misc]  # the Path of this system
    """A path that may stand for bytes elsewhere (storage/working.py: the results of a job in an object store)."""

    def opened_there(self) -> io.BufferedReader | None:
        """Return its bytes, to be read; None: they are in the file of this name.

        Raises:
            OSError: they cannot be read.
        """
        return None

    def bring(self) -> None:
        """Make its bytes those of the file of this name, before something is added to it.

        Raises:
            OSError: they cannot be read.
        """

    def put(self) -> None:
        """What was added to the file is there, too, when this returns.

        Raises:
            OSError: it cannot be written.
        """

    def take(self, source: Path) -> bool:
        """Give a whole file this name, there and here; return whether that was done: else it is left to the caller.

        Raises:
            OSError: it cannot be written.
        """
        return False


def put_in_place(source: Path, target: Path) -> None:
    """Give a whole file its name, in one step.

    Raises:
        OSError: it cannot be done; what had the name stays.
    """
    if not (isinstance(target, PathElsewhere) and target.take(source)):
        os.replace(source, target)


def was_added_to(path: Path) -> None:
    """Say that lines were added to a file, which have to be where it lies before what comes next.

    Raises:
        OSError: they cannot be written.
    """
    if isinstance(path, PathElsewhere):
        path.put()
