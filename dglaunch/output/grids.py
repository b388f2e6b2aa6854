"""A job with --grid: which cell of its grid each image is.

run.json says the axes, `"grid": {"guidance_scale": [2, 4, 7], "seed": [1, 2]}`. Row r of the job's table makes the images
r * 6 to r * 6 + 5, the first axis slowest, and each line of the ledger says its own values of the axes.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

from dglaunch.data.task import Record
from dglaunch.output.ledger import OutputFolder, object_at

MOST_CELLS = 10_000
"""Of a grid; a run.json that says more was not written by a job of ours."""


class Axis(NamedTuple):
    """What varies along one direction of a grid."""

    name: str
    values: tuple[object, ...]


class Place(NamedTuple):
    """Where an image stands."""

    line: int
    """The row of the job's table, whose grid it is."""
    cell: int
    """Counted through the axes, the first slowest."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The axes of a job's grids, in their order."""

    axes: tuple[Axis, ...]

    @property
    def num_cells(self) -> int:
        return math.prod(len(axis.values) for axis in self.axes)

    @classmethod
    def of(cls, folder: OutputFolder) -> Self | None:
        """Return the grid that a folder's run.json names, or None: the job has none. Anyone may have written it."""
        for run in folder.runs().values():
            axes = tuple(
                Axis(name, tuple(values))
                for name, values in object_at(run, "grid").items()
                if isinstance(values, list) and values
            )
            grid = cls(axes)
            if axes and len(axes) == len(object_at(run, "grid")) and grid.num_cells <= MOST_CELLS:
                return grid
        return None

    def place(self, record: Record) -> Place | None:
        """Return where the image of a ledger line stands; None for one that says other values than its cell has."""
        index = record["index"]
        assert isinstance(index, int), "a line of the ledger has one"
        line, cell = divmod(index, self.num_cells)
        here = self.values(cell)
        return Place(line, cell) if all(record.get(name, value) == value for name, value in here.items()) else None

    def values(self, cell: int) -> dict[str, object]:
        """Return what the axes are in a cell."""
        found: dict[str, object] = {}
        for axis in reversed(self.axes):
            cell, number = divmod(cell, len(axis.values))
            found[axis.name] = axis.values[number]
        return found
