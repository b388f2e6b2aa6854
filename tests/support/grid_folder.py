"""A folder of a job with --grid for the tests of the gallery, and two runs of one job to compare."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from support.gallery_folder import line, paint
from support.results import write_jsonl

AXES = {"guidance_scale": [2.0, 4.0, 7.0], "seed": [1, 2]}
COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
"""Of the cells of a grid."""


def fill_grids(folder: Path, num_rows: int = 2, axes: Mapping[str, Sequence[Any]] = AXES) -> Path:
    """A grid for each row of a table; each cell has a color of its own. The last image of all was not made, the one before
    failed."""
    cells: list[dict[str, Any]] = [{}]
    for name, values in axes.items():
        cells = [{**cell, name: value} for cell in cells for value in values]
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        line(row * len(cells) + number, prompt=f"a fox in the style of number {row}", **cell)
        for row in range(num_rows)
        for number, cell in enumerate(cells)
    ]
    *made, failed, _ = rows
    for row in made:
        paint(folder / row["file_name"], COLORS[row["index"] % len(cells) % len(COLORS)], (64, 64))
    write_jsonl(folder / "metadata.jsonl", made)
    said = {name: value for name, value in failed.items() if name != "file_name"}
    write_jsonl(folder / "failures.jsonl", [said | {"error": "RuntimeError: it broke"}])
    run = {"outcome": "done", "num_tasks": len(rows), "grid": {name: list(values) for name, values in axes.items()}}
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def fill_run(
    folder: Path, colors: Sequence[str | None], settings: Mapping[str, Any] | None = None, **values: Any
) -> Path:
    """A run with an image of each color; None: that one was not made. `settings` are those of its run.json, `values` what each
    line of its ledger says."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index, color in enumerate(colors):
        if color is not None:
            paint(folder / f"{index:06d}.png", color)
            digest = f"{sum(map(ord, color)):08x}{index:08x}" + "0" * 48
            rows.append(line(index, sha256=digest, **values))
    write_jsonl(folder / "metadata.jsonl", rows)
    config = {name: {"value": value, "from": "flag"} for name, value in (settings or {}).items()}
    run = {"outcome": "done", "num_tasks": len(colors), "config": config}
    (folder / "run.json").write_text(json.dumps(run))
    return folder
