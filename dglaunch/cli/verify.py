"""`dglaunch verify OUT [--repair]`: check a folder of results, file by file. Needs no torch."""

from collections.abc import Sequence
from pathlib import Path

from dglaunch.addresses import path_or_address
from dglaunch.errors import EXIT_BROKEN, EXIT_DONE
from dglaunch.output.far import opened_to_read
from dglaunch.output.inspection import describe_missing, inspect
from dglaunch.output.inspection import repair as repair_folder
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.ownership import ASIDE
from dglaunch.terminal import Terminal

SHOWN = 20
"""Problems that are printed."""


def verify(folder: Path, /, repair: bool = False) -> int:
    """Check a finished or stopped folder: ledger lines, files, sizes, sha256, pixels, and that none is missing.

    Exit code 0: all is right; 1: something is wrong or missing.

    Args:
        folder: what --output_dir was.
        repair: take wrong lines out and move wrong files to .dglaunch-aside, so that the next start of the job makes those
            images again.
    """
    terminal = Terminal()
    output_folder = OutputFolder(opened_to_read(folder, with_open_shards=True))
    output_folder.require_results()
    with output_folder.keep_runs_out(changes=repair):
        found = inspect(output_folder)
        if repair and found.problems:
            repair_folder(output_folder, found)
    missing = describe_missing(output_folder, found.right)
    _print_some(terminal, found.problems)
    _print_some(terminal, found.notes)
    if missing:
        terminal.print(missing)
    if repair and found.problems:
        terminal.print(
            f"Wrong lines are taken out, and wrong files are in {path_or_address(folder) / ASIDE}; start the job's command again to make "
            "those images."
        )
    elif found.problems:
        terminal.print("dglaunch verify --repair moves aside what is wrong; the job's next start makes it again.")
    right = f"{len(found.right):,} images are right"
    terminal.print(f"{right}; {len(found.problems):,} problems" if found.problems else right)
    return EXIT_BROKEN if found.problems or missing else EXIT_DONE


def _print_some(terminal: Terminal, texts: Sequence[str]) -> None:
    for text in texts[:SHOWN]:
        terminal.print(text)
    if len(texts) > SHOWN:
        terminal.print(f"... and {len(texts) - SHOWN:,} more")
