"""A folder of results as one HTML page, from the ledger alone.

The page holds its own style, script and data and asks no network for anything. Its pictures are the folder's own files,
fetched when they are scrolled to; only the rows in sight are in the document, so that tens of thousands stay usable. Of more
rows than MOST_IN_PAGE the page holds where they are: in script files beside it (output/gallery_rows.py).
With --thumbnails small copies are in the page itself: it can then be sent around without its folder.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from dglaunch.data.task import Record
from dglaunch.errors import OutputError
from dglaunch.output import gallery_rows
from dglaunch.output.far import far_of
from dglaunch.output.gallery_columns import Beside, RowColumns
from dglaunch.output.gallery_rows import RowFiles
from dglaunch.output.ledger import OutputFolder, object_at
from dglaunch.output.ownership import refuse_to_replace
from dglaunch.output.page_parts import for_script, policy, relative, script_json, url_of, write_pieces
from dglaunch.output.shards import has_shards
from dglaunch.output.sorted_lines import SortedLines
from dglaunch.output.templates import template, text_of

PAGE = "gallery.html"
SCRIPTS = ("shared.js", "rows.js", "seek.js", "grids.js", "gallery.js")
ROWS_AT_A_TIME = 1024
COPIES, MOST_COPIES = 256, 20_000
"""Pixels of the copies that a page of shards has, and of how many images: 5 KB each."""


# -- the page -----------------------------------------------------------------------------------------------------


def write_page(
    folder: Path,
    output: Path | None = None,
    thumbnails: int = 0,
    rows: Sequence[Record] | None = None,
    processes: int = 1,
    advance: Callable[[int], None] = lambda more: None,
) -> Path:
    """Write the page in one step and return its path: `output`, or gallery.html in the folder. Of more than MOST_IN_PAGE rows it
    holds where they are: in files beside it, which are written first (output/gallery_rows.py).

    Args:
        folder: the results.
        output: the page.
        thumbnails: pixels of the pictures in the page; 0 for links to the files.
        rows: ledger lines and failures.
        processes: how many write such files; more than one are forks of this one.
        advance: is told how many more rows are in such files.

    Raises:
        MissingPackage: jinja2 is not there.
        UserError: there is another file of that name, or a ledger cannot be read.
        OutputError: it cannot be written.
    """
    output = output if output is not None else folder / PAGE
    rows = SortedLines(OutputFolder(folder)) if rows is None else rows
    thumbnails = thumbnails or copies_of_shards(folder, rows)
    if lie_beside(folder, len(rows)):
        _write_large(folder, output, thumbnails, rows, processes, advance)
    else:
        write_pieces(output, render(folder, output.parent, thumbnails, rows), "gallery")
        gallery_rows.remove_unnamed(output)
    return output


def lie_beside(folder: Path, count: int) -> bool:
    """Return whether so many rows of a folder lie in files beside its page."""
    return count > gallery_rows.MOST_IN_PAGE and far_of(folder) is None


def _write_large(
    folder: Path,
    output: Path,
    thumbnails: int,
    rows: Sequence[Record],
    processes: int,
    advance: Callable[[int], None],
) -> None:
    """Write a page and the files of its rows."""
    refuse_to_replace(output)
    template("gallery.html", "The gallery")  # what is missing is said before the rows are written
    beside = Beside.of(folder, output.parent, thumbnails)
    try:
        with gallery_rows.written(output, rows, replace(beside, grid=None), processes, advance) as files:
            pieces = _page(folder, data_of_files(beside, len(rows), files), files.token, beside.grid is not None)
            write_pieces(output, pieces, "gallery")
    except OSError as error:
        raise OutputError(f"The gallery {output} cannot be written: {error.strerror or error}.") from None


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
    return _page(folder, page_data(folder, page_folder, thumbnails, rows, only_inside))


def _page(folder: Path, data: Iterator[str], token: str = "", leaves_grids: bool = False) -> Iterator[str]:
    """The page in pieces.

    Args:
        folder: the results.
        data: what its script needs.
        token: of the files that hold its rows; "": it holds them itself.
        leaves_grids: the job has grids, and the page does not show them.
    """
    page = template("gallery.html", "The gallery")
    style, script = text_of("gallery.css"), text_of(*SCRIPTS)
    run = next(iter(OutputFolder(folder).runs().values()), {})
    return page.generate(
        title=Path(str(folder)).resolve().name,
        data=data,
        summary=summary(run),
        settings=run_settings(run),
        style=style,
        script=script,
        policy=policy(style, script, loads=bool(token)),
        token=token,
        most_in_page=gallery_rows.MOST_IN_PAGE,
        leaves_grids=leaves_grids,
    )


def page_data(
    folder: Path, page_folder: Path, thumbnails: int, rows: Iterable[Record], only_inside: bool = False
) -> Iterator[str]:
    """Return all that the script needs, as JSON in pieces: the rows as columns, in which one value stands for a column of
    equal ones. In memory are the columns' texts, not the rows."""
    beside = Beside.of(folder, page_folder, thumbnails, only_inside)
    columns, coming = RowColumns(beside), iter(rows)
    while part := list(islice(coming, ROWS_AT_A_TIME)):
        columns.add(part)
    yield _known(beside, columns.count)[:-1] + ","
    yield from columns.pieces()
    yield "}"


def data_of_files(beside: Beside, count: int, files: RowFiles) -> Iterator[str]:
    """Return the same of a page whose rows are in files."""
    yield _known(replace(beside, grid=None), count)[:-1] + ',"rows":'
    yield from files.pieces()
    yield "}"


def _known(beside: Beside, count: int) -> str:
    """What holds for all rows, as JSON."""
    base = relative(beside.folder, beside.page_folder)
    known = {"count": count, "folder": str(beside.folder), "base": "" if base == Path() else url_of(base) + "/"}
    axes = beside.grid.axes if beside.grid is not None else None
    known["grid"] = [[axis.name, for_script(list(axis.values))] for axis in axes] if axes is not None else None
    known["scores"] = list(beside.scored)
    return script_json(known)


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
