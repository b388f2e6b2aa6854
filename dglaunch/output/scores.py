"""Scores of a folder's images, beside its ledger: OUT/scores/NAME.jsonl has a line for each image, NAME.json says what gave them.

    {"index": 17, "sample": 2, "sha256": "2c26...", "score": 0.31}

The ledger itself is not touched; whoever reads its lines sees a score as their column score_NAME. A score is of an image's
bytes: where `dglaunch redo` has put another image in its place, it does not count any more. Each rank adds to a file of its
own (NAME-rank1of4.jsonl), all of which are read; at the end they are joined to one, in the order of index.
"""

import contextlib
import fcntl
import io
import math
import re
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from dglaunch import strict_json
from dglaunch.atomic import TEMPORARY, atomic_write
from dglaunch.data.task import Record
from dglaunch.errors import OutputError, UserError
from dglaunch.files import is_regular, open_for_appending, open_lock, open_regular, read_bytes
from dglaunch.output import ownership
from dglaunch.output.far import far_of, name_there
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.lines import append_line, id_of, raw_lines
from dglaunch.output.places import SCORES

FOLDER = SCORES
COLUMN = "score_"
"""How the column of a score begins, where lines of the ledger are shown with it."""
COMMAND = "score"
"""What NAME.json says wrote it."""
NAME = re.compile(r"[A-Za-z0-9_]{1,64}", re.ASCII)
"""Of a score: a word that an expression of --filter_rows can have."""
PUT_S = 10.0
"""So many seconds of scores a loss of the machine costs, where they go to an object store."""
MOST_ABOUT = 1 << 20
"""Bytes of a NAME.json."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Scored(NamedTuple):
    """What the model said of an image."""

    value: float
    is_cut: bool = False
    """Whether it read only the beginning of the prompt."""


class Scores:
    """The scores of one name, as they were when it was read. In memory are 33 bytes of each."""

    def __init__(self, lines: Iterable[Record]) -> None:
        import numpy as np

        places, values, cut = array("q"), array("d"), array("b")
        for line in lines:
            places.extend((*id_of(line), _short(line["sha256"])))
            values.append(float(line["score"]))  # type: ignore[arg-type]  # of a number: _is_ours
            cut.append(line.get("cut") is True)
        table = np.frombuffer(places, dtype=np.int64).reshape(-1, 3)
        order = np.lexsort((table[:, 1], table[:, 0]))
        self._index, self._sample, self._digest = (np.ascontiguousarray(table[order, n]) for n in range(3))
        self._values = np.frombuffer(values, dtype=np.float64)[order]
        self._cut = np.frombuffer(cut, dtype=np.int8)[order]

    @classmethod
    def read(cls, folder: OutputFolder, name: str) -> Self:
        """Read them from all files of the name; lines that are not as dglaunch writes them are passed over.

        Raises:
            UserError: a file cannot be read.
        """
        return cls(line for path in files(folder, name) for line in _lines(path))

    def __len__(self) -> int:
        return len(self._index)

    def of(self, record: Record) -> Scored | None:
        """Return the score of the image that a ledger line is about, or None: it has none, or not for these bytes."""
        index, sample = id_of(record)
        first, last = self._index.searchsorted(index, "left"), self._index.searchsorted(index, "right")
        digest = _short(record["sha256"])
        for at in range(first + self._sample[first:last].searchsorted(sample), last):
            if self._sample[at] != sample:
                break
            if self._digest[at] == digest:
                return Scored(float(self._values[at]), bool(self._cut[at]))
        return None


class ScoreFile:
    """The file of one rank, to which it adds a line for each image."""

    def __init__(self, folder: OutputFolder, name: str, part: str) -> None:
        """
        Raises:
            OSError: it cannot be written.
        """
        path = folder.path / FOLDER / f"{name}{part}.jsonl"
        is_torn = is_regular(path) and path.stat().st_size > 0 and _last_byte(path) != b"\n"
        self._stream: io.FileIO = open_for_appending(path)
        self._far, self._path = far_of(folder.path), path
        self._put_at = time.monotonic()
        if is_torn:  # by a kill; what is left of the line says nothing
            self._stream.write(b"\n")

    def add(self, record: Record, scored: Scored) -> None:
        """Add the score of a ledger line's image.

        Raises:
            OSError: it cannot be written.
        """
        append_line(self._stream, _line(record, scored))
        if time.monotonic() - self._put_at > PUT_S:
            self.settle()

    def settle(self) -> None:
        """What was added is where the folder lies: of an object store, all of the file is put.

        Raises:
            OSError: it cannot be written.
        """
        if self._far is not None:
            self._far.files.put(name_there(self._path), is_own=True)
        self._put_at = time.monotonic()

    def close(self) -> None:
        self._stream.close()


# -- a folder's scores --------------------------------------------------------------------------------------------


def present(folder: OutputFolder) -> list[str]:
    """Return the names of the scores that a folder has."""
    found = sorted((folder.path / FOLDER).glob("*.json")) if not (folder.path / FOLDER).is_symlink() else []
    return [path.stem for path in found if NAME.fullmatch(path.stem) and about(folder, path.stem) is not None]


def files(folder: OutputFolder, name: str) -> list[Path]:
    """Return the files that hold the scores of a name: that of all, then those of ranks."""
    there = folder.path / FOLDER
    ours = re.compile(re.escape(name) + r"(-rank\d+of\d+)?\.jsonl")
    return sorted(path for path in there.glob(f"{name}*.jsonl") if ours.fullmatch(path.name) and is_regular(path))


def about(folder: OutputFolder, name: str) -> Record | None:
    """Return what NAME.json says gave the scores; None: there is none, or it is another's."""
    try:
        found = strict_json.loads(read_bytes(folder.path / FOLDER / f"{name}.json", MOST_ABOUT))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get(ownership.WRITTEN_BY) == COMMAND else None


