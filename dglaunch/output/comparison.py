"""Several folders of results side by side, as one HTML page: image by image, with what differs between the runs.

The page is made as the gallery is: see there and page_parts.py. Images of the same index and sample stand beside each
other, and the PSNR of each to the first run's is measured on the way. A blind page says nowhere which run an image is of,
and its choices are summed up by choices.py.
"""

import heapq
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from dglaunch.data.images import BadImage
from dglaunch.data.tables import base_of
from dglaunch.data.task import Record
from dglaunch.errors import UserError
from dglaunch.output.choices import short_hash
from dglaunch.output.differences import pixels_of, psnr
from dglaunch.output.gallery import copies_of_shards
from dglaunch.output.images import StoredImage, image_of
from dglaunch.output.inputs import inputs_of_row
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.lines import TaskId, id_of
from dglaunch.output.ownership import path_inside
from dglaunch.output.page_parts import Column, folded_object, policy, relative, script_json, url_of
from dglaunch.output.run_differences import Heading, RowDifferences, headings
from dglaunch.output.sorted_lines import SortedLines
from dglaunch.output.templates import template, text_of
from dglaunch.output.thumbnails import make_thumbnails

if TYPE_CHECKING:
    from dglaunch.output.differences import Pixels

SCRIPTS = ("shared.js", "compare.js")
STYLES = ("gallery.css", "compare.css")
ROWS_AT_A_TIME = 512
MOST_RUNS = 8
EQUAL = "equal"
"""What stands for the PSNR of equal images, which has none."""
Progress = Callable[[int], None]
Row = tuple[TaskId, list[Record | None]]
"""An image's id, and the line of each run about it."""


@dataclass(frozen=True, slots=True)
class Run:
    """One of the folders that are compared."""

    folder: Path
    name: str
    lines: SortedLines
    record: Record
    """Its run.json."""
    table_folder: Path | None
    """What the paths of an edit's input images are relative to."""


