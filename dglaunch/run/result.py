"""What a run comes to: its outcome, counts and folder. `dglaunch.t2i` and `dglaunch.edit` return it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dglaunch.data.task import Record
from dglaunch.distributed.messages import message
from dglaunch.errors import EXIT_DONE, EXIT_DRAINED, EXIT_ITEMS_FAILED, DglaunchError, LostPeer
from dglaunch.output.ledger import FAILURES, METADATA, FileKind, OutputFolder
from dglaunch.output.lines import TaskId, id_of, read_lines

Outcome = Literal["done", "failed", "drained", "lost", "broken"]
"""As run.json says it: after `drained` and `lost` the same command goes on, `broken` needs someone. The last two raise."""
EXIT_CODES: dict[Outcome, int] = {"done": EXIT_DONE, "failed": EXIT_ITEMS_FAILED, "drained": EXIT_DRAINED}


HEADLINES: dict[Outcome, str] = {
    "done": "Done",
    "failed": "Partly failed",
    "drained": "Stopped",
    "lost": "A rank was lost",
    "broken": "Broken off",
}
"""What people are told of an outcome."""


def headline(outcome: Outcome, counts: "Counts") -> str:
    """Return how a run ended and what is there, in a few words: Partly failed: 15 of 16 made."""
    return f"{HEADLINES[outcome]}: {counts.num_there:,} of {counts.num_total:,} made"


def last_words(counts: "Counts") -> str:
    """Return what is said last when a run was stopped."""
    return f"{headline('drained', counts)}. Start the same command again to go on."


def outcome_of(error: DglaunchError | None, drained: bool, num_failed: int) -> Outcome:
    """Name how a run ended."""
    if error is not None:
        return "lost" if isinstance(error, LostPeer) else "broken"
    if drained:
        return "drained"
    return "failed" if num_failed else "done"


@message
@dataclass(slots=True)
class Counts:
    """ok + failed + skipped = total: nothing goes silently away (but what a stopped run has not reached)."""

    num_ok: int = 0
    num_failed: int = 0
    num_skipped: int = 0
    """Done by an earlier start."""
    num_total: int = 0

    @property
    def num_there(self) -> int:
        """Images of the folder, whichever start made them."""
        return self.num_ok + self.num_skipped

    @property
    def num_settled(self) -> int:
        return self.num_ok + self.num_failed + self.num_skipped


@message
@dataclass(frozen=True, slots=True)
class RunResult:
    """A RunResult says how a run ended and reads what it left; it is the same on every rank."""

    outcome: Outcome
    """done, failed (it went to its end, some items failed) or drained (a signal stopped it; the same call goes on)."""
    counts: Counts
    output_dir: Path

    @property
    def exit_code(self) -> int:
        """What the command would leave with."""
        return EXIT_CODES[self.outcome]

    def rows(self) -> Iterator[Record]:
        """The ledger: a row for each finished image of the folder, also those of earlier starts."""
        return _records(self.output_dir, METADATA)

    def failures(self) -> Iterator[Record]:
        """The lines of failures.jsonl: what failed in this start or before and was not made since."""
        return _records(self.output_dir, FAILURES)


def _records(path: Path, kind: FileKind) -> Iterator[Record]:
    """Of all ledgers of a folder (several where nodes or ranks write for themselves), each item once; the one that the
    last node has joined has them all, and comes first."""
    folder = OutputFolder(path)
    joined = folder.file(kind)
    seen: set[TaskId] = set()
    for ledger in [joined, *(file for file in folder.files(kind) if file != joined)]:
        for _, record in read_lines(ledger):
            if id_of(record) not in seen:
                seen.add(id_of(record))
                yield record
