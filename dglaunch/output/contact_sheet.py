"""Many results on one image: in rows and columns, or, of a job with --grid, as its grids with labels on their axes."""

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING

from dglaunch.atomic import atomic_write
from dglaunch.data.task import Record
from dglaunch.errors import OutputError, UserError
from dglaunch.output.grids import Axis, Grid
from dglaunch.output.images import image_of
from dglaunch.output.ledger import OutputFolder, format_of
from dglaunch.output.lettering import fitting
from dglaunch.output.lines import file_name_of
from dglaunch.output.ownership import CONTACT_SHEET, refuse_to_replace
from dglaunch.output.run_differences import shown
from dglaunch.output.thumbnails import small

if TYPE_CHECKING:
    from PIL.Image import Image

MOST = 400
"""Images on a contact sheet; a grid is on it as a whole, if it is the only one."""
PREVIEW_MOST, PREVIEW_WIDTH = 24, 600
"""Images of a result that a notebook shows (1 MB of photographs), and pixels for its line of text."""
TILE, LABEL, GAP = 192, 30, 8
LEAST_TILE = 16
LONGEST_SIDE = 16_000
"""Pixels of a sheet; WebP has no more than 16,383."""
AXIS_WIDTH, AXIS_HEIGHT, TITLE_HEIGHT = 150, 20, 26
INK, GRAY, EMPTY = "#222222", "#666666", "#e4e7eb"


def write_contact_sheet(folder: Path, path: Path, rows: Iterable[Record]) -> int:
    """Write one image with the first results, each with its file name and the beginning of its prompt; or with the first grids
    of a job that has them.

    Returns:
        How many are on it.

    Raises:
        UserError: there are no images, it is no kind of image that can be written, or there is another file.
        OutputError: it cannot be written.
    """
    from dglaunch.output.encode import encode

    output_format = format_of(path)
    if output_format is None:
        raise UserError(f"--contact_sheet {path}: name a .png, .jpg or .webp file.")
    refuse_to_replace(path)
    grid = Grid.of(OutputFolder(folder))
    sheet, count = _grids(folder, grid, rows) if grid is not None else _tiles(folder, rows)
    if sheet is None:
        raise UserError(f"{folder} has no image for --contact_sheet yet.")
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(encode(sheet, output_format, {CONTACT_SHEET: count}))
    except OSError as error:
        raise OutputError(f"The contact sheet {path} cannot be written: {error.strerror or error}.") from None
    return count


def preview(folder: Path, rows: Iterable[Record], title: str) -> bytes | None:
    """Return a PNG with the first results in rows and columns, under a line of text; None if none can be read."""
    from PIL import Image

    sheet, _ = _tiles(folder, rows, PREVIEW_MOST)
    if sheet is None:
        return None
    whole = Image.new("RGB", (max(sheet.width, PREVIEW_WIDTH), sheet.height + TITLE_HEIGHT), "white")
    whole.paste(sheet, (0, TITLE_HEIGHT))
    _write(whole, GAP, GAP, title, whole.width - 2 * GAP)
    buffer = io.BytesIO()
    whole.save(buffer, "PNG")
    return buffer.getvalue()


def _picture(folder: Path, row: Record, side: int) -> "Image | None":
    """An image that can be read, as large as a tile; or None."""
    stored = image_of(folder, row)
    picture = small(stored, side) if stored is not None else None
    if picture is None or max(picture.size) >= side:
        return picture
    scale = side / max(picture.size)
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))


