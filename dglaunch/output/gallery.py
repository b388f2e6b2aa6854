"""A folder of results as one HTML page, from the ledger alone.

The page holds its own style, script and data and asks no network for anything. Its pictures are the folder's own files,
fetched when they are scrolled to; only the rows in sight are in the document, so that tens of thousands stay usable.
With --thumbnails small copies are in the page itself: it can then be sent around without its folder.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from dglaunch.data.tables import base_of
from dglaunch.data.task import Record
from dglaunch.output import scores
from dglaunch.output.grids import Grid
from dglaunch.output.images import StoredImage, image_of
from dglaunch.output.inputs import inputs_of_row
from dglaunch.output.ledger import OutputFolder, object_at
from dglaunch.output.page_parts import (
    Column,
    folded_object,
    for_script,
    policy,
    relative,
    script_json,
    url_of,
    write_pieces,
)
from dglaunch.output.shards import has_shards
from dglaunch.output.sorted_lines import SortedLines
from dglaunch.output.templates import template, text_of
from dglaunch.output.thumbnails import make_thumbnails

PAGE = "gallery.html"
SCRIPTS = ("shared.js", "grids.js", "gallery.js")
LEFT_OUT = ("key", "sha256", "input_sha256", "mask_sha256", "control_sha256", "input_file_names", "file_name")
"""Of a ledger line: long and of no use to a reader, or held elsewhere in the page's data."""
ROWS_AT_A_TIME = 1024
COPIES, MOST_COPIES = 256, 20_000
"""Pixels of the copies that a page of shards has, and of how many images: 5 KB each."""


# -- the page -----------------------------------------------------------------------------------------------------


def write_page(
    folder: Path, output: Path | None = None, thumbnails: int = 0, rows: Sequence[Record] | None = None
) -> Path:
    """Write the page in one step and return its path: `output`, or gallery.html in the folder.

    Raises:
        MissingPackage: jinja2 is not there.
        UserError: there is another file of that name, or a ledger cannot be read.
        OutputError: it cannot be written.
    """
    output = output if output is not None else folder / PAGE
    rows = SortedLines(OutputFolder(folder)) if rows is None else rows
    thumbnails = thumbnails or copies_of_shards(folder, rows)
    write_pieces(output, render(folder, output.parent, thumbnails, rows), "gallery")
    return output


def copies_of_shards(folder: Path, rows: Sequence[Record]) -> int:
    """Return how large the copies in a page are of images that are in shards, which a page cannot show; 0 where they are files,
    or too many."""
    return COPIES if has_shards(folder) and len(rows) <= MOST_COPIES else 0


def render(
    folder: Path, page_folder: Path, thumbnails: int, rows: Iterable[Record], only_inside: bool = False
) -> Iterator[str]:
    """Return the page as text, in pieces.

    Args:
        folder: the results.
        page_folder: where the page will lie; its links are relative to it.
        thumbnails: pixels of the pictures in the page; 0 for links to the files.
        rows: ledger lines and failures.
        only_inside: of an edit's input images only the copies in the folder are shown.
    """
    page = template("gallery.html", "The gallery")
    style, script = text_of("gallery.css"), text_of(*SCRIPTS)
    run = next(iter(OutputFolder(folder).runs().values()), {})
    return page.generate(
        title=Path(str(folder)).resolve().name,
        data=page_data(folder, page_folder, thumbnails, rows, only_inside),
        summary=summary(run),
        settings=run_settings(run),
        style=style,
        script=script,
        policy=policy(style, script),
    )


def page_data(
    folder: Path, page_folder: Path, thumbnails: int, rows: Iterable[Record], only_inside: bool = False
) -> Iterator[str]:
    """Return all that the script needs, as JSON in pieces: the rows as columns, in which one value stands for a column of
    equal ones. In memory are the columns' texts, not the rows."""
    table = OutputFolder(folder).input_table()
    table_folder = base_of(table) if table and not only_inside else None
    base = relative(folder, page_folder)
    grid, scored = Grid.of(OutputFolder(folder)), scores.read_all(OutputFolder(folder))
    columns: dict[str, Column] = {}
    files, inputs, pictures, befores = Column(), Column(), Column(), Column()
    lines, cells = Column(), Column()
    count, coming = 0, iter(rows)
    while part := [scores.with_scores(row, scored) for row in islice(coming, ROWS_AT_A_TIME)]:
        images = [image_of(folder, row) for row in part]
        found = [inputs_of_row(folder, table_folder, row) for row in part]
        if thumbnails:
            _add_thumbnails(images, thumbnails, pictures)
            _add_thumbnails([StoredImage(p[0].parent, p[0].name) if p else None for p in found], thumbnails, befores)
        for row, image, paths in zip(part, images, found):
            columns |= {key: Column(count) for key in row if key not in columns and key not in LEFT_OUT}
            for key, column in columns.items():
                column.add(row.get(key))
            files.add(image and image.name)
            inputs.add([url_of(relative(path, page_folder)) for path in paths])
            place = grid.place(row) if grid is not None else None
            lines.add(place and place.line)
            cells.add(place and place.cell)
            count += 1
    known = {"count": count, "folder": str(folder), "base": "" if base == Path() else url_of(base) + "/"}
    known["grid"] = [[axis.name, for_script(list(axis.values))] for axis in grid.axes] if grid is not None else None
    known["scores"] = list(scored)
    yield script_json(known)[:-1] + ',"columns":'
    yield from folded_object(columns)
    yield ',"files":'
    yield from files.whole()
    yield ',"thumbnails":'
    yield from pictures.whole() if thumbnails else ["null"]
    for name, column in {"inputs": inputs, "input_thumbnails": befores, "lines": lines, "cells": cells}.items():
        yield f',"{name}":'
        yield from column.folded()
    yield "}"


def _add_thumbnails(images: Sequence[StoredImage | None], side: int, column: Column) -> None:
    for picture in make_thumbnails(images, side):
        column.add(picture)


def summary(run: Record) -> list[tuple[str, str]]:
    """Return the page's head: what made these, on what, how fast."""
    settings, speed = object_at(run, "settings"), run.get("images_per_s")
    shown = {
        "model": settings.get("model_name"),
        "dtype": settings.get("torch_dtype"),
        "device": run.get("device"),
        "outcome": run.get("outcome"),
        "speed": f"{speed:.3g} images/s" if isinstance(speed, int | float) and 0 < speed < 1e12 else None,
        "started": run.get("started"),
    }
    return [(name, str(value)) for name, value in shown.items() if value is not None]


def run_settings(run: Record) -> list[tuple[str, str]]:
    """Return what was set for the whole run, its times and its versions."""
    shown: dict[str, object] = {}
    for name, entry in object_at(run, "config").items():
        if isinstance(entry, Mapping) and entry.get("from") != "default" and entry.get("value") is not None:
            shown[name] = entry["value"]
    shown |= {f"seconds, {stage}": value for stage, value in object_at(run, "seconds").items()}
    shown |= {f"version, {name}": value for name, value in object_at(run, "versions").items()}
    return [(name, str(value)) for name, value in shown.items()]
