"""What `dglaunch redo` leaves of what it replaces: OUT/replaced, and the note of a redo that has not come to its end.

    replaced/000007.png         the image as it was (000007-1.png, if an earlier redo has left one of that name)
    replaced/metadata.jsonl     its ledger line, with the name that it has there
    .dglaunch-redo.json         what is asked, while it is not done: which images, and the token that their new lines have

An image is replaced in steps, each of which leaves the old one or the new one, or both: the old image gets a second name in
`replaced` and its line is added there; the new image takes the old one's place; its line is added to the ledger, and from
then on the old line does not count (output/lines.py). Whoever is killed between two of these steps finds in the note which
images are in doubt, and their hashes tell the rest.
"""

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from dglaunch import strict_json
from dglaunch.atomic import TEMPORARY, atomic_write
from dglaunch.data.task import Record
from dglaunch.errors import UserError
from dglaunch.files import digest_of, is_regular, open_for_appending, read_bytes
from dglaunch.output import ownership
from dglaunch.output.far import far_of
from dglaunch.output.images import StoredImage
from dglaunch.output.ledger import MOST_RUN, OutputFolder
from dglaunch.output.lines import TaskId, append_line, file_name_of, id_of, is_our_ledger, read_lines, scan
from dglaunch.output.places import LEDGER_OF_REPLACED
from dglaunch.output.shards import IMAGE_SHARD, shard_of

_NOTE = f"{TEMPORARY}redo.json"
_MARK = {ownership.WRITTEN_BY: "redo"}
"""What the note begins with."""
_TOKEN = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class PendingRedo:
    """What a redo was asked; it lies in the folder until all of it is made."""

    asked: Record
    """The flags of the command, in JSON's types: the same command goes on with it."""
    token: str
    """What the lines of the images that it has made say in `redo`."""
    task_ids: frozenset[TaskId]

    @classmethod
    def begun(cls, asked: Record, task_ids: Sequence[TaskId]) -> Self:
        """Return a new one."""
        return cls(asked, os.urandom(8).hex(), frozenset(task_ids))

    @classmethod
    def read(cls, folder: OutputFolder) -> Self | None:
        """Return the one that lies in a folder, if there is one that can be read: anyone may have written it."""
        path = folder.path / _NOTE
        try:
            found = strict_json.loads(read_bytes(path, MOST_RUN)) if is_regular(path) else None
        except (OSError, ValueError):
            return None
        if not isinstance(found, dict) or found.get(ownership.WRITTEN_BY) != "redo":
            return None
        asked, token, ids = found.get("asked"), found.get("token"), found.get("tasks")
        if not (
            isinstance(asked, dict) and isinstance(token, str) and _TOKEN.fullmatch(token) and isinstance(ids, list)
        ):
            return None
        pairs = [tuple(pair) for pair in ids if isinstance(pair, list) and [type(part) for part in pair] == [int, int]]
        return cls(asked, token, frozenset((index, sample) for index, sample in pairs))

    def write(self, folder: OutputFolder) -> None:
        """Put it into the folder, in place of an earlier one; a file of its name that is none is moved aside.

        Raises:
            OSError: the folder cannot be written.
        """
        path = folder.path / _NOTE
        if os.path.lexists(path) and PendingRedo.read(folder) is None:
            ownership.set_aside(folder, path)
        ids = sorted(self.task_ids)
        text = strict_json.dumps({**_MARK, "asked": self.asked, "token": self.token, "tasks": ids})
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def remove(self, folder: OutputFolder) -> None:
        """Take it away, as all of it is made."""
        found = PendingRedo.read(folder)
        if found is not None and found.token == self.token:
            ownership.remove([folder.path / _NOTE])


class Replacing:
    """A Replacing keeps what a redo is about to replace, one image at a time.

    Args:
        folder: the output folder.
        records: the ledger lines of the images that are there, by their tasks.
    """

    def __init__(self, folder: OutputFolder, records: Mapping[TaskId, Record]) -> None:
        self._folder = folder
        self._records = records
        self._ledger = folder.path / LEDGER_OF_REPLACED
        self._has_added = False
        self._kept = (
            {self._what(record) for _, record in read_lines(self._ledger)} if is_regular(self._ledger) else set()
        )

    def refuse_foreign(self) -> None:
        """Check that the folder of what is replaced is dglaunch's to add to.

        Raises:
            UserError: it is a link or no folder, or its ledger is somebody else's.
        """
        target, ledger = self._ledger.parent, self._ledger
        is_other = os.path.lexists(target) and (target.is_symlink() or not target.is_dir())
        if is_other or (os.path.lexists(ledger) and not (is_regular(ledger) and is_our_ledger(ledger))):
            raise UserError(
                f"{target} is where redo keeps what it replaces, and what is there is not dglaunch's. Rename it and start "
                "the same command again."
            )

    def keep(self, task_id: TaskId, name: str) -> bool:
        """Give an image that stands in the way of a new one a second name in `replaced`; return whether there was one.

        Raises:
            OSError: it cannot be done.
        """
        path, record = self._folder.path / name, self._records.get(task_id, {})
        if shard := shard_of(record):
            data = StoredImage(self._folder.path, file_name_of(record), shard).read()
            name_there = self._place(path, hashlib.sha256(data).hexdigest(), partial(Path.write_bytes, data=data))
            said = {key: value for key, value in record.items() if key != IMAGE_SHARD}
            self._add_line({**said, "file_name": name_there})
            return True
        if not is_regular(path) or ownership.is_empty(path):
            return False
        digest = digest_of(path)
        name_there = self._place(path, digest, partial(ownership.link_or_copy, path))
        if record.get("sha256") == digest:
            self._add_line({**record, "file_name": name_there})
        return True

    def _place(self, path: Path, digest: str, write: Callable[[Path], object]) -> str:
        """The name of an image in `replaced`: the one that it has there already, or the first that is free."""
        folder = self._ledger.parent
        ownership.make_folder(folder)
        target, number = folder / path.name, 1
        while os.path.lexists(target):
            if ownership.is_as_written(target, digest):
                return target.name
            target, number = folder / f"{path.stem}-{number}{path.suffix}", number + 1
        with atomic_write(target, self._folder.path) as temporary:
            write(temporary)
        return target.name

    def _add_line(self, record: Record) -> None:
        if self._what(record) in self._kept:
            return
        if not self._has_added:
            self._cut_torn_line()
        self._has_added = True
        self._kept.add(self._what(record))
        with open_for_appending(self._ledger) as lines:
            append_line(lines, record)
        if (far := far_of(self._folder.path)) is not None:
            far.put_line(LEDGER_OF_REPLACED, record)

    def _cut_torn_line(self) -> None:
        """What a killed redo has left of a line goes: the image is there, and its whole line comes now."""
        lines = list(scan(self._ledger))
        if lines and lines[-1].is_rest:
            with atomic_write(self._ledger, self._folder.path) as temporary:
                temporary.write_bytes("".join(line.text for line in lines[:-1]).encode("utf-8", "surrogateescape"))

    @staticmethod
    def _what(record: Record) -> tuple[object, ...]:
        return (*id_of(record), file_name_of(record), record["sha256"])
