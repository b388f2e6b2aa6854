"""The finished images of a job in its order, for views: columns, of which a picture is made when it is asked for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self, overload

import numpy as np
import numpy.typing as npt

from dglaunch.data.many import ManyTasks
from dglaunch.data.task import Record, Task
from dglaunch.output import scores
from dglaunch.output.file_index import Ints
from dglaunch.output.images import StoredImage, image_of
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.ledger_index import AT_A_TIME, LedgerIndex
from dglaunch.output.scores import Scores
from dglaunch.output.shards import IMAGE_SHARD


@dataclass(frozen=True, slots=True)
class Picture:
    """One finished image of a job."""

    number: int
    """Its position among all images of the job, those that failed counted too."""
    index: int
    sample: int
    samples: int
    """How many images its row was to have."""
    image: StoredImage
    record: Record
    """Its ledger line, with its scores."""

    @property
    def suffix(self) -> str:
        """Of its file, with the dot."""
        return PurePosixPath(self.image.name).suffix

    @property
    def prompt(self) -> str:
        return str(self.record.get("prompt", ""))


class Pictures(Sequence[Picture]):
    """Finished images, in the order of their job. In memory is where each one's line stands.

    Args:
        index: of the ledgers.
        rows: which of its rows they are.
        numbers: their positions among all images of the job.
        samples: how many images the row of each was to have.
        scored: the scores of the folder.
    """

    def __init__(
        self, index: LedgerIndex, rows: Ints, numbers: Ints, samples: Ints, scored: Mapping[str, Scores]
    ) -> None:
        self._index, self._rows, self._numbers, self._samples, self._scored = index, rows, numbers, samples, scored

    @property
    def folder(self) -> Path:
        """Where they are."""
        return self._index.folder.path

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """The bytes of each."""
        found: npt.NDArray[np.int64] = self._index.columns["size"][self._rows]
        return found

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> Picture: ...
    @overload
    def __getitem__(self, at: slice) -> Self: ...
    def __getitem__(self, at: int | slice) -> Picture | Self:
        if isinstance(at, slice):
            return type(self)(self._index, self._rows[at], self._numbers[at], self._samples[at], self._scored)
        return next(iter(self[at : at + 1]))

    def __iter__(self) -> Iterator[Picture]:
        for first in range(0, len(self), AT_A_TIME):
            part = slice(first, first + AT_A_TIME)
            about = dict(
                zip(self._rows[part].tolist(), zip(self._numbers[part].tolist(), self._samples[part].tolist()))
            )
            for row, record in self._index.records(self._rows[part]):
                yield self._picture(record, *about[row])

    def _picture(self, record: Record, number: int, samples: int) -> Picture:
        index, sample = record["index"], record["sample"]
        image = image_of(self._index.folder.path, record)
        assert image is not None and isinstance(index, int) and isinstance(sample, int), "a line of ours"
        said = {name: value for name, value in record.items() if name != IMAGE_SHARD}
        return Picture(number, index, sample, samples, image, scores.with_scores(said, self._scored))


def finished(folder: Path, tasks: Sequence[Task]) -> Pictures:
    """Return the images of a job that are there in full.

    Raises:
        UserError: a ledger cannot be read.
    """
    opened = OutputFolder(folder)
    index = LedgerIndex.read(opened)
    rows = index.compare().done().rows_of(tasks)
    numbers = np.flatnonzero(rows >= 0)
    return Pictures(index, rows[numbers], numbers, num_samples(tasks)[numbers], scores.read_all(opened))


def num_samples(tasks: Sequence[Task]) -> Ints:
    """Return for each task how many images its row is to have."""
    if isinstance(tasks, ManyTasks):
        indices = tasks.indices
    else:
        indices = np.fromiter((task.index for task in tasks), np.int64, len(tasks))
    _, row, counts = np.unique(indices, return_inverse=True, return_counts=True)
    found: Ints = counts.astype(np.int32)[row]
    return found