def column(name: str) -> str:
    """Return what a score is called where lines of the ledger are shown with it."""
    return COLUMN + name


def read_all(folder: OutputFolder) -> dict[str, Scores]:
    """Return all scores of a folder, by their columns.

    Raises:
        UserError: a file cannot be read.
    """
    return {column(name): Scores.read(folder, name) for name in present(folder)}


def with_scores(record: Record, found: Mapping[str, Scores]) -> Record:
    """Return a ledger line with a column for each score that its image has; a failure has none."""
    if not found or "sha256" not in record:
        return record
    scored = {name: scores.of(record) for name, scores in found.items()}
    return {**record, **{name: score.value for name, score in scored.items() if score is not None}}


# -- writing ------------------------------------------------------------------------------------------------------


def begin(folder: OutputFolder, name: str, said: Record, anew: bool) -> None:
    """Make the place of a name's scores, or find it as an earlier start of the same scoring left it.

    Args:
        said: what gives the scores; `identity` in it must be what it was.
        anew: forget the earlier ones (--overwrite).

    Raises:
        UserError: what is there is of another model, or not dglaunch's.
        OutputError: it cannot be written.
    """
    target = folder.path / FOLDER / f"{name}.json"
    _refuse_foreign(folder, name, target)
    before = about(folder, name)
    if before is not None and not anew and before.get("identity") != said["identity"]:
        raise UserError(
            f"{target.with_suffix('.jsonl')} holds the scores of {_in_words(before)}, and these are of {_in_words(said)}. Give "
            f"them another name (--name {name}_2), or --overwrite to forget the earlier ones."
        )
    try:
        ownership.make_folder(target.parent)
        if anew:
            ownership.remove(files(folder, name))
    except OSError as error:
        raise OutputError(f"{target.parent} cannot be written: {error.strerror or error}.") from None
    if before is None or anew:
        ownership.write_report(target, COMMAND, said)


