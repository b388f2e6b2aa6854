"""The input images of a row, and the LoRAs of an image, found again from what its file, its ledger and its table say.

Looked at, in this order: the copies of --save_inputs, the path that the row names, relative to the table, to the output
folder and to the working directory, and the bytes in a Parquet table. For a replay an image is taken only where its
sha256 is the one that the file carries: a replay from another picture would compare nothing.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from dglaunch.data.table_formats import PARQUET
from dglaunch.data.tables import Table, base_of, files_of, files_there, path_in, shown
from dglaunch.data.task import Record
from dglaunch.errors import UserError
from dglaunch.files import at_home, digest_of, read_bytes
from dglaunch.models.lora_source import cached_file
from dglaunch.output.ledger import RUN, OutputFolder
from dglaunch.output.lines import id_of, inputs_of
from dglaunch.output.ownership import path_inside

MOST_INPUTS = 100
LEVELS_UP = 3
"""An image of a layout's view lies up to so many folders below the ledger."""


def inputs_of_row(folder: Path, table_folder: Path | None, row: Record) -> list[Path]:
    """Return the input images of a row that still exist: the copies of --save_inputs, else the files of its table."""
    names = [name for copy in _list_at(row, "input_file_names") if (name := path_inside(copy))]
    copies = [folder / name for name in names if _is_file(folder / name)]
    if copies or table_folder is None:
        return copies
    originals = [path_in(table_folder, name) for name, _ in inputs_of(row) if isinstance(name, str)]
    return [path for path in originals if _is_file(path)]


def _list_at(record: Record, name: str) -> list[object]:
    value = record.get(name)
    return value if isinstance(value, list) else []


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a path, or with a NUL: what a Parquet table calls its images
        return False


# -- by their sha256 ----------------------------------------------------------------------------------------------


def results_folder(file: Path) -> OutputFolder:
    """Return the output folder that an image belongs to: its own, or the one that its layout's view lies in."""
    above = [OutputFolder(folder) for folder in file.resolve().parents[:LEVELS_UP]]
    return next((folder for folder in above if folder.files(RUN)), above[0])


def find_inputs(file: Path, described: Record) -> list[bytes]:
    """Return the bytes of each input image, in the order of the row.

    Args:
        file: an image that was made from others.
        described: what the file says of itself.

    Raises:
        UserError: some are gone or were changed; each is named.
    """
    wanted = [
        (str(name), str(digest)) for name, digest in inputs_of(described) if name is not None and digest is not None
    ]
    if not wanted or len(wanted) < len(inputs_of(described)):
        raise UserError(f"{file} does not say which input images it was made from (input_images, input_sha256).")
    if len(wanted) > MOST_INPUTS:
        raise UserError(f"{file} names {len(wanted):,} input images; no model takes so many, so its text is made up.")
    folder = results_folder(file)
    table = folder.input_table()
    copies = _copies(folder, described)
    looked = [
        _look_in_files(_candidates(folder, table, copies[n : n + 1], name), digest)
        for n, (name, digest) in enumerate(wanted)
    ]
    rest = {digest for (_, digest), result in zip(wanted, looked) if not isinstance(result, bytes)}
    in_table = _look_in_table(table, rest) if table and rest else {}
    found: list[bytes] = []
    problems: list[str] = []
    for (name, digest), result in zip(wanted, looked):
        data = result if isinstance(result, bytes) else in_table.get(digest)
        if data is not None:
            found.append(data)
        elif isinstance(result, Path):
            problems.append(f"{name} is not the one it was (another sha256 at {result})")
        else:
            problems.append(f"{name} was not found ({folder.path}, {shown(table) or 'no table'})")
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(
            f"{file} was made from input images that are not there any more. Put them back, or start replay in the folder "
            f"that their paths are relative to:\n{listed}"
        )
    return found


