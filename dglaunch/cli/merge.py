"""`dglaunch merge OUT0 OUT1 ... --output_dir OUT`: join the folders of nodes that share no file system. Needs no torch."""

from pathlib import Path

from dglaunch.cli.holes import describe
from dglaunch.errors import EXIT_BROKEN, EXIT_DONE
from dglaunch.output.far import opened_to_read, opened_to_write
from dglaunch.output.holes import holes_of
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.merging import merge_folders
from dglaunch.terminal import Terminal


def merge(folders: tuple[Path, ...], /, output_dir: Path) -> int:
    """Join the folders of nodes that share no file system into one, checking each image on the way.

    The images are linked where the folders are on one file system, else copied. Exit code 0: every image of the job is
    there; 1: some are missing.

    Args:
        folders: the --output_dir of each node: a folder, or a prefix of an object store.
        output_dir: a folder or prefix that does not exist yet, or an empty one.
    """
    terminal = Terminal()
    sources = [OutputFolder(opened_to_read(folder, with_open_shards=True)) for folder in dict.fromkeys(folders)]
    target = OutputFolder(opened_to_write(output_dir))
    merged = merge_folders(sources, target)
    terminal.print(f"{merged.num_images:,} images of {len(folders)} folders are in {target.path}")
    if merged.missing:
        terminal.print(merged.missing)
        if (holes := holes_of(run for folder in sources for run in folder.runs().values())) is not None:
            terminal.print(describe(holes))
    return EXIT_BROKEN if merged.missing else EXIT_DONE
