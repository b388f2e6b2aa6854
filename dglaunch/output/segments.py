"""The ledger of a large job is written in segments, by writer, so that no file of it grows without end.

    metadata.jsonl, metadata-rank3of8.jsonl          where lines are added: the open segment of each writer
    .dglaunch-ledger/000007-rank3of8-9f3c2a1b.jsonl  a closed segment: 10,000 lines that nobody adds to any more
    .dglaunch-ledger/000007-rank3of8-9f3c2a1b.index  its columns (output/file_index.py); made again from the lines if it is lost
    metadata.jsonl, or 0001/metadata.jsonl ...       the public view, when the job has ended: all lines, in the order of index

**What a segment is.** A file of whole ledger lines, as metadata.jsonl has them, with the names of images as they are seen from
the output folder. Once it has its name it is never added to; a repair replaces it whole. So it can as well be one object that
is put: a store that cannot append keeps the lines of a writer until it puts them as the next segment, under `new_name`. The
number comes first in the name and grows from one segment of a writer to its next, and from one start to the next: where two
segments have lines about one image, the later name counts. Nothing else of a segment's name means anything.

A job of fewer lines than a segment has none: its ledger is metadata.jsonl alone. Closing is a rename, so whoever reads finds
each line once, whenever the process dies. When the job has ended, `ordering.put_in_order` writes the public view, and the
segments go last: in between each line stands in both.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from dglaunch.atomic import TEMPORARY

SEGMENT_LINES = 10_000
"""Lines of a segment. A start reads the open ones line by line: a writer's 10,000 take a quarter of a second."""
FOLDER = f"{TEMPORARY}ledger"
"""The folder, in the output folder, of closed segments and of what is known about each."""
INDEX = ".index"
_NAME = re.compile(r"(\d{6,15})((?:-node\d+of\d+)?(?:-rank\d+of\d+)?)-[0-9a-f]{8}\.jsonl", re.ASCII)


def new_name(names: Iterable[str], ledger_suffix: str = "") -> str:
    """Return the name of the next segment of a writer.

    Args:
        names: of the segments that there are; others are passed over.
        ledger_suffix: the part of the job that writes ("-rank3of8").
    """
    number = max((int(match[1]) for match in map(_NAME.fullmatch, names) if match is not None), default=-1) + 1
    return f"{number:06d}{ledger_suffix}-{os.urandom(4).hex()}.jsonl"


def in_order(names: Iterable[str]) -> list[str]:
    """Return the names that are names of segments, in the order in which they count."""
    found = [match for match in map(_NAME.fullmatch, names) if match is not None]
    return [match[0] for match in sorted(found, key=lambda match: (int(match[1]), match[0]))]


def suffix_of(path: Path) -> str:
    """Return the part of the job that wrote a segment ("-rank3of8")."""
    match = _NAME.fullmatch(path.name)
    return match[2] if match is not None else ""


def closed(folder: Path) -> list[Path]:
    """Return the closed segments of an output folder, in the order in which they count."""
    there = folder / FOLDER
    try:
        names = os.listdir(there) if not there.is_symlink() else []
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [there / name for name in in_order(names)]


def close(path: Path, folder: Path, ledger_suffix: str) -> Path:
    """Make a closed segment of an open one, in one step, and return where it is.

    Raises:
        OSError: it cannot be moved.
    """
    there = folder / FOLDER
    there.mkdir(exist_ok=True)
    if there.is_symlink():
        raise OSError(f"{there} is a link, and what is written does not follow links")
    target = there / new_name(os.listdir(there), ledger_suffix)
    os.rename(path, target)
    return target


def forget_indexes(folder: Path) -> None:
    """Remove what is kept of the ledgers of an output folder, which are removed, too."""
    there = folder / FOLDER
    if there.is_dir() and not there.is_symlink():
        for path in there.glob(f"*{INDEX}"):
            path.unlink(missing_ok=True)