def _refuse_foreign(folder: OutputFolder, name: str, target: Path) -> None:
    """Nothing of the user's is added to or removed: our files stand beside a NAME.json of ours."""
    if target.parent.is_symlink() or (target.parent.exists() and not target.parent.is_dir()):
        raise UserError(f"{target.parent} is a link or no folder; scores are kept in a folder of this name. Rename it.")
    if about(folder, name) is None and (files(folder, name) or target.exists() or target.is_symlink()):
        raise UserError(
            f"{target.parent} has files called {name} that dglaunch score did not write. Give another --name, or move them away."
        )


def _in_words(said: Record) -> str:
    return str(said.get("with"))


@contextlib.contextmanager
def held(folder: OutputFolder, name: str) -> Iterator[None]:
    """Keep other processes from scoring under the same name, inside the block.

    Raises:
        UserError: one does.
        OSError: the lock cannot be made.
    """

    def in_use(_: str = "") -> UserError:
        path = folder.path / FOLDER / name
        return UserError(f"Another dglaunch score writes {path}.jsonl. Wait for it, or give another --name.")

    if (far := far_of(folder.path)) is not None:
        with far.leases.holding(f"scores-{name}", in_use):
            yield
        return
    ownership.make_folder(folder.path / FOLDER)
    with open_lock(folder.path / FOLDER / f"{TEMPORARY}{name}.lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise in_use() from None
        yield


def see_others(folder: OutputFolder) -> None:
    """Read what other ranks have written by now: where each has a working folder, that is not there by itself.

    Raises:
        OSError: it cannot be read.
    """
    if (far := far_of(folder.path)) is not None:
        far.pull_folder(FOLDER)


def join(folder: OutputFolder, name: str, records: Iterable[Record]) -> list[float]:
    """Make one file of all that ranks have written, in the order of the ledger; scores of images that are not there any more
    are left out.

    Args:
        records: the ledger's lines.

    Returns:
        The scores.

    Raises:
        OSError: it cannot be written; each file is whole as it is.
    """
    parts, scores = files(folder, name), Scores.read(folder, name)
    target = folder.path / FOLDER / f"{name}.jsonl"
    values = array("d")
    with atomic_write(target) as temporary, temporary.open("w", encoding="utf-8") as out:
        for record in records:
            if (scored := scores.of(record)) is not None:
                out.write(strict_json.dumps(_line(record, scored)) + "\n")
                values.append(scored.value)
    ownership.remove(path for path in parts if path != target)
    return values.tolist()


# -- lines --------------------------------------------------------------------------------------------------------


def _line(record: Record, scored: Scored) -> Record:
    index, sample = id_of(record)
    line: Record = {"index": index, "sample": sample, "sha256": record["sha256"], "score": scored.value}
    return {**line, "cut": True} if scored.is_cut else line


def _lines(path: Path) -> Iterator[Record]:
    for _, raw in raw_lines(path):
        try:
            line = strict_json.loads(raw)
        except ValueError:
            continue
        if isinstance(line, dict) and _is_ours(line):
            yield line


def _is_ours(line: Record) -> bool:
    score, digest = line.get("score"), line.get("sha256")
    numbers: Sequence[object] = (line.get("index"), line.get("sample"))
    return (
        all(type(number) is int and 0 <= number < 2**63 for number in numbers)
        and isinstance(digest, str)
        and _SHA256.fullmatch(digest) is not None
        and type(score) in (int, float)
        and math.isfinite(score)  # type: ignore[arg-type]  # a number
    )


def _short(digest: object) -> int:
    """The first 64 bits of a sha256, as an integer of numpy's."""
    return int.from_bytes(bytes.fromhex(str(digest)[:16]), signed=True)


def _last_byte(path: Path) -> bytes:
    with open_regular(path) as data:
        data.seek(-1, io.SEEK_END)
        return data.read(1)
