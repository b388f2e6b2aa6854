"""A folder of photographs as the input of an edit: which files they are, their order, and how their results are called.

A folder is what it holds: photographs, or a table in Parquet parts. Photographs are told by their suffix, in the natural
order of their names (a2.jpg before a10.jpg); what is left out is counted and told.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Self

from dglaunch import strict_json
from dglaunch.data.images import FORMATS
from dglaunch.data.values import name_key, output_name
from dglaunch.errors import InputError, UserError

SUFFIXES = frozenset({*FORMATS.values(), ".jpeg", ".jpe", ".jfif", ".tiff", ".heif", ".hif"})
TABLE = ".parquet"
SHOWN = 4


@dataclass(frozen=True, slots=True)
class Photo:
    """One photograph to edit."""

    index: int
    name: str
    """Its path, relative to the folder."""
    stem: str
    """How its result is called."""


@dataclass(frozen=True, slots=True)
class PhotoList:
    """The photographs of a job, in the order of their index."""

    folder: str
    photos: list[Photo]

    def dumps(self) -> bytes:
        """Return it as the ranks tell it each other, and as the output folder keeps it."""
        photos = [[photo.index, photo.name, photo.stem] for photo in self.photos]
        return strict_json.dumps({"folder": self.folder, "photos": photos}).encode()

    @classmethod
    def loads(cls, data: bytes) -> Self:
        """Return what was kept; anyone may have written it, and what is no photograph is left out."""
        try:
            document = strict_json.loads(data)
        except ValueError:
            return cls("", [])
        match document:
            case {"folder": str(folder), "photos": [*entries]}:
                return cls(folder, [photo for photo in map(_photo, entries) if photo is not None])
        return cls("", [])


def _photo(entry: object) -> Photo | None:
    match entry:
        case [int(index), str(name), str(stem)] if 0 <= index < 2**62 and _stem(f"{stem}.png") == stem:
            return Photo(index, name, stem)
    return None


@dataclass(slots=True)
class Found:
    """What a folder holds, by paths relative to it."""

    photos: list[str] = field(default_factory=list)
    num_tables: int = 0
    num_hidden: int = 0
    num_folders: int = 0
    """Not looked into."""
    num_results: int = 0
    """Folders of results that dglaunch has made."""
    others: Counter[str] = field(default_factory=Counter)
    """Suffixes of the files that are no images."""

    @property
    def left_out(self) -> str:
        """What was left out, in words; "" if nothing was."""
        others = self.others.total()
        kinds = ", ".join(suffix or "without a suffix" for suffix, _ in self.others.most_common(SHOWN))
        said = {
            _number(self.num_hidden, "hidden file"): self.num_hidden,
            f"{_number(others, 'file')} that {'is' if others == 1 else 'are'} no image{'s' * (others != 1)} ({kinds})": others,
            _number(self.num_results, "folder") + " of dglaunch's results": self.num_results,
            _number(self.num_folders, "folder") + " (--recursive looks into folders)": self.num_folders,
        }
        return ", ".join(text for text, count in said.items() if count)


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def is_photo(path: Path) -> bool:
    """Return whether a name is that of an image."""
    return path.suffix.lower() in SUFFIXES


def look_into(folder: Path, recursive: bool, is_results: Callable[[Path], bool]) -> Found:
    """Return what a folder holds, its photographs in their order.

    Args:
        folder: the folder.
        recursive: also look into the folders in it; a link to a folder is not followed.
        is_results: whether a folder is one that dglaunch fills, so that its images are none of the input.

    Raises:
        UserError: a folder cannot be read, or a name in it is no text.
    """
    found = Found()
    try:
        _look(folder, "", recursive, is_results, found)
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be read: {error.strerror or error}.") from None
    if problems := [f"the name {os.fsencode(name)!r} is not UTF-8" for name in found.photos if not _is_text(name)]:
        raise InputError(folder, problems, "Rename them, or take them out of the folder.")
    found.photos.sort(key=natural_key)
    return found


def _look(folder: Path, above: str, recursive: bool, is_results: Callable[[Path], bool], found: Found) -> None:
    with os.scandir(folder) as listed:
        entries = list(listed)
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith("."):
            found.num_hidden += 1
        elif entry.is_dir() and is_results(path):
            found.num_results += 1
        elif entry.is_dir():
            if recursive and not entry.is_symlink():
                _look(path, f"{above}{entry.name}/", recursive, is_results, found)
            else:
                found.num_folders += 1
        elif is_photo(path):
            found.photos.append(above + entry.name)
        else:
            found.num_tables += path.suffix.lower() == TABLE and not above
            found.others[path.suffix.lower()] += 1


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def natural_key(name: str) -> tuple[object, ...]:
    """Return what a path is sorted by: its folders one by one, numbers in names by their value."""
    parts = [
        [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", part.casefold())]
        for part in name.split("/")
    ]
    return parts, name  # texts and numbers alternate in a part, so that like meets like


def holds_photos(path: Path, found: Found, is_recursive: bool) -> bool:
    """Return whether a folder is one of photographs, and no table.

    Args:
        path: the folder.
        found: what is in it.
        is_recursive: whether the folders in it were looked into.

    Raises:
        UserError: it holds neither, or both.
    """
    if found.photos and found.num_tables:
        raise UserError(
            f"{path} holds both images ({len(found.photos):,}) and Parquet tables ({found.num_tables:,}), and a folder is one "
            "or the other. Name the table itself with --input, or move the images to a folder of their own and name that."
        )
    if not found.photos and not found.num_tables:
        left_out = f"; there are {found.left_out}" if found.left_out else ""
        remedy = "Name the folder that holds them" + ("." if is_recursive else ", or add --recursive.")
        raise UserError(f"The folder {path} holds neither images nor Parquet tables{left_out}. {remedy}")
    return bool(found.photos)


# -- how the results are called -----------------------------------------------------------------------------------


def stems_of(photos: Mapping[str, int], fixed: Mapping[str, str]) -> dict[str, str]:
    """Return how the result of each photograph is called: as the photograph where no other would be called so, else by index.

    Args:
        photos: the index of each, by name.
        fixed: what was decided by an earlier start.
    """
    own = {name: _stem(name) for name in photos}
    count = Counter(name_key(stem) for stem in own.values() if stem is not None)
    taken = {name_key(stem) for stem in fixed.values()}
    numbered = {name for name, stem in own.items() if stem is None or count[name_key(stem)] > 1} - fixed.keys()
    while True:  # a name that is a number may be the index of another
        used = taken | {name_key(_by_index(photos[name])) for name in numbered}
        more = {name for name in photos.keys() - fixed.keys() - numbered if name_key(own[name] or "") in used}
        if not more:
            break
        numbered |= more
    named = {name: _by_index(index) if name in numbered else own[name] or "" for name, index in photos.items()}
    return named | {name: stem for name, stem in fixed.items() if name in photos}


def _stem(name: str) -> str | None:
    try:
        return output_name(PurePosixPath(name).stem)
    except ValueError:
        return None


def _by_index(index: int) -> str:
    return f"{index:06d}"


def stem_in_ledger(photo: str, file_name: str, index: int, sample: int) -> str:
    """Return how the result of a photograph was called, by the name of a file that was made of it."""
    stem, made = _stem(photo), PurePosixPath(file_name).stem
    return stem if stem is not None and made in (stem, f"{stem}_{sample:02d}") else _by_index(index)


def numbered(photos: Iterable[str], known: Mapping[str, int]) -> dict[str, int]:
    """Return the index of each photograph: the one that it had, else the next that is free, in their order."""
    taken = set(known.values())
    free = (index for index in range(2**62) if index not in taken)
    return {name: known[name] if name in known else next(free) for name in photos}
