"""The input images of an edit, found again from what its file, its ledger and its table say.

An image is taken only where its sha256 is the one that the file carries: a replay from another picture would compare
nothing. Looked at, in this order: the copies of --save_inputs, the path in the file's text relative to the table, to the
output folder and to the working directory, and the bytes in a Parquet table.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dglaunch.cli.verify import input_table
from dglaunch.data.tables import base_of, read_table
from dglaunch.errors import UserError
from dglaunch.output.ledger import id_of, read_lines

UP = 3
"""An image of a layout's view lies up to so many folders below the ledger."""


def results_folder(file: Path) -> Path:
    """The output folder that an image belongs to: its own, or the one that its view lies in."""
    above = file.resolve().parents[:UP]
    return next((folder for folder in above if any(folder.glob("run*.json"))), above[0])


def find_inputs(file: Path, described: dict[str, Any]) -> list[bytes]:
    """The bytes of each input image, in the order of the row.

    Raises:
        UserError: some are gone or were changed; each is named.
    """
    folder = results_folder(file)
    names, hashes = described.get("input_images"), described.get("input_sha256")
    if not isinstance(names, list) or not isinstance(hashes, list) or len(names) != len(hashes):
        raise UserError(f"{file} does not say which input images it was made from (input_images, input_sha256).")
    table = input_table(folder)
    found, problems = [], []
    for n, (name, digest) in enumerate(zip(map(str, names), map(str, hashes))):
        changed = None
        for place, data in _candidates(folder, table, described, name, n):
            if hashlib.sha256(data).hexdigest() == digest:
                found.append(data)
                break
            changed = changed or place
        else:
            told = (
                f"is not the one it was (another sha256 at {changed})"
                if changed
                else f"was not found ({folder}, {table})"
            )
            problems.append(f"{name} {told}")
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(
            f"{file} was made from input images that are not there any more. Put them back, or start replay in the folder "
            f"that their paths are relative to:\n{listed}"
        )
    return found


def _candidates(
    folder: Path, table: Path | None, described: dict[str, Any], name: str, position: int
) -> Iterator[tuple[Path, bytes]]:
    """Files that may be this input image, and where they are."""
    bases = [base_of(table)] if table is not None else []
    paths = [*_copies(folder, described, position), *(base / name for base in (*bases, folder, Path()))]
    for path in dict.fromkeys(paths):
        try:
            yield path, path.read_bytes()
        except (OSError, ValueError):  # not there, a folder, or no path at all: how Parquet calls its images
            continue
    if table is not None and table.exists() and (table.suffix == ".parquet" or table.is_dir()):
        yield from ((table, data) for _, row in read_table(table) for data in _bytes_in(row))


def _copies(folder: Path, described: dict[str, Any], position: int) -> list[Path]:
    """What --save_inputs wrote beside the image, as its ledger line names it."""
    wanted = described.get("index"), described.get("sample")
    lines = (line for path in sorted(folder.glob("metadata*.jsonl")) for _, line in read_lines(path))
    names = next((line.get("input_file_names") for line in lines if id_of(line) == wanted), None)
    return [folder / str(names[position])] if isinstance(names, list) and position < len(names) else []


def _bytes_in(value: Any) -> Iterator[bytes]:
    """All bytes in a row, however deep: a column of images is a list, a struct or bytes."""
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _bytes_in(item)
