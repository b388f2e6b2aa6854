"""The memory that a run's figures said, beside what its batches take."""

from collections.abc import Callable

from dglaunch.data.task import Record
from dglaunch.planning.figures import FigureBook
from dglaunch.planning.job import Job
from dglaunch.planning.outlook import PlannedPeak
from dglaunch.run.loop import peak_memory

WORTH_SAYING = 1.15
"""A line tells of a peak that is so many times what was planned, or as much less."""


class MemoryCheck:
    """On rank 0, a MemoryCheck sets the peak that was planned beside the one that is measured: after the first of the largest
    batches, and at the end. On a GPU later starts and plans go by what it was.

    Args:
        planned: of the largest batch.
        measure: bytes of this rank's peak until now.
    """

    def __init__(
        self, job: Job, book: FigureBook, planned: PlannedPeak, measure: Callable[[str], int] = peak_memory
    ) -> None:
        self.num_bytes = planned.num_bytes
        """As it was planned."""
        self._job, self._book, self._planned, self._measure = job, book, planned, measure
        self._is_due = True

    def after(self, record: Record) -> int | None:
        """Look at a result; return the peak if its batch is the first of the largest that this rank's replica has made."""
        if not self._is_due:  # of millions of results one is looked at
            return None
        shape = self._job.checkpoint.shape(self._planned.bucket.height, self._planned.bucket.width)
        is_of_largest = (
            record.get("rank") in self._job.topology.replica_ranks
            and record.get("batch_size") == self._planned.images
            and (record.get("height"), record.get("width")) == (shape.height, shape.width)
        )
        if not is_of_largest:
            return None
        self._is_due = False
        measured = self._measure(self._job.device)
        self.compare(measured)
        return measured

    def compare(self, measured: int) -> None:
        """Note how many times what was planned a peak is."""
        factor = self._planned.factor(measured) if self._job.device == "cuda" else None
        if factor is None:
            return
        self._book.measured.note(self._job.machine.name, self._book.key(self._planned.bucket), factor)
        self._planned = self._planned.corrected(factor)  # what is noted next comes on top of it

    def told(self, measured: int) -> str:
        """Return the line that tells of a peak that is another one than planned; "" where it is about the same."""
        if self._job.device != "cuda" or 1 / WORTH_SAYING <= measured / self.num_bytes <= WORTH_SAYING:
            return ""
        return (
            f"A batch of {self._planned.images} took {measured / 2**30:.1f} GiB a rank; {self.num_bytes / 2**30:.1f} were planned. "
            "Later starts and plans go by that."
        )
