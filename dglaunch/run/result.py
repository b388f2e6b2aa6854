"""What a run comes to: its outcome, counts and folder. `dglaunch.t2i` and `dglaunch.edit` return it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dglaunch.distributed.messages import message
from dglaunch.errors import EXIT_DONE, EXIT_DRAINED, EXIT_ITEMS_FAILED, DglaunchError, LostPeer, UserError
from dglaunch.output.ledger import OutputFolder

if TYPE_CHECKING:
    from PIL.Image import Image

    from dglaunch.output.images import StoredImage
    from dglaunch.run.rows import Rows

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

    @property
    def rows(self) -> "Rows":
        """The ledger in the order of index: a row for each finished image of the folder, also those of earlier starts."""
        return self._lines().only(failed=False)

    @property
    def failures(self) -> "Rows":
        """The lines of failures.jsonl in the order of index: what failed in this start or before and was not made since."""
        return self._lines().only(failed=True)

    @property
    def paths(self) -> list[Path]:
        """The files of the images, in the order of `rows`.

        Raises:
            UserError: they are in shards (--store).
        """
        stored = self._stored()
        if any(image.shard for image in stored):
            raise UserError(
                f"The images of {self.output_dir} are in shards, not in files of their own. images() reads them; the shards are "
                "in its folder shards."
            )
        return [image.path for image in stored]

    def _stored(self) -> "list[StoredImage]":
        from dglaunch.output.images import image_of

        found = (image_of(self.output_dir, row) for row in self.rows)
        return [image for image in found if image is not None]

    def images(self) -> "Iterator[Image]":
        """Yield the images, in the order of `rows`; each is read when its turn comes, and decoded when it is looked at.

        Raises:
            UserError: one is gone, or is no image any more.
        """
        from dglaunch.data.images import BadImage, open_image

        for stored in self._stored():
            try:
                image = open_image(stored.read())
            except OSError as error:
                raise _unreadable(stored, f"cannot be read: {error.strerror or error}") from None
            except BadImage as error:
                raise _unreadable(stored, str(error)) from None
            yield image

    def _lines(self) -> "Rows":
        from dglaunch.run.rows import Rows

        return Rows(OutputFolder(self.output_dir))

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows of a result."""
        from dglaunch.output.contact_sheet import PREVIEW_MOST, preview

        lines = self._lines()
        made, num_failed = lines.only(failed=False), lines.num_failed
        first = f", the first {PREVIEW_MOST} of them" if len(made) > PREVIEW_MOST else ""
        failed = f"; {num_failed:,} failed" if num_failed else ""
        title = f"{self.outcome}: {len(made):,} image{'s' * (len(made) != 1)} in {self.output_dir}{first}{failed}"
        return preview(self.output_dir, made, title)


def _unreadable(stored: "StoredImage", problem: str) -> UserError:
    return UserError(f"{stored} {problem}. Make the same call again: what is missing is made anew.")
