"""`dglaunch merge OUT0 OUT1 ... --output_dir OUT`: join the folders of nodes that share no file system. Needs no torch."""

from pathlib import Path

from dglaunch.cli.holes import describe
from dglaunch.errors import EXIT_BROKEN, EXIT_DONE
from dglaunch.output.holes import holes_of
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.merging import merge_folders
from dglaunch.terminal import Terminal


def merge(folders: tuple[Path, ...], /, output_dir: Path) -> int:
    """Join the folders of nodes that share no file system into one, checking each image on the way.

    The images are linked where the folders are on one file system, else copied. Exit code 0: every image of the job is
    there; 1: some are missing.

    Args:
        folders: the --output_dir of each node.
        output_dir: a folder that does not exist yet, or an empty one.
    """
    terminal = Terminal()
    sources = [OutputFolder(folder) for folder in dict.fromkeys(folders)]
    merged = merge_folders(sources, OutputFolder(output_dir))
    terminal.print(f"{merged.num_images:,} images of {len(folders)} folders are in {output_dir}")
    if merged.missing:
        terminal.print(merged.missing)
        if (holes := holes_of(run for folder in sources for run in folder.runs().values())) is not None:
            terminal.print(describe(holes))
    return EXIT_BROKEN if merged.missing else EXIT_DONE
