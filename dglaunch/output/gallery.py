"""A folder of results as one HTML page, or as one sheet of small pictures. From the ledger alone; needs no torch.

    dglaunch gallery OUT [--thumbnails 128] [--contact_sheet sheet.png]

The page holds its own style, script and data and asks no network for anything. Its pictures are the folder's own files,
fetched when they are scrolled to; only the rows in sight are in the document, so that tens of thousands stay usable.
With --thumbnails small copies are in the page itself: it can then be sent around without its folder.

Nothing in a ledger is trusted: the data are JSON in which no tag can end, the script writes text, never HTML, and the
page's Content-Security-Policy names the script by its hash, so that no other would run.
"""

import base64
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rich.console import Console
from tyro.conf import Positional

from dglaunch.atomic import replacing
from dglaunch.cli.verify import input_table, need_results, runs
from dglaunch.data.tables import base_of
from dglaunch.errors import EXIT_DONE, MissingPackage, OutputError, UserError
from dglaunch.output.ledger import TEMPORARY, id_of, read_lines

if TYPE_CHECKING:
    from PIL.Image import Image

PAGE = "gallery.html"
LEFT_OUT = ("key", "sha256", "input_sha256", "input_file_names", "file_name")
"""Of a ledger line: long and of no use to a reader, or held elsewhere in the page's data."""
MOST_EXACT = 2**53
SHEET_MOST = 400
SHEET_TILE = 192
SHEET_LABEL = 30
THUMBNAIL_QUALITY = 60
Row = dict[str, Any]


def gallery(
    folder: Positional[Path],
    /,
    output: Path | None = None,
    thumbnails: int = 0,
    contact_sheet: Path | None = None,
) -> int:
    """Write a page to look through a folder of results: search, filter, sort, full images, before and after.

    Args:
        folder: what --output_dir was; the run may still be going on.
        output: the page; default is gallery.html in the folder. Its pictures are found relative to it.
        thumbnails: put pictures of this many pixels into the page itself; 0 shows the folder's files instead.
        contact_sheet: write one image (.png, .jpg, .webp) with small pictures of the results, too.
    """
    if not 0 <= thumbnails <= 512:
        raise UserError(f"--thumbnails {thumbnails}: 0 (none) to 512 pixels; 96 to 160 are usual.")
    need_results(folder)
    console = Console(soft_wrap=True, highlight=False)
    rows = read_rows(folder)
    page = write_page(folder, output, thumbnails, rows)
    failed = sum(map(is_failed, rows))
    console.print(f"{len(rows) - failed:,} images and {failed:,} failures are in {page}")
    if contact_sheet is not None:
        shown = write_contact_sheet(folder, contact_sheet, rows)
        rest = len(rows) - failed - shown
        console.print(f"{shown:,} images are on {contact_sheet}" + (f"; {rest:,} more are not" if rest else ""))
    return EXIT_DONE


# -- what is there ------------------------------------------------------------------------------------------------


def read_rows(folder: Path) -> list[Row]:
    """The ledger's lines in the order of their index, with the failures that no later start made good."""
    done = _lines_by_id(sorted(folder.glob("metadata*.jsonl")))
    failed = _lines_by_id(sorted(folder.glob("failures*.jsonl")))
    rows = {**{n: line for n, line in failed.items() if n not in done}, **done}
    return [rows[n] for n in sorted(rows)]


def _lines_by_id(paths: Iterable[Path]) -> dict[tuple[int, int], Row]:
    lines: dict[tuple[int, int], Row] = {}
    for path in paths:
        for _, line in read_lines(path):
            number, sample = id_of(line)
            if isinstance(number, int) and isinstance(sample, int):
                lines[number, sample] = line
    return lines


def is_failed(row: Row) -> bool:
    """A line of failures.jsonl: it names no file (a column of the table may be called "error")."""
    return "file_name" not in row


def inside(name: Any) -> str | None:
    """A ledger's file name, if it stays in the folder."""
    if not isinstance(name, str) or not name:
        return None
    path = PurePosixPath(name)
    return None if path.is_absolute() or ".." in path.parts else name