@dataclass(slots=True)
class Comparison:
    """Runs side by side, and what is found out about them while their page is made."""

    runs: Sequence[Run]
    thumbnails: int = 0
    """Pixels of the pictures in the page; 0 for links to the files."""
    blind: bool = False
    rows: RowDifferences = field(init=False)
    num_in_all: int = field(default=0, init=False)
    """Images that every run has."""

    def __post_init__(self) -> None:
        self.rows = RowDifferences(len(self.runs))

    @classmethod
    def of(cls, folders: Sequence[Path], thumbnails: int = 0, blind: bool = False) -> "Comparison":
        """Return the comparison of output folders.

        Raises:
            UserError: one is no folder of results, is given twice, or they are too many.
        """
        resolved = [folder.resolve() for folder in folders]
        if twice := {str(folder) for folder in folders if resolved.count(folder.resolve()) > 1}:
            raise UserError(f"{' and '.join(sorted(twice))} are one folder; name the folders of different runs.")
        if len(folders) > MOST_RUNS:
            raise UserError(f"{len(folders)} folders are too many to stand side by side; name up to {MOST_RUNS}.")
        runs: list[Run] = []
        for folder, name in zip(folders, names_of(resolved)):
            opened = OutputFolder(folder)
            opened.require_results()
            record = next(iter(opened.runs().values()), {})
            table = opened.input_table()
            runs.append(Run(folder, name, SortedLines(opened), record, base_of(table) if table else None))
        for run in runs[1:]:
            if not run.lines.num_shared(runs[0].lines):
                raise UserError(
                    f"{runs[0].folder} and {run.folder} have no index in common, so nothing of them can stand side by side. "
                    "Name the folders of runs over the same prompts."
                )
        if blind:  # so that their order in the page's data says nothing
            secrets.SystemRandom().shuffle(runs)
        return cls(runs, thumbnails, blind)

    @property
    def num_rows(self) -> int:
        """How many images there may be: as many as the largest run has."""
        return max(len(run.lines) for run in self.runs)

    @property
    def headings(self) -> list[Heading]:
        """What differs between the runs; of what the images' own lines say, that counts."""
        of_lines = self.rows.constant()
        named = {heading.name for heading in of_lines} | set(self.rows.by_row())
        return of_lines + [
            heading for heading in headings([run.record for run in self.runs]) if heading.name not in named
        ]

    def render(self, page_folder: Path, progress: Progress, bases: Mapping[Path, str] | None = None) -> Iterator[str]:
        """Return the page as text, in pieces.

        Args:
            page_folder: where the page will lie; its links are relative to it.
            progress: is told of each image whose differences are measured.
            bases: the address of each folder, if not its path.
        """
        style, script = text_of(*STYLES), text_of(*SCRIPTS)
        is_served = bases is not None
        if bases is None:
            self.thumbnails = self.thumbnails or max(copies_of_shards(run.folder, run.lines) for run in self.runs)
            bases = {run.folder: url_of(relative(run.folder, page_folder)) + "/" for run in self.runs}
        title = (
            f"Blind comparison of {len(self.runs)} runs" if self.blind else " | ".join(run.name for run in self.runs)
        )
        befores = _Befores(self.runs, bases, None if is_served else page_folder)
        return template("compare.html", "The comparison").generate(
            title=title,
            data=self._data(bases, befores, progress),
            style=style,
            script=script,
            policy=policy(style, script),
        )

    # -- what the script needs ------------------------------------------------------------------------------------

    def _data(self, bases: Mapping[Path, str], befores: "_Befores", progress: Progress) -> Iterator[str]:
        """JSON in pieces, as `gallery.page_data`; what differs is known at its end."""
        columns = {name: Column() for name in ("index", "sample", "prompt", "apart", "before")}
        of_runs = [_RunColumns() for _ in self.runs]
        count = 0
        for part, distances in self._measured(progress):
            self._add_pictures(part, of_runs)
            for (task, lines), apart in zip(part, distances):
                present = [line for line in lines if line is not None]
                self.num_in_all += all(line is not None and "file_name" in line for line in lines)
                before = None if self.blind and self.thumbnails else befores.of(lines)
                for name, value in zip(columns, (*task, present[0].get("prompt"), _furthest(apart), before)):
                    columns[name].add(value)
                differing = self.rows.add(lines)
                for number, (each, line) in enumerate(zip(of_runs, lines)):
                    each.add(count, line, {name: values[number] for name, values in differing.items()}, apart[number])
                count += 1
        known: Record = {"count": count, "blind": secrets.token_hex(8) if self.blind else None}
        known["headings"] = [] if self.blind else [[item.name, list(item.values)] for item in self.headings]
        known["by_row"] = [] if self.blind else self.rows.by_row()
        yield script_json(known)[:-1] + ',"columns":'
        yield from folded_object(columns)
        yield ',"runs":['
        for number, (run, each) in enumerate(zip(self.runs, of_runs)):
            yield "," * bool(number)
            yield from each.json(run, bases[run.folder], self.blind, bool(self.thumbnails))
        yield "]}"

    def _measured(self, progress: Progress) -> Iterator[tuple[list[Row], list[list[object]]]]:
        """The rows in parts, with the PSNR of each image to the first run's: measured in threads, for Pillow and numpy work
        outside of Python's lock."""
        coming = joined([run.lines for run in self.runs])
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            while part := list(islice(coming, ROWS_AT_A_TIME)):
                found: list[list[object]] = []
                for apart in pool.map(self._distances, part):
                    found.append(apart)
                    progress(1)
                yield part, found

    def _distances(self, row: Row) -> list[object]:
        """How far the image of each run is from the first's: dB, EQUAL, or why that is not known; None where there is none."""
        first, *others = [
            image_of(run.folder, line) if line is not None else None for run, line in zip(self.runs, row[1])
        ]
        if first is None or not any(others):
            return [None] * len(self.runs)
        try:
            reference = pixels_of(first.read_own())
        except (OSError, ValueError):
            return [None, *(["the first is not there, or damaged"] * len(others))]
        return [None, *(None if image is None else _psnr(reference, image) for image in others)]

    def _add_pictures(self, part: Sequence[Row], of_runs: "Sequence[_RunColumns]") -> None:
        if self.thumbnails:
            for number, (run, each) in enumerate(zip(self.runs, of_runs)):
                lines = [lines[number] for _, lines in part]
                images = [image_of(run.folder, line) if line is not None else None for line in lines]
                for picture in make_thumbnails(images, self.thumbnails):
                    each.pictures.add(picture)