def _paste(sheet: "Image", picture: "Image", left: int, top: int, side: int) -> None:
    sheet.paste(picture, (left + (side - picture.width) // 2, top + (side - picture.height) // 2))


def _write(sheet: "Image", left: int, top: int, line: str, width: int, color: str = INK, anchor: str = "la") -> None:
    """A line of text, cut to a width."""
    from PIL import ImageDraw, ImageFont

    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    text = fitting(" ".join(line.split())[:400], width, draw, font)
    draw.text((left, top), text, font=font, fill=color, anchor=anchor)


# -- in rows and columns ------------------------------------------------------------------------------------------


def _tiles(folder: Path, rows: Iterable[Record], most: int = MOST) -> "tuple[Image | None, int]":
    from PIL import Image

    found = ((row, _picture(folder, row, TILE)) for row in rows)
    tiles = list(islice(((row, picture) for row, picture in found if picture is not None), most))
    if not tiles:
        return None, 0
    columns = min(len(tiles), max(4, math.ceil(math.sqrt(len(tiles) * 1.25))))
    width, height = TILE + GAP, TILE + LABEL + GAP
    sheet = Image.new("RGB", (columns * width + GAP, math.ceil(len(tiles) / columns) * height + GAP), "white")
    for number, (row, picture) in enumerate(tiles):
        left, top = GAP + number % columns * width, GAP + number // columns * height
        _paste(sheet, picture, left, top, TILE)
        _write(sheet, left, top + TILE + 2, file_name_of(row), TILE)
        _write(sheet, left, top + TILE + 16, str(row.get("prompt", "")), TILE, GRAY)
    return sheet, len(tiles)


# -- as grids -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sizes:
    """How a grid is drawn: its last axis goes across, all others go down."""

    grid: Grid
    tile: int

    @property
    def across(self) -> Axis:
        return self.grid.axes[-1]

    @property
    def down(self) -> Sequence[Axis]:
        return self.grid.axes[:-1]

    @property
    def lines(self) -> int:
        return self.grid.num_cells // len(self.across.values)

    @property
    def axis_width(self) -> int:
        """Of the labels of what goes down."""
        return AXIS_WIDTH if self.down else 0

    @property
    def width(self) -> int:
        return self.axis_width + len(self.across.values) * (self.tile + GAP)

    @property
    def height(self) -> int:
        return TITLE_HEIGHT + AXIS_HEIGHT + self.lines * (self.tile + GAP) + GAP

    @classmethod
    def of(cls, grid: Grid) -> "_Sizes":
        """Return the largest tiles with which one grid is no larger than a picture may be."""
        across = len(grid.axes[-1].values)
        down = grid.num_cells // across
        room = min((LONGEST_SIDE - AXIS_WIDTH - 2 * GAP) // across, (LONGEST_SIDE - 100) // down) - GAP
        if room < LEAST_TILE:
            raise UserError(
                f"--contact_sheet: a grid of {across} times {down} images is too large for one picture; the page shows it."
            )
        return cls(grid, min(TILE, room))


def _grids(folder: Path, grid: Grid, rows: Iterable[Record]) -> "tuple[Image | None, int]":
    """The first grids that have an image, one below the other, side by side where they are small."""
    from PIL import Image

    sizes = _Sizes.of(grid)
    most = max(1, MOST // grid.num_cells)
    blocks = list(islice(_blocks(grid, rows), most))
    beside = max(
        1, min(LONGEST_SIDE // (sizes.width + GAP), round(math.sqrt(len(blocks) * sizes.height / sizes.width)))
    )
    blocks = blocks[: beside * max(1, (LONGEST_SIDE - GAP) // sizes.height)]
    beside = min(beside, max(1, len(blocks)))
    size = GAP + beside * (sizes.width + GAP), GAP + math.ceil(len(blocks) / beside) * sizes.height
    sheet = Image.new("RGB", size, "white")
    count = 0
    for number, block in enumerate(blocks):
        left, top = GAP + number % beside * (sizes.width + GAP), GAP + number // beside * sizes.height
        count += _draw_grid(sheet, folder, sizes, block, left, top)
    return (sheet, count) if count else (None, 0)


def _blocks(grid: Grid, rows: Iterable[Record]) -> Iterator[dict[int, Record]]:
    """The lines of each grid by cell: rows of one grid follow one another, but its samples do not."""
    line, samples = -1, dict[object, dict[int, Record]]()
    for row in rows:
        place = grid.place(row)
        if place is None:
            continue
        if place.line != line:
            yield from samples.values()
            line, samples = place.line, {}
        samples.setdefault(row["sample"], {})[place.cell] = row
    yield from samples.values()


def _draw_grid(sheet: "Image", folder: Path, sizes: _Sizes, block: dict[int, Record], left: int, top: int) -> int:
    """One grid with its title and its axes; returns how many images are in it."""
    columns = len(sizes.across.values)
    first = next(iter(block.values()))
    _write(sheet, left, top + 4, str(first.get("prompt", "")), sizes.width)
    inner = left + sizes.axis_width, top + TITLE_HEIGHT + AXIS_HEIGHT
    for column, value in enumerate(sizes.across.values):
        middle = inner[0] + column * (sizes.tile + GAP) + sizes.tile // 2
        _write(sheet, middle, inner[1] - 16, f"{sizes.across.name} {shown(value)}", sizes.tile, GRAY, "ma")
    for line, values in enumerate(product(*(axis.values for axis in sizes.down))):
        middle = inner[1] + line * (sizes.tile + GAP) + sizes.tile // 2
        for number, (axis, value) in enumerate(zip(sizes.down, values)):
            place = inner[0] - GAP, middle + 14 * number - 7 * len(values)
            _write(sheet, *place, f"{axis.name} {shown(value)}", AXIS_WIDTH - 2 * GAP, GRAY, "ra")
    return sum(
        _draw_cell(
            sheet,
            folder,
            sizes.tile,
            block.get(cell),
            inner[0] + cell % columns * (sizes.tile + GAP),
            inner[1] + cell // columns * (sizes.tile + GAP),
        )
        for cell in range(sizes.grid.num_cells)
    )


def _draw_cell(sheet: "Image", folder: Path, side: int, row: Record | None, left: int, top: int) -> bool:
    """An image, or why there is none."""
    picture = _picture(folder, row, side) if row is not None else None
    if picture is not None:
        _paste(sheet, picture, left, top, side)
        return True
    sheet.paste(EMPTY, (left, top, left + side, top + side))
    text = "not made" if row is None else "failed" if "error" in row and "file_name" not in row else "not there"
    _write(sheet, left + side // 2, top + side // 2, text, side, GRAY, "mm")
    return False