def inputs_of(folder: Path, table: Path | None, row: Row) -> list[Path]:
    """The input images of an edit that are still there: the copies of --save_inputs, else the files of its table."""
    copies = [folder / name for name in map(inside, _list(row.get("input_file_names"))) if name]
    originals = [table / name for name in _list(row.get("input_images")) if table is not None and isinstance(name, str)]
    return [path for path in copies if path.is_file()] or [path for path in originals if _is_file(path)]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a path, or with a NUL: what a Parquet table calls its images
        return False


# -- the page -----------------------------------------------------------------------------------------------------


def write_page(
    folder: Path, output: Path | None = None, thumbnails: int = 0, rows: Sequence[Row] | None = None
) -> Path:
    """Write the page in one step and return its path.

    Raises:
        MissingPackage: jinja2 is not there.
        OutputError: it cannot be written.
    """
    output = output if output is not None else folder / PAGE
    text = render(folder, output.parent, thumbnails, read_rows(folder) if rows is None else rows)
    temporary = output.with_name(f"{TEMPORARY}{os.getpid()}-{output.name}")
    try:
        with replacing(output, temporary):
            temporary.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise OutputError(f"The gallery {output} cannot be written: {error.strerror or error}.") from None
    return output


def render(folder: Path, page_folder: Path, thumbnails: int, rows: Sequence[Row]) -> str:
    """The page as text."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise MissingPackage("jinja2", "The gallery", "pip install jinja2") from None

    loader = PackageLoader("dglaunch.output", "page")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    files = resources.files("dglaunch.output") / "page"
    style, script = ((files / name).read_text(encoding="utf-8") for name in ("gallery.css", "gallery.js"))
    run = next(iter(runs(folder).values()), {})
    return environment.get_template("gallery.html").render(
        title=folder.resolve().name,
        data=script_json(page_data(folder, page_folder, thumbnails, rows)),
        summary=summary(run),
        settings=run_settings(run),
        style=style,
        script=script,
        policy=policy(style, script),
    )


def script_json(value: Any) -> str:
    """JSON for inside a <script> element: no tag, comment or entity can begin in it, whatever a prompt says."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def policy(style: str, script: str) -> str:
    """The Content-Security-Policy: this script and style, pictures from the page's own place, and nothing else."""
    digests = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in (script, style)
    ]
    pictures = "img-src 'self' file: data:"
    return f"default-src 'none'; script-src {digests[0]}; style-src {digests[1]}; {pictures}; base-uri 'none'; form-action 'none'"


def page_data(folder: Path, page_folder: Path, thumbnails: int, rows: Sequence[Row]) -> dict[str, Any]:
    """All that the script needs: the rows as columns, in which one value stands for a column of equal ones."""
    names = list(dict.fromkeys(name for row in rows for name in row if name not in LEFT_OUT))
    columns = {name: folded([for_script(row.get(name)) for row in rows]) for name in names}
    table = input_table(folder)
    originals = base_of(table) if table is not None else None
    base = Path(os.path.relpath(folder.resolve(), page_folder.resolve()))
    files = [inside(row.get("file_name")) for row in rows]
    befores = [inputs_of(folder, originals, row) if "input_images" in row else [] for row in rows]
    return {
        "count": len(rows),
        "folder": str(folder),
        "columns": columns,
        "files": files,
        "base": "" if base == Path() else url(base) + "/",
        "inputs": folded([[url(_relative(path, page_folder)) for path in paths] for paths in befores]),
        "thumbnails": make_thumbnails(folder, files, thumbnails) if thumbnails else None,
    }


def folded(values: list[Any]) -> Any:
    """A column, or {"all": value} where every row has the same."""
    same = len(values) > 1 and all(value == values[0] and type(value) is type(values[0]) for value in values)
    return {"all": values[0]} if same else values