def find_loras(file: Path, described: Record, cell: str) -> tuple[str, ...]:
    """Return a --lora for each LoRA that a row's cell names, as the command that makes the image again would have them.

    Args:
        file: an image that was made with LoRAs.
        described: what the file says of itself.
        cell: which of them are wanted ("style:0.8").

    Raises:
        UserError: some are gone or were changed; each is named.
    """
    names = [word.rpartition(":")[0] for word in str(described.get("lora", "")).split(",")]
    known = dict(zip(names, zip(map(str, _list_at(described, "lora_files")), _list_at(described, "lora_sha256"))))
    wanted = [word.strip() for word in cell.split(",")]
    used = [name for name in known if any(word == name or word.rpartition(":")[0] == name for word in wanted)]
    folder = results_folder(file)
    found: list[str] = []
    problems: list[str] = []
    for name in used:
        source, digest = known[name]
        paths = [path for path in _places(folder, source) if _is_file(path)]
        path = next((path for path in paths if _sha256(path) == digest), None)
        if path is not None:
            found.append(f"{name}={path}")
        else:
            why = f"is not the one it was (another sha256 at {paths[0]})" if paths else "was not found"
            problems.append(f"{name}, {source} {why}")
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(
            f"{file} was made with LoRAs that are not there any more. Put them back, or start replay in the folder that their "
            f"paths are relative to:\n{listed}"
        )
    return tuple(found)


def _places(folder: OutputFolder, source: str) -> Iterator[Path]:
    """Where a LoRA may be: as it was named, from here, from where the job was started and from its results; or in the
    hub's cache."""
    started = [run.get("working_directory") for run in folder.all_runs().values()]
    for base in (Path(), *(Path(place) for place in started if isinstance(place, str)), folder.path):
        yield base / at_home(Path(source))
    owner, _, rest = source.partition("/")
    repo, _, inside = rest.partition("/")
    if inside:
        yield from cached_file(f"{owner}/{repo}", inside)


def _sha256(path: Path) -> str:
    try:
        return digest_of(path)
    except OSError:
        return ""


def _look_in_files(paths: Iterable[Path], digest: str) -> bytes | Path | None:
    """The bytes of the file that has this hash; else the first file that has another; else None."""
    another: Path | None = None
    for path in paths:
        try:
            data = read_bytes(path)
        except OSError:  # missing, a folder, or no path at all: how Parquet calls its images
            continue
        if hashlib.sha256(data).hexdigest() == digest:
            return data
        another = another or path
    return another


def _candidates(folder: OutputFolder, table: Sequence[Path], copies: list[Path], name: str) -> list[Path]:
    """Files that may be this input image."""
    bases = [*([base_of(table)] if table else []), folder.path, Path()]
    return list(dict.fromkeys([*copies, *(path_in(base, name) for base in bases)]))


def _look_in_table(table: Sequence[Path], digests: Collection[str]) -> dict[str, bytes]:
    """The images of these hashes that the table itself holds, in one pass over it."""
    found: dict[str, bytes] = {}
    parts = [
        path for path in files_there(table) if path.suffix.lower() == PARQUET or (path.is_dir() and files_of(path))
    ]
    if not parts:
        return found
    for data in (data for _, row in Table(parts).rows() for data in _bytes_in(row)):
        digest = hashlib.sha256(data).hexdigest()
        if digest in digests:
            found[digest] = data
            if len(found) == len(digests):
                break
    return found


def _copies(folder: OutputFolder, described: Record) -> list[Path]:
    """What --save_inputs wrote beside the image, as its ledger line names it, in the order of the row."""
    wanted = described.get("index"), described.get("sample")
    record = next((record for record in folder.records() if id_of(record) == wanted), None)
    return [folder.path / (path_inside(name) or "") for name in _list_at(record or {}, "input_file_names")]


def _bytes_in(value: object) -> Iterator[bytes]:
    """All bytes in a row, however deep: a column of images is a list, a struct or bytes."""
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _bytes_in(item)
