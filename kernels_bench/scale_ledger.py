"""The parts of `python -m kernels_bench scale` that are about results: what a start, status and verify cost by their number.

The folder has images in folders of 10,000, each with its metadata.jsonl, as a job that has ended leaves it. Its files are links to
one a folder: what is measured is how many there are. A start compares every line with its file; the rows' keys are the table's business.
"before" is the way of the versions before segments: one flat folder, one ledger, of which each line is parsed.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

MOST_LINKS = 20_000
"""Names of one file; file systems have a limit."""
MOST_FLAT = 100_000
"""Rows up to which the folder of the way before is made, too."""
PER_FOLDER = 10_000


def make_results(payload: Mapping[str, Any]) -> None:
    """Write the folder of a job that has ended."""
    from dglaunch.output.segments import FOLDER

    folder, count = Path(payload["folder"], "out"), int(payload["rows"])
    if folder.exists():  # of another part
        return
    folder.mkdir()
    (folder / FOLDER).mkdir()
    for first in range(0, count, PER_FOLDER):
        _make_folder(folder, first, min(PER_FOLDER, count - first))
    run = {"outcome": "done", "num_tasks": count, "tasks": f"0:{count}", "started": "2026-11-26T10:00:00+00:00"}
    (folder / "run.json").write_text(json.dumps(run))
    if count <= MOST_FLAT:
        flat = Path(payload["folder"], "flat")
        flat.mkdir()
        _fill(flat, 0, count)


def look_at_results(payload: Mapping[str, Any]) -> None:
    """Have a start keep what it finds in that folder. (A real one keeps only what had been at rest for ten minutes.)"""
    from dglaunch.output import looks
    from dglaunch.output.ledger import OutputFolder, Part
    from dglaunch.output.resume import read_progress

    make_results(payload)
    looks.SETTLED_S = 0.0
    read_progress(OutputFolder(Path(payload["folder"], "out")), Part()).keep()


def _make_folder(folder: Path, first: int, count: int) -> None:
    """A folder of images with its public view, and the columns of that, as a run leaves them."""
    import numpy as np

    from dglaunch.output.file_index import KINDS, FileIndex, kept_at, pack, state_of
    from dglaunch.output.lines import LedgerFile
    from dglaunch.output.segments import FOLDER

    number = first // PER_FOLDER
    inside = folder / f"{number:04d}"
    inside.mkdir()
    lengths, size = _fill(inside, first, count)
    columns = {name: np.zeros(count, kind) for name, kind in KINDS.items()}
    columns["index"] += np.arange(first, first + count)
    columns["key"] += columns["index"].astype(np.uint64)
    columns["start"][1:] = np.cumsum(lengths[:-1])
    columns["size"] += size
    columns["folder"] += number
    view = LedgerFile(inside / "metadata.jsonl", f"{inside.name}/")
    names = pack(f"{inside.name}/{_name(n)}" for n in range(first, first + count))
    FileIndex(view, columns, names, state=state_of(view)).keep(kept_at(folder / FOLDER, view))


def _fill(folder: Path, first: int, count: int) -> tuple[list[int], int]:
    """Write images and their lines; return the bytes of each line, and of an image."""
    data = _image()
    digest = hashlib.sha256(data).hexdigest()
    lines = [_line(n, _name(n), digest, len(data)) for n in range(first, first + count)]
    (folder / "metadata.jsonl").write_text("".join(lines))
    opened = os.open(folder, os.O_RDONLY)
    for n in range(first, first + count):
        if n == first or n % MOST_LINKS == 0:
            source = _name(n)
            (folder / source).write_bytes(data)
        else:
            os.link(source, _name(n), src_dir_fd=opened, dst_dir_fd=opened)
    os.close(opened)
    return [len(line) for line in lines], len(data)


def _name(index: int) -> str:
    return f"{index:06d}.png"


@cache
def _image() -> bytes:
    import numpy as np
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def _line(index: int, name: str, digest: str, size: int) -> str:
    return (
        f'{{"file_name": "{name}", "index": {index}, "sample": 0, "prompt": "a photo of thing number {index} in a landscape", '
        f'"negative_prompt": null, "seed": {index}, "width": 64, "height": 64, "num_inference_steps": 4, "guidance_scale": 1.0, '
        f'"key": "{index:016x}", "sha256": "{digest}", "rank": 0, "node": 0, "batch_size": 8, "seconds": 0.5, '
        f'"time": "2026-11-26T10:00:00+00:00", "bytes": {size}}}\n'
    )


# -- what is measured -------------------------------------------------------------------------------------------------


def resume(folder: Path, count: int) -> Iterator[int]:
    """A start that asks for every file: which images are there in full."""
    from dglaunch.output.looks import KEPT
    from dglaunch.output.segments import FOLDER

    (folder / "out" / FOLDER / KEPT).unlink(missing_ok=True)
    yield from resume_again(folder, count)


def resume_again(folder: Path, count: int) -> Iterator[int]:
    """A start after one that has kept what it found (more than a million images)."""
    from dglaunch.output.ledger import OutputFolder, Part
    from dglaunch.output.resume import read_progress

    yield 0
    yield len(read_progress(OutputFolder(folder / "out"), Part()).done)


def resume_by_line(folder: Path, count: int) -> Iterator[int]:
    """The same as it was: every line parsed into a dict of tuples, every name of a flat folder in another."""
    from dglaunch.output.lines import file_name_of, id_of, is_whole, read_lines, row_key_of

    yield 0
    with os.scandir(folder / "flat") as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries if entry.is_file(follow_symlinks=False)}
    done = {
        id_of(record): (row_key_of(record), file_name_of(record))
        for _, record in read_lines(folder / "flat" / "metadata.jsonl")
        if is_whole(record, sizes.get(file_name_of(record)))
    }
    yield len(done)


def status(folder: Path, count: int) -> Iterator[int]:
    """`dglaunch status`."""
    from dglaunch.output.ledger import OutputFolder
    from dglaunch.output.status import read_status

    yield 0
    yield read_status(OutputFolder(folder / "out")).num_done


def verify(folder: Path, count: int) -> Iterator[int]:
    """`dglaunch verify`: every file read, hashed and decoded, on all cores; its memory is this process's, not its helpers'."""
    from dglaunch.output.inspection import inspect
    from dglaunch.output.ledger import OutputFolder

    yield 0
    yield len(inspect(OutputFolder(folder / "out")).right)