def for_script(value: Any) -> Any:
    """A value as JavaScript can read it: whole numbers that a double would round, and NaN, become text."""
    if isinstance(value, dict):
        return {str(name): for_script(item) for name, item in value.items()}
    if isinstance(value, list):
        return [for_script(item) for item in value]
    if isinstance(value, int) and abs(value) > MOST_EXACT:
        return str(value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def url(path: Path) -> str:
    return quote(path.as_posix())


def _relative(path: Path, page_folder: Path) -> Path:
    return Path(os.path.relpath(path.resolve(), page_folder.resolve()))


def summary(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The page's head: what made these, on what, how fast."""
    setting = run.get("settings", {})
    speed = run.get("images_per_s")
    found = {
        "model": setting.get("model_name"),
        "dtype": setting.get("torch_dtype"),
        "device": run.get("device"),
        "outcome": run.get("outcome"),
        "speed": f"{speed:.3g} images/s" if isinstance(speed, (int, float)) and speed else None,
        "started": run.get("started"),
    }
    return [(name, str(value)) for name, value in found.items() if value is not None]


def run_settings(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was set for the whole run, its times and its versions."""
    given = {
        name: entry["value"]
        for name, entry in run.get("config", {}).items()
        if isinstance(entry, dict) and entry.get("from") != "default" and entry.get("value") is not None
    }
    seconds = {f"seconds, {stage}": value for stage, value in run.get("seconds", {}).items()}
    versions = {f"version, {name}": value for name, value in run.get("versions", {}).items()}
    return [(name, str(value)) for name, value in {**given, **seconds, **versions}.items()]


# -- small pictures -----------------------------------------------------------------------------------------------


def small(path: Path, side: int) -> "Image | None":
    """A picture of at most `side` pixels, or None where the file is missing or broken."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image.draft("RGB", (side, side))
            upright = ImageOps.exif_transpose(image).convert("RGB")
            upright.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
            return upright
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow says of a broken file
        return None


def make_thumbnails(folder: Path, files: Sequence[str | None], side: int) -> list[str | None]:
    """A WebP data address for each file that can be read (Pillow decodes outside of Python's lock)."""

    def one(name: str | None) -> str | None:
        image = small(folder / name, side) if name else None
        if image is None:
            return None
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=THUMBNAIL_QUALITY)
        return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(one, files))


def write_contact_sheet(folder: Path, path: Path, rows: Sequence[Row]) -> int:
    """The first images in rows and columns, each with its file name and the beginning of its prompt.

    Returns:
        How many are on it.

    Raises:
        UserError: there are no images, or it is no kind of image that can be written.
        OutputError: it cannot be written.
    """
    from PIL import Image

    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UserError(f"--contact_sheet {path}: name a .png, .jpg or .webp file.")
    found = list(islice(_pictures(folder, rows), SHEET_MOST))
    if not found:
        raise UserError(f"{folder} has no image for --contact_sheet yet.")
    columns = min(len(found), max(4, math.ceil(math.sqrt(len(found) * 1.25))))
    gap, high = 8, SHEET_TILE + SHEET_LABEL
    size = (columns * (SHEET_TILE + gap) + gap, -(-len(found) // columns) * (high + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    for number, (row, picture) in enumerate(found):
        left, top = gap + number % columns * (SHEET_TILE + gap), gap + number // columns * (high + gap)
        middle = left + (SHEET_TILE - picture.width) // 2, top + (SHEET_TILE - picture.height) // 2
        sheet.paste(picture, middle)
        _label(sheet, (left, top + SHEET_TILE + 2), str(row["file_name"]), str(row.get("prompt", "")))
    try:
        sheet.save(path)
    except OSError as error:
        raise OutputError(f"The contact sheet {path} cannot be written: {error.strerror or error}.") from None
    return len(found)


def _pictures(folder: Path, rows: Iterable[Row]) -> "Iterator[tuple[Row, Image]]":
    for row in rows:
        name = inside(row.get("file_name"))
        picture = small(folder / name, SHEET_TILE) if name else None
        if picture is not None:
            if max(picture.size) < SHEET_TILE:
                scale = SHEET_TILE / max(picture.size)
                picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
            yield row, picture


def _label(sheet: "Image", place: tuple[int, int], *lines: str) -> None:
    """Lines of text, cut to a tile's width; Pillow's own font has no letters beyond Latin."""
    from PIL import ImageDraw, ImageFont

    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for number, line in enumerate(lines):
        text = " ".join(line.split()).encode("latin-1", "replace").decode("latin-1")[:200]
        cut = text
        while cut and draw.textlength(cut, font=font) > SHEET_TILE:
            text = text[:-1]
            cut = text.rstrip() + "..."
        draw.text((place[0], place[1] + 14 * number), cut, font=font, fill="#222222" if not number else "#666666")
