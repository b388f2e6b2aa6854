"""A view of an output folder: a folder in it with what others want to find there, all of it made from the results.

    write_view(folder, "geneval", {"00000/samples/00000.png": Link(image, sha256), ...})

Each file is put in one step, and the whole can be made again at any time: what is there as it would be written stays, so that the
command goes on where it was killed. A link is known by the file that it leads to. Of a file that is made of many, the mark of the view
(`ownership.Mark`) has a hash of all that decides its bytes: it is looked at whether that is the same and the file is as it was
written, which costs no reading of the images. In an object store a link is one more object of the same content, whose bytes do not come here.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Protocol

from dglaunch.atomic import atomic_write, temporary_path
from dglaunch.elsewhere import put_in_place
from dglaunch.errors import OutputError, UserError
from dglaunch.files import digest_of, is_regular
from dglaunch.output.far import REQUESTS, far_of
from dglaunch.output.forks import in_forks
from dglaunch.output.images import StoredImage
from dglaunch.output.in_window import in_window
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.lines import IMAGE_SUFFIXES
from dglaunch.output.ownership import SHOWN, Made, Mark, is_as_written, link_or_copy, make_folder, remove, set_aside

VIEW_SUFFIXES = (*IMAGE_SUFFIXES, ".tar", ".parquet")
"""Of the files that dglaunch puts into a view."""
MOST_ALONE = 2_000
"""Images that one process puts into files of several: to start others takes as long."""
FAR_AT_ONCE = 2
"""Files with images from an object store that are made at once, or are made and not put yet: so many lie on this machine's disk."""
LOOKING = 64
"""Files that are looked at ahead."""


class ViewFile(Protocol):
    """A file of a view."""

    @property
    def num_images(self) -> int:
        """How many images it is made of; 0: none is read to make it."""

    @property
    def known(self) -> Made | None:
        """What it will be, where that is known before it is written."""

    def write(self, target: Path) -> Made:
        """Write it under another name, and return what it is."""

    def is_there(self, path: Path, name: str, mark: Mark) -> bool:
        """Return whether what has its name is what would be written."""


Files = Mapping[str, ViewFile]
"""The files of a view, by their names in it."""


@dataclass(frozen=True, slots=True)
class Link:
    """One of the folder's images under another name: a hard link, or a copy where there are none."""

    image: StoredImage
    sha256: str
    num_images = 0

    @property
    def known(self) -> Made:
        return Made(self.sha256)

    def write(self, target: Path) -> Made:
        if self.image.shard:
            target.write_bytes(self.image.read())
        else:
            link_or_copy(self.image.path, target)
        return self.known

    def is_there(self, path: Path, name: str, mark: Mark) -> bool:
        if not is_regular(path):
            return False
        is_link = not self.image.shard and is_regular(self.image.path) and path.samefile(self.image.path)
        return is_link or (mark.has(name) and is_as_written(path, self.sha256))


@dataclass(frozen=True, slots=True)
class Text:
    """A text."""

    text: str
    num_images = 0

    @property
    def known(self) -> Made:
        return Made(hashlib.sha256(self.text.encode()).hexdigest())

    def write(self, target: Path) -> Made:
        target.write_bytes(self.text.encode())
        return self.known

    def is_there(self, path: Path, name: str, mark: Mark) -> bool:
        return mark.has(name) and is_as_written(path, self.known.sha256)


@dataclass(frozen=True, slots=True)
class MadeOfImages:
    """A file that is made of several images.

    Args:
        put: writes it, and returns the hash of what decides its bytes.
        made_of: returns that hash without reading an image.
        num_images: how many.
    """

    put: Callable[[Path], str]
    made_of: Callable[[], str]
    num_images: int
    known = None

    def write(self, target: Path) -> Made:
        made_of = self.put(target)
        return Made(digest_of(target), made_of)

    def is_there(self, path: Path, name: str, mark: Mark) -> bool:
        if not mark.has(name) or not is_regular(path):
            return False
        written = mark.written_of(name, self.made_of())
        return written is not None and (mark.is_as_put(name, written) or is_as_written(path, written))


def write_view(folder: Path, name: str, files: Files, changes: bool = False) -> Path:
    """Write or complete the view OUT/NAME, and return its folder.

    Args:
        folder: the output folder.
        name: of the view.
        files: what is to be in it.
        changes: what belongs into the view may change with the same images; what does not any more is taken out.

    Raises:
        UserError: it holds files of something else.
        OutputError: it cannot be written.
    """
    view = folder / name
    mark = Mark(OutputFolder(folder), view)
    if changes:
        _take_out(view, mark, files)
    refuse_other_files(view, mark, files)
    try:
        with closing(mark):
            _make_folders(view, files)
            missing = list(_missing(folder, view, mark, files))
            _write_small(folder, view, mark, {each: files[each] for each in missing if not files[each].num_images})
            _write_large(folder, view, mark, {each: files[each] for each in missing if files[each].num_images})
    except (OSError, ValueError) as error:  # a picture that was damaged since
        raise OutputError(
            f"The layout {view} cannot be written: {error}. The images are safe in {folder}; start "
            "the same command again to write the layout."
        ) from None
    return view


