"""What in an output folder is dglaunch's own: the only place that deletes or links files there.

A folder may hold files of the user's. What is deleted has a name that only dglaunch gives, or a ledger line of its own.
(A file is replaced by `atomic_write`, which also takes its own temporary file away again.)
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from dglaunch.output.ledger import FAILURES, METADATA, RUN, OutputFolder, Part, file_name_of

_IMAGE = re.compile(r"\d{6,}(_\d{2,})?\.(png|jpg|webp)")
_INPUT_COPY = re.compile(r"inputs/\d+_\d+\.\w+")


def is_image_name(name: str) -> bool:
    """Return whether dglaunch gives images such a name; without a ledger line it is the rest of a killed run."""
    return _IMAGE.fullmatch(name) is not None


def is_plain_name(name: str) -> bool:
    """Return whether a ledger line's name stays in the folder."""
    return name not in ("", "..") and Path(name).name == name


def path_inside(name: object) -> str | None:
    """Return a file name that a ledger or a page may show, if it is one and stays in its folder."""
    if not isinstance(name, str) or not name:
        return None
    path = PurePosixPath(name)
    return None if path.is_absolute() or ".." in path.parts else name


def remove(paths: Iterable[Path]) -> None:
    """Delete files that dglaunch has written; a missing one is no error."""
    for path in paths:
        path.unlink(missing_ok=True)


def remove_images(folder: OutputFolder, names: Iterable[str]) -> None:
    """Delete images by the names that ledger lines give them; other folders are out of reach."""
    remove(folder.path / name for name in names if is_plain_name(name))


def remove_results(folder: OutputFolder) -> None:
    """Delete what dglaunch wrote here, and nothing else: for --overwrite."""
    for record in folder.records():
        remove_images(folder, [file_name_of(record)])
        copies = record.get("input_file_names", ())
        if isinstance(copies, Sequence):
            remove(folder.path / copy for copy in map(str, copies) if _INPUT_COPY.fullmatch(copy))
    for kind in (METADATA, FAILURES, RUN):
        remove(folder.files(kind))
    remove(folder.out_of_memory_notes())


def remove_temporary_files(folder: OutputFolder, part: Part) -> None:
    """Delete what killed processes of this part left half written."""
    remove(folder.temporary_files(part.ledger_suffix))


def remove_old_locks(folder: OutputFolder, part: Part) -> None:
    """Delete the locks of the ranks that wrote beside this rank 0 and were killed; nobody holds them."""
    remove(folder.lock_files(f"{part.node}-*"))


def link_or_copy(source: Path, target: Path) -> None:
    """Give an image a second name: a hard link, or a copy where the file system has no links.

    Raises:
        FileExistsError: there is something of that name.
        OSError: it cannot be written.
    """
    try:
        os.link(source, target)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
        with contextlib.suppress(OSError):  # the time of the image: dglaunch status takes the speed from it
            shutil.copystat(source, target)
