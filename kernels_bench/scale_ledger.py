"""The parts of `python -m kernels_bench scale` that are about results: what a start, status and verify cost by their number.

The folder has images in folders of 10,000, each with its metadata.jsonl, as a job that has ended leaves it. Its files are links to
few: what is measured is how many there are. A start compares every line with its file; the rows' keys are the table's business.
"before" is the way of the versions before segments: one flat folder, one ledger, of which each line is parsed.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MOST_LINKS = 20_000
"""Names of one file; file systems have a limit."""
MOST_FLAT = 100_000
"""Rows up to which the folder of the way before is made, too."""
PER_FOLDER = 10_000


def make_results(payload: Mapping[str, Any]) -> None:
    """Write the folder of a job that has ended."""
    from dglaunch.output.ledger import OutputFolder
    from dglaunch.output.ledger_index import LedgerIndex

    folder, count = Path(payload["folder"], "out"), int(payload["rows"])
    folder.mkdir()
    _fill(folder, count, PER_FOLDER)
    run = {"num_tasks": count, "tasks": f"0:{count}", "outcome": "done", "started": "2026-11-26T10:00:00+00:00"}
    (folder / "run.json").write_text(json.dumps(run))
    LedgerIndex.read(OutputFolder(folder)).keep()
    if count <= MOST_FLAT:
        flat = Path(payload["folder"], "flat")
        flat.mkdir()
        _fill(flat, count, 0)


def _fill(folder: Path, count: int, per_folder: int) -> None:
    data = _image()
    digest = hashlib.sha256(data).hexdigest()
    out, source, inside = None, folder, ""
    for n in range(count):
        name = f"{n:06d}.png"
        if n % (per_folder or count) == 0:
            if per_folder:
                inside = f"{n // per_folder:04d}/"
                (folder / inside).mkdir()
            if out is not None:
                out.close()
            out = (folder / inside / "metadata.jsonl").open("w")
        if n % MOST_LINKS == 0:
            source = folder / inside / name
            source.write_bytes(data)
        else:
            os.link(source, folder / inside / name)
        assert out is not None
        out.write(_line(n, name, digest, len(data)))
    if out is not None:
        out.close()


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
    """A start: which images are there in full."""
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