@dataclass(frozen=True, slots=True)
class _Befores:
    """Where the input images of edits are."""

    runs: Sequence[Run]
    bases: Mapping[Path, str]
    page_folder: Path | None
    """None: the page is served, and shows no file outside of the runs' folders."""

    def of(self, lines: Sequence[Record | None]) -> str | None:
        """Return the address of a row's first input image, if any run still has it."""
        for run, line in zip(self.runs, lines):
            if line is None:
                continue
            for path in inputs_of_row(run.folder, run.table_folder if self.page_folder is not None else None, line)[:1]:
                if path.is_relative_to(run.folder):
                    return self.bases[run.folder] + url_of(path.relative_to(run.folder))
                return url_of(relative(path, self.page_folder)) if self.page_folder is not None else None
        return None


class _RunColumns:
    """What the script needs of one run."""

    def __init__(self) -> None:
        self.pictures = Column()
        self._values: dict[str, Column] = {}
        self._columns = {name: Column() for name in ("files", "errors", "psnr", "hashes", "width", "height")}

    def add(self, count: int, line: Record | None, differing: Record, apart: object) -> None:
        """Add a row; `count` were before it."""
        said = line or {}
        of_row = (
            path_inside(said.get("file_name")),
            said.get("error") if line and "file_name" not in line else None,
            apart,
        )
        sizes = said.get("width"), said.get("height")
        for column, value in zip(self._columns.values(), (*of_row, short_hash(said), *sizes)):
            column.add(value)
        self._values |= {name: Column(count) for name in differing if name not in self._values}
        for name, column in self._values.items():
            column.add(differing.get(name))

    def json(self, run: Run, base: str, blind: bool, has_pictures: bool) -> Iterator[str]:
        """Return it as an object. A blind page has the pictures' addresses only where it does not hold the pictures itself."""
        hidden = {"psnr", "hashes"} - ({"hashes"} if blind else {"psnr"})
        if blind and has_pictures:
            hidden.add("files")
        named = {"name": run.name, "folder": str(run.folder)} if not blind else {}
        yield script_json(named | {"base": "" if "files" in hidden else base})[:-1] + ","
        yield '"values":'
        yield from folded_object({} if blind else self._values)
        if has_pictures:
            yield ',"thumbnails":'
            yield from self.pictures.whole()
        for name, column in self._columns.items():
            if name not in hidden:
                yield f',"{name}":'
                yield from column.folded()
        yield "}"


def _psnr(reference: "Pixels", image: StoredImage) -> object:
    try:
        found = psnr(reference, pixels_of(image.read_own()))
    except BadImage:
        return "damaged"
    except ValueError as error:
        return str(error)
    except OSError:
        return "the file is not there"
    return EQUAL if found == float("inf") else round(found, 2)


def _furthest(apart: Iterable[object]) -> object:
    """The least PSNR of a row; EQUAL where all are equal."""
    known = [value for value in apart if value is not None]
    numbers = [value for value in known if isinstance(value, float)]
    return min(numbers) if numbers else next((value for value in known if value != EQUAL), known[0] if known else None)


def joined(ledgers: Sequence[Iterable[Record]]) -> Iterator[Row]:
    """Yield what several ledgers, each in the order of its images, say of each image."""
    streams = [_numbered(number, lines) for number, lines in enumerate(ledgers)]
    for task, found in groupby(heapq.merge(*streams, key=itemgetter(0)), key=itemgetter(0)):
        of_run = {number: record for _, number, record in found}
        yield task, [of_run.get(number) for number in range(len(ledgers))]


def _numbered(number: int, lines: Iterable[Record]) -> Iterator[tuple[TaskId, int, Record]]:
    return ((id_of(record), number, record) for record in lines)


def names_of(folders: Sequence[Path]) -> list[str]:
    """Return a name for each of several folders: its own, with as many of those above it as tell them apart."""
    for depth in range(1, 1 + max(len(folder.parts) for folder in folders)):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names
