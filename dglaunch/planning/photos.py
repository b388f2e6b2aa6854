"""A folder of photographs becomes a list that stays: each keeps its index and the name of its result over all starts.

Photographs may come and go between two starts. Rank 0 looks into the folder and the other ranks have the list from it; it is
kept in the output folder (.dglaunch.prompts). A photograph that was there keeps its index, and so its seed; a new one gets the
next that is free. One that is gone leaves the job, unless its result is there.
"""

import glob
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from dglaunch.addresses import Address
from dglaunch.config import EditingConfig, RunConfig
from dglaunch.data.hub_tables import is_on_hub
from dglaunch.data.photos import (
    Found,
    Photo,
    PhotoList,
    holds_photos,
    is_photo,
    look_into,
    numbered,
    stem_in_ledger,
    stems_of,
)
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError
from dglaunch.files import MOST_STREAM, is_regular, is_stream, read_bytes
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.lines import file_name_of, id_of
from dglaunch.planning.pipe import Piped, on_all_ranks


def photo_list(config: RunConfig, topology: Topology) -> Piped | None:
    """Return the photographs that all ranks edit, as a PhotoList; None where --input is a table.

    Raises:
        UserError: the folder cannot be read, holds neither images nor tables, or both, or is --output_dir itself.
        LostPeer: rank 0 has died.
    """
    if not isinstance(config, EditingConfig):
        return None
    if len(config.tables) > 1:
        _refuse_recursive(config)
        return None
    (path,) = config.tables
    if isinstance(path, Address):
        _refuse_recursive(config)
        if is_photo(path):
            raise UserError(
                f"--input {path} is an image that is not on this machine. Name a table that has its address in a column "
                "input_images, with an instruction."
            )
        return None
    if is_on_hub(path):
        _refuse_recursive(config)
        return None
    is_meant = is_photo(path) or not (path.suffix or glob.has_magic(str(path)) or is_stream(path))
    if is_meant and not os.path.lexists(path):
        raise UserError(f"There is no file or folder {path} (looked in {Path.cwd()}).")
    if not path.is_dir() and not is_photo(path):
        _refuse_recursive(config)
        return None
    reasons: dict[str, str] = {}
    listing = on_all_ranks(topology, lambda: _list(config, path, topology, reasons))
    return Piped(listing, reasons) if listing else None


def _list(config: EditingConfig, path: Path, topology: Topology, reasons: dict[str, str]) -> bytes:
    """The PhotoList of an image or a folder, as bytes; none of a folder of tables."""
    found = look_into(path, config.recursive, partial(_is_results, config.output_dir)) if path.is_dir() else None
    if found is not None and not holds_photos(path, found, config.recursive):
        _refuse_recursive(config)
        return b""
    _check(config, found)
    names = [path.name] if found is None else found.photos
    earlier = _earlier(config, topology)
    gone = sorted(earlier.made.difference(names)) if earlier.is_same else []
    reasons["input"] = _told(path, found)
    if gone:
        reasons["input"] += f"; {len(gone):,} of an earlier start are not there any more, their results stay"
    return _listing(path, [*names, *gone], earlier)


def _refuse_recursive(config: EditingConfig) -> None:
    if config.recursive:
        raise UserError(
            f"--recursive looks into the folders of a folder of images, and {config.rows_from} is a table; drop it."
        )


def _listing(folder: Path, names: list[str], earlier: "_Earlier") -> bytes:
    indexes = numbered(names, earlier.indexes)
    stems = stems_of(indexes, earlier.stems)
    photos = [Photo(index, name, stems[name]) for name, index in sorted(indexes.items(), key=lambda item: item[1])]
    return PhotoList(os.path.realpath(folder), photos).dumps()


def _is_results(output: Path, folder: Path) -> bool:
    return os.path.realpath(folder) == os.path.realpath(output) or bool(OutputFolder(folder).all_runs())


def _told(path: Path, found: Found | None) -> str:
    if found is None:
        return f"the image {path}"
    count = f"{len(found.photos):,} image{'s' * (len(found.photos) != 1)} of {path}"
    return f"{count}; left out: {found.left_out}" if found.left_out else count


def _check(config: EditingConfig, found: Found | None) -> None:
    """What cannot go with photographs.

    Raises:
        UserError: with the remedy.
    """
    (path,), output = config.tables, config.output_dir
    is_folder = found is not None
    if is_folder and os.path.realpath(str(path)) == os.path.realpath(output):
        raise UserError(
            f"--output_dir {output} is the folder of the photographs, and their results would lie among them. Choose another, "
            f"such as {output / 'edited'}."
        )
    if config.recursive and not is_folder:
        raise UserError(f"--recursive looks into folders, and {path} is an image; drop it.")
    if config.output_name_column is not None:
        raise UserError(
            f"--output_name_column {config.output_name_column}: images without a table have no columns; their results are "
            "called as they are. Drop it."
        )
    if config.instruction is None:
        what = f"The images of {path} have" if is_folder else f"The image {path} has"
        raise UserError(
            f'{what} no instruction. Give one for all, such as --instruction "make it night", or name a table with columns '
            "input_images and instruction."
        )


# -- what an earlier start knew -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Earlier:
    """What is known of photographs from earlier starts, by name."""

    indexes: dict[str, int] = field(default_factory=dict)
    stems: dict[str, str] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)
    """Those of which there is a result."""
    is_same: bool = False
    """Whether it was this very folder."""


def _earlier(config: EditingConfig, topology: Topology) -> _Earlier:
    """What the output folder says: the list that it keeps and, where that is not there (as after a merge), its ledger."""
    earlier = _Earlier()
    if config.overwrite and not topology.restarted:
        return earlier
    folder = OutputFolder(config.output_dir)
    for record in folder.records():
        match record.get("input_images"):
            case [str(name)]:
                index, sample = id_of(record)
                earlier.indexes.setdefault(name, index)
                earlier.stems.setdefault(name, stem_in_ledger(name, file_name_of(record), index, sample))
                earlier.made.add(name)
    for kept in folder.all_kept_prompts():
        if is_regular(kept):
            _take(earlier, PhotoList.loads(read_bytes(kept, MOST_STREAM)), config)
    return earlier


def _take(earlier: _Earlier, kept: PhotoList, config: EditingConfig) -> None:
    """Add what a kept list says; the ledger's word comes first."""
    used = set(earlier.indexes.values())
    for photo in kept.photos:
        if photo.name not in earlier.indexes and photo.index not in used:
            earlier.indexes[photo.name] = photo.index
            earlier.stems[photo.name] = photo.stem
            used.add(photo.index)
    earlier.is_same = earlier.is_same or kept.folder == os.path.realpath(config.rows_from)
