"""A file is whole or absent: it is written under a temporary name, which then takes the place of the final one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dglaunch.elsewhere import put_in_place

TEMPORARY = ".dglaunch-"
"""How the names of dglaunch's working files begin: temporary files (a process id follows), notes, what is held in reserve."""


@contextmanager
def atomic_write(target: Path, folder: Path | None = None, ledger_suffix: str = "") -> Iterator[Path]:
    """Yield a temporary path to write to; when the block ends, that file replaces `target` in one step.

    If the block raises, `target` stays as it was. The temporary file never stays behind.

        with atomic_write(path) as temporary:
            temporary.write_text(text)

    Args:
        target: the file to create or replace.
        folder: where the temporary file is written, if not beside `target`; on the same file system.
        ledger_suffix: the part of the job that writes ("-node0of4"), so that the starts of other parts leave it alone.
    """
    temporary = temporary_path(target.parent if folder is None else folder, ledger_suffix)
    try:
        yield temporary
        put_in_place(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)  # also after a replace: of two links to one file it leaves both


def temporary_path(folder: Path, ledger_suffix: str = "") -> Path:
    """Return a new name in `folder` that no other process uses."""
    return folder / f"{TEMPORARY}{os.getpid()}{ledger_suffix}-{os.urandom(8).hex()}.tmp"
