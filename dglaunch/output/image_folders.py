"""Folders that a file system bears: the images of a large job lie in 0000, 0001, ... by their index (--files_per_folder).

    0001/010017.png    0001/metadata.jsonl, when the job has ended    run.json: "image_folders": {"files": 10000, ...}

Which folder an image is in follows from its row's index alone, so that it is the same for every rank, every start and every part
of a job. How many there are to a folder is fixed at the job's first start. Indices that stand far apart (ids of a database) do
not make a folder each: the numbers of folders go round.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from dglaunch.data.many import ManyTasks
from dglaunch.data.task import Record, Task
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.lines import FOLDER, file_name_of, id_of

IMAGE_FOLDERS = "image_folders"
"""What run.json calls it."""
DEFAULT = 10_000
"""Files of a folder, once a job has more."""
LEAST_FOLDERS = 10_000
MOST = 2**53
_NUMBER = re.compile(FOLDER, re.ASCII)


@dataclass(frozen=True, slots=True)
class ImageFolders:
    """How the images of a job are shared out among folders."""

    files: int
    """--files_per_folder."""
    samples: int
    """Images of a row, as the first start had it: rows of one folder times samples are its files."""
    count: int
    """Of the folders at most: then their numbers begin anew."""

    @classmethod
    def chosen(cls, files: int | None, num_images: int, samples: int) -> Self | None:
        """Return what a first start makes of --files_per_folder; None: all lie in one folder.

        Args:
            files: the flag; None: 10,000, where there are more images than that; 0: never.
            num_images: of the job.
            samples: images of a row.
        """
        if files == 0 or (files is None and num_images <= DEFAULT):
            return None
        wanted = DEFAULT if files is None else files
        return cls(wanted, samples, max(LEAST_FOLDERS, 10 ** len(str(2 * num_images // wanted))))

    @classmethod
    def read(cls, said: object) -> Self | None:
        """Return what run.json says, or None: it says nothing, or nothing that dglaunch writes."""
        values = [said.get(name) for name in ("files", "samples", "count")] if isinstance(said, dict) else []
        numbers = [value for value in values if isinstance(value, int) and 0 < value < MOST]
        return cls(*numbers) if len(numbers) == len(cls.__slots__) else None

    @property
    def record(self) -> Record:
        """As run.json has it."""
        return {"files": self.files, "samples": self.samples, "count": self.count}

    def place(self, index: int, name: str) -> str:
        """Return the name of an image with its folder: "0001/010017.png".

        Args:
            index: of its row.
            name: of the file.
        """
        return f"{index // self._rows % self.count:04d}/{name}"

    @property
    def _rows(self) -> int:
        return max(self.files // self.samples, 1)

    def names(self, tasks: Sequence[Task]) -> set[str]:
        """Return the names of the folders that the images of some tasks go to."""
        if isinstance(tasks, ManyTasks):
            import numpy as np

            return {f"{number:04d}" for number in np.unique(tasks.indices // self._rows % self.count).tolist()}
        return {self.place(task.index, "").rstrip("/") for task in tasks}


@dataclass(slots=True)
class Told:
    """What the names in a job's ledgers tell of its folders, where run.json is lost."""

    fitting: list[ImageFolders]
    """Of the ways that were asked about, those that all images lie in."""
    least: int
    most: int
    """Rows of a folder, between which every number would have them lie so, if no folder's number has begun anew."""

    @classmethod
    def of(cls, lines: Iterable[Record], asked: Sequence[ImageFolders]) -> Self | None:
        """Look at all lines; None: an image lies in the output folder itself, or there is none.

        Args:
            asked: ways that they may lie in.
        """
        fitting, least, most, is_any = list(asked), 1, MOST - 1, False
        for line in lines:
            (index, _), name = id_of(line), file_name_of(line)
            number, slash, rest = name.partition("/")
            if not slash or not _NUMBER.fullmatch(number):
                return None
            is_any = True
            fitting = [way for way in fitting if way.place(index, rest) == name]
            least = max(least, index // (int(number) + 1) + 1)
            most = min(most, index // int(number)) if int(number) else most
        return cls(fitting, least, most) if is_any else None


def recorded(folder: OutputFolder) -> ImageFolders | None:
    """Return how the job of a folder shares out its images, as its run.json says; None: not at all."""
    return next(filter(None, (ImageFolders.read(run.get(IMAGE_FOLDERS)) for run in folder.all_runs().values())), None)


def common_folders(folders: Iterable[OutputFolder]) -> ImageFolders | None:
    """Return how the images of several parts of a job are shared out together: as those of the first part that has folders."""
    return next(filter(None, map(recorded, folders)), None)