def _take_out(view: Path, mark: Mark, files: Collection[str]) -> None:
    """Remove files that dglaunch has put into a view and that do not belong there any more; what was changed since stays, and
    is refused."""
    if view.is_symlink() or not view.is_dir():
        return
    names = [path.relative_to(view).as_posix() for path in sorted(view.rglob("*"))]
    remove(view / name for name in names if name not in files and mark.has(name) and mark.may_replace(name))


def refuse_other_files(view: Path, mark: Mark, names: Container[str]) -> None:
    """Check that a view holds nothing but files of these names. An evaluation takes all that it finds, so no image of an earlier job
    may be among them, and none of the user's. (What an evaluation wrote there itself is nobody's business.)

    Raises:
        UserError: it does.
    """
    if view.is_symlink():
        raise UserError(f"{view} is a link, and what is written does not follow links; remove it.")
    if not view.exists():
        return
    paths = [(path, path.relative_to(view).as_posix()) for path in sorted(view.rglob("*"))]
    if not view.is_dir() or (paths and mark.is_empty):
        raise UserError(f"{view} is there, and dglaunch did not make it; rename it and start the same command again.")
    found = [name for path, name in paths if name in names or path.suffix in VIEW_SUFFIXES]
    foreign = [name for name in found if not mark.has(name)]
    if foreign:
        raise UserError(
            f"{view} has files that dglaunch did not make ({', '.join(foreign[:SHOWN])}). Move them away, or rename that "
            "folder, and start the same command again."
        )
    others = [name for name in found if name not in names]
    if others:
        raise UserError(
            f"{view} holds files of another job ({', '.join(others[:SHOWN])}), which would be evaluated with this one's. "
            "Remove that folder and start the same command again; images that are done lie beside it."
        )


def _make_folders(view: Path, names: Iterable[str]) -> None:
    """The view, and the folders in it that its files need."""
    make_folder(view)
    here, parents = view.resolve(), set()
    for path in map(PurePosixPath, names):
        if path.is_absolute() or ".." in path.parts:
            raise OSError(f"{path} is no name in {view}")
        parents.add(path.parent)
    for parent in parents:
        if (view / parent).resolve() != here / parent:
            raise OSError(f"{view / parent} is a link, and what is written does not follow links")
        (view / parent).mkdir(parents=True, exist_ok=True)


def _missing(folder: Path, view: Path, mark: Mark, files: Files) -> Iterator[str]:
    """The names of the files that are not there as they would be written; what has one of these names and could be wanted again is
    moved aside."""

    def look(name: str) -> tuple[bool, bool]:
        path = view / name
        if not os.path.lexists(path):
            return False, True
        is_there = files[name].is_there(path, name, mark)
        return is_there, is_there or mark.may_replace(name)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for name, (is_there, may_replace) in zip(files, in_window(pool, look, files, LOOKING)):
            if not may_replace:
                set_aside(OutputFolder(folder), view / name)
            if not is_there:
                yield name


def _write_small(folder: Path, view: Path, mark: Mark, files: Files) -> None:
    """In threads. A temporary file is beside the images: on the same file system, and never in an evaluation's sight."""

    def write(name: str) -> None:
        with atomic_write(view / name, folder) as temporary:
            files[name].write(temporary)

    for name, file in files.items():
        assert file.known is not None, "it is made of no images"
        mark.add(name, file.known)
    mark.settle()
    with ThreadPoolExecutor(os.cpu_count() or 1 if far_of(folder) is None else REQUESTS) as pool:
        for _ in in_window(pool, write, files, LOOKING):
            continue


def _write_large(folder: Path, view: Path, mark: Mark, files: Files) -> None:
    """On all cores, where there are many images; each file is noted and takes its place once it is whole."""
    temporaries = {name: temporary_path(folder) for name in files}
    try:
        for name, made in zip(files, _written(folder, files, temporaries)):
            mark.add(name, made)
            mark.settle()
            put_in_place(temporaries[name], view / name)
            mark.add_version(name, made)
        mark.settle()
    finally:
        remove(temporaries.values())


def _written(folder: Path, files: Files, temporaries: Mapping[str, Path]) -> Iterator[Made]:
    """Write them, in their order; those with images from an object store in threads, as its library has some that no fork has."""
    write = partial(_write, files, temporaries)
    if far_of(folder) is not None:
        with ThreadPoolExecutor(FAR_AT_ONCE) as pool:
            yield from in_window(pool, write, files, FAR_AT_ONCE)
        return
    num_images = sum(file.num_images for file in files.values())
    yield from in_forks(write, files, 1 if num_images < MOST_ALONE else min(os.cpu_count() or 1, len(files)))


def _write(files: Files, temporaries: Mapping[str, Path], name: str) -> Made:
    return files[name].write(temporaries[name])
