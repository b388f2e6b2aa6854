"""The rows of a gallery as columns for its script: of a whole page, or of one of the files that hold the rows of a large job."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dglaunch.data.tables import base_of
from dglaunch.data.task import Record
from dglaunch.output import scores
from dglaunch.output.grids import Grid
from dglaunch.output.images import StoredImage, image_of
from dglaunch.output.inputs import inputs_of_row
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.page_parts import Column, folded_object, relative, url_of
from dglaunch.output.scores import Scores
from dglaunch.output.thumbnails import make_thumbnails

LEFT_OUT = ("key", "sha256", "input_sha256", "mask_sha256", "control_sha256", "input_file_names", "file_name")
"""Of a ledger line: long and of no use to a reader, or held elsewhere in the page's data."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What there is to a folder's rows beside their lines."""

    folder: Path
    """The results."""
    page_folder: Path
    """Where the page will lie; its links are relative to it."""
    thumbnails: int
    """Pixels of the pictures in the page; 0 for links to the files."""
    table_folder: Path | None
    """Of the table that an edit's input images are found from."""
    grid: Grid | None
    scored: dict[str, Scores]

    @classmethod
    def of(cls, folder: Path, page_folder: Path, thumbnails: int, only_inside: bool = False) -> Self:
        """Read it.

        Args:
            only_inside: of an edit's input images only the copies in the folder are shown.
        """
        opened = OutputFolder(folder)
        table = opened.input_table()
        table_folder = base_of(table) if table and not only_inside else None
        return cls(folder, page_folder, thumbnails, table_folder, Grid.of(opened), scores.read_all(opened))


class RowColumns:
    """Rows as columns, in which one value stands for a column of equal ones. In memory are the columns' texts, not the rows."""

    def __init__(self, beside: Beside) -> None:
        self._beside = beside
        self._columns: dict[str, Column] = {}
        self._files, self._inputs, self._pictures, self._befores = Column(), Column(), Column(), Column()
        self._lines, self._cells = Column(), Column()
        self.count = self.num_failed = 0

    def add(self, rows: Sequence[Record]) -> None:
        """Add some rows, which are held as long as that takes."""
        beside = self._beside
        rows = [scores.with_scores(row, beside.scored) for row in rows]
        images = [image_of(beside.folder, row) for row in rows]
        found = [inputs_of_row(beside.folder, beside.table_folder, row) for row in rows]
        if beside.thumbnails:
            before = [StoredImage(paths[0].parent, paths[0].name) if paths else None for paths in found]
            _add_thumbnails(images, beside.thumbnails, self._pictures)
            _add_thumbnails(before, beside.thumbnails, self._befores)
        new = (name for row in rows for name in row if name not in self._columns and name not in LEFT_OUT)
        self._columns |= {name: Column(self.count) for name in dict.fromkeys(new)}
        for name, column in self._columns.items():
            column.extend([row.get(name) for row in rows])
        self._files.extend([image and image.name for image in images])
        self._inputs.extend([[url_of(relative(path, beside.page_folder)) for path in paths] for paths in found])
        places = [beside.grid.place(row) if beside.grid is not None else None for row in rows]
        self._lines.extend([place and place.line for place in places])
        self._cells.extend([place and place.cell for place in places])
        self.count += len(rows)
        self.num_failed += images.count(None)

    def pieces(self) -> Iterator[str]:
        """Return them as the members of a JSON object, in pieces."""
        yield '"columns":'
        yield from folded_object(self._columns)
        yield ',"files":'
        yield from self._files.whole()
        yield ',"thumbnails":'
        yield from self._pictures.whole() if self._beside.thumbnails else ["null"]
        others = {"inputs": self._inputs, "input_thumbnails": self._befores, "lines": self._lines, "cells": self._cells}
        for name, column in others.items():
            yield f',"{name}":'
            yield from column.folded()


def _add_thumbnails(images: Sequence[StoredImage | None], side: int, column: Column) -> None:
    column.extend(make_thumbnails(images, side))
