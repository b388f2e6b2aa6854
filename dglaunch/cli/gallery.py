"""`dglaunch gallery OUT [--thumbnails 128] [--contact_sheet sheet.png]`: a page to look through the results. Needs no torch."""

from pathlib import Path

from dglaunch.errors import EXIT_DONE, UserError
from dglaunch.output.gallery import write_page
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.sorted_lines import SortedLines
from dglaunch.output.thumbnails import write_contact_sheet
from dglaunch.terminal import Terminal


def gallery(
    folder: Path,
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
    OutputFolder(folder).require_results()
    terminal = Terminal()
    rows = SortedLines(OutputFolder(folder))
    page = write_page(folder, output, thumbnails, rows)
    made = len(rows) - rows.num_failed
    terminal.print(f"{made:,} images and {rows.num_failed:,} failures are in {page}")
    if contact_sheet is not None:
        shown = write_contact_sheet(folder, contact_sheet, rows)
        rest = made - shown
        terminal.print(f"{shown:,} images are on {contact_sheet}" + (f"; {rest:,} more are not" if rest else ""))
    return EXIT_DONE
