"""What in an output folder is dglaunch's own: the only place that deletes, moves or links files there.

A folder may hold files of the user's, under any name. Ours is

- an image whose bytes have the hash that a line of our ledger gives them, or whose own text says that dglaunch made it;
- a file with an exact name of ours (metadata-node0of2.jsonl, run.json, .dglaunch.lock, ...) and content of ours.

Nothing else is written, moved or deleted. Of ours, what could be wanted again is not deleted either but moved to
`.dglaunch-aside`: damaged images, images without a line, lines that cannot be read.
"""

import contextlib
import io
import os
import re
import shutil
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from dglaunch import strict_json
from dglaunch.atomic import TEMPORARY, atomic_write
from dglaunch.data.images import BadImage, damage_is_a_bad_image, open_image
from dglaunch.data.task import Record
from dglaunch.elsewhere import was_added_to
from dglaunch.errors import UserError
from dglaunch.files import digest_of, is_regular, open_for_appending, open_regular, read_bytes
from dglaunch.output import segments, shards
from dglaunch.output.encode import decode_description
from dglaunch.output.far import behind, name_there, rename, unlink, version_of
from dglaunch.output.ledger import FAILURES, METADATA, RUN, OutputFolder, Part, is_foreign_run, read_run
from dglaunch.output.lines import (
    LineKind,
    append_line,
    file_name_of,
    inputs_of,
    is_image_name,
    is_our_ledger,
    raw_lines,
    scan,
)
from dglaunch.storage.working import is_stub

Identity = Mapping[str, object]
"""Whatever an image's own text must say alike to be the one that is meant: index, sample, prompt, seed, model, ..."""
MARK = f"{TEMPORARY}view-"
"""How the mark of a folder that dglaunch fills is called: it lies beside it, not inside, where others look."""
ASIDE = f"{TEMPORARY}aside"
"""The folder, in the output folder, of what was in the way: hidden, so that no loader of images takes it for results."""
PAGE_MARKS = (b"- dglaunch gallery</title>", b"- dglaunch certify</title>")
"""What every page of ours has in its head."""
CONTACT_SHEET = "contact_sheet"
"""What a contact sheet says of itself: how many images are on it."""
WRITTEN_BY = "dglaunch"
"""What a report in JSON (first of all) or as a picture says of itself: which command wrote it."""
MOST_REPORT = 1 << 26
"""Bytes of a report, at most."""
SHOWN = 5
TOGETHER, READERS = 1_000, 16
"""Files that are looked at and removed together, and how many of them are read at a time."""
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_INPUT_COPY = re.compile(r"inputs/\d{1,20}_\d{1,9}\.[a-z]{3,4}", re.ASCII)


def path_inside(name: object) -> str | None:
    """Return a file name that a ledger or a page may show, if it is one and stays in its folder."""
    if not isinstance(name, str) or not name or "\0" in name:
        return None
    return None if name.startswith("/") or ".." in name.split("/") else name


# -- whose is it? -------------------------------------------------------------------------------------------------


def is_as_written(path: Path, sha256: object) -> bool:
    """Return whether a regular file has these very bytes."""
    try:
        return is_regular(path) and digest_of(path) == sha256
    except OSError:
        return False


def own_text(path: Path) -> Record | None:
    """Return what an image says of itself, if it says that dglaunch made it; its pixels are not looked at."""
    described = _text(path)
    if described is None or "model" not in described:
        return None
    return described if all(type(described.get(name)) is int for name in ("index", "sample", "seed")) else None


def _text(path: Path) -> Record | None:
    """What `encode` wrote into an image."""
    try:
        with open_regular(path) as data, damage_is_a_bad_image():
            described = decode_description(open_image(data))
    except (OSError, BadImage):
        return None
    return described if is_regular(path) else None


def is_remains(path: Path, image: Identity) -> bool:
    """Return whether a file is what a killed run left of an image, so that it may be replaced: nothing, or that image. What
    its text does not have (a long prompt in a JPEG, what was left to a default) is not compared."""
    described = own_text(path)
    if described is None:
        return is_empty(path)
    found = {name: described[name] for name in image if name in described}
    return found == {name: image[name] for name in found}


def is_empty(path: Path) -> bool:
    """Return whether it is a regular file of no bytes, as a machine that lost power leaves them: there is nothing to lose."""
    return is_regular(path) and path.lstat().st_size == 0


def refuse_foreign_files(
    folder: OutputFolder, images: Mapping[str, Identity], image_folders: Collection[str] = ()
) -> None:
    """Check that what a run is about to write replaces nothing of the user's.

    Args:
        folder: the output folder.
        images: the images that are not done and whose names files have that no ledger names, by these names.
        image_folders: names of the folders of images that are written to.

    Raises:
        UserError: it would; the message names the files.
    """
    ledgers = [*folder.files(METADATA), *folder.files(FAILURES)]
    foreign = [path.name for path in ledgers if not is_regular(path) or not is_our_ledger(path)]
    foreign += [path.name for path in folder.files(RUN) if not is_regular(path) or is_foreign_run(path)]
    foreign += _foreign_image_folders(folder, sorted(image_folders))
    if foreign:
        raise UserError(
            f"{folder.path} has files that dglaunch did not write and would replace ({', '.join(foreign[:SHOWN])}). Choose "
            "another --output_dir, or move them away."
        )
    pictures = sorted(name for name, image in images.items() if not is_remains(folder.path / name, image))
    if pictures:
        raise UserError(
            f"{folder.path} has files that are not of this job and would be overwritten ({', '.join(pictures[:SHOWN])}). "
            "Choose another --output_dir, or move them away."
        )


def refuse_foreign_shards(folder: OutputFolder) -> None:
    """Check that the folder of the shards has nothing else in it: a loader takes all that it finds there.

    Raises:
        UserError: it has.
    """
    path = folder.path / shards.SHARDS
    if not os.path.lexists(path):
        return
    is_folder = path.is_dir() and not path.is_symlink()
    others = sorted(set(os.listdir(path)).difference(shards.closed_shards(folder.path))) if is_folder else [path.name]
    if others:
        raise UserError(
            f"{path} is where --store keeps shards, and it has files that dglaunch did not write "
            f"({', '.join(others[:SHOWN])}). Choose another --output_dir, or move them away."
        )


def _foreign_image_folders(folder: OutputFolder, image_folders: Collection[str]) -> list[str]:
    """Which of the folders of images would be among files of the user's: what is no folder, a link, the output folder of
    another job, or has a metadata.jsonl that is not ours."""
    foreign: list[str] = []
    for name in image_folders:
        path = folder.path / name
        view = path / "".join(METADATA)
        is_other = path.is_symlink() or not path.is_dir() or (path / "".join(RUN)).exists()
        if os.path.lexists(path) and (
            is_other or (os.path.lexists(view) and not (is_regular(view) and is_our_ledger(view)))
        ):
            foreign.append(name if is_other else f"{name}/{view.name}")
    return foreign


def refuse_to_replace(path: Path) -> None:
    """Check that a file which a command was told to write replaces at most an earlier one of its kind: a gallery, a contact
    sheet, a report, or an image of replay's that is no result of a job.

    Raises:
        UserError: there is another file.
    """
    if not path.exists() and not path.is_symlink():  # a name that cannot be raises here, before anything is made
        return
    text = _text(path) or {}
    is_picture = CONTACT_SHEET in text or WRITTEN_BY in text or own_text(path) is not None
    if _is_result(path) or not (is_picture or _is_page(path) or _is_report(path)):
        raise UserError(
            f"{path} is there, and it is not one of its kind that dglaunch made. Name another file, or remove it."
        )


def _is_result(path: Path) -> bool:
    """Whether a ledger names it. (A page or a report has no image's name: no ledger is read for those.)"""
    folder, name = _place_of(path)
    return is_image_name(name) and any(file_name_of(record) == name for record in folder.records())


def _place_of(path: Path) -> tuple[OutputFolder, str]:
    """The output folder that a file may be a result of, and its name there."""
    above = OutputFolder(path.absolute().parent.parent)
    if path.absolute().parent.name in above.image_folders():
        return above, f"{path.absolute().parent.name}/{path.name}"
    return OutputFolder(path.parent), path.name


def _is_page(path: Path) -> bool:
    try:
        with open_regular(path) as data:
            head = data.read(1 << 14)
            return is_regular(path) and any(mark in head for mark in PAGE_MARKS)
    except OSError:
        return False


def _is_report(path: Path) -> bool:
    try:
        found = strict_json.loads(read_bytes(path, MOST_REPORT))
    except (OSError, ValueError):
        return False
    return is_regular(path) and isinstance(found, dict) and next(iter(found), None) == WRITTEN_BY


def write_report(path: Path, command: str, record: Mapping[str, object]) -> None:
    """Write what a command has found as JSON, whole or not at all; `refuse_to_replace` has come first.

    Raises:
        UserError: it cannot be written.
    """
    text = strict_json.dumps({WRITTEN_BY: command, **record}, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}. Name another file.") from None


def refuse_inputs_as_outputs(
    folder: OutputFolder, inputs: Iterable[Path], images: Iterable[str], folders: Collection[str] = ()
) -> None:
    """Check that nothing that a run reads is written or removed by it.

    Args:
        folder: the output folder.
        inputs: the table and the input images.
        images: names of the images that the run makes.
        folders: names of the folders in it that the run fills.

    Raises:
        UserError: it would be.
    """
    here = folder.path.resolve()
    near = _inside(here, inputs)
    if not near:
        return
    written = {path for path in near if path.relative_to(here).parts[0] in folders}
    names = {path.relative_to(here).as_posix() for path in near}
    written |= {here / name for name in images if name in names}
    written |= {
        Path(os.path.realpath(path))
        for kind in (METADATA, FAILURES, RUN)
        for path in (folder.file(kind), *folder.files(kind))
    }
    for record in folder.records():
        written |= {here / file_name_of(record), *(here / name for name in _copies(record))}
    if both := sorted(near & written):
        raise UserError(
            f"{', '.join(map(str, both[:SHOWN]))} is read and would be written or removed by the same run. Choose another "
            "--output_dir, or copy it first."
        )


class Made(NamedTuple):
    """A file that dglaunch has put somewhere."""

    sha256: str
    of: str = ""
    """A hash of all that decides its bytes, if there is more to it than its name."""
    version: str = ""
    """How an object store tells it from what it may be replaced by."""


class Mark:
    """The mark of a folder that dglaunch fills: the names and hashes of all files that it has put there.

    It lies beside that folder, so a copy of the two says the same as they do. A file that it does not name is not ours; one
    that it names and that has other bytes by now is moved aside before its name is used again.
    """

    def __init__(self, folder: OutputFolder, filled: Path) -> None:
        """
        Args:
            folder: the output folder.
            filled: the folder in it.

        Raises:
            UserError: the mark cannot be read, or is none.
        """
        self._filled = filled
        self._path = filled.with_name(f"{MARK}{filled.name}")
        self._folder = folder
        self._written, self._is_torn = _read_mark(self._path)
        self._names = {name for name, _ in self._written}
        self._hashes = {(name, made.sha256) for name, made in self._written}
        self._by_content = {(name, made.of): made.sha256 for name, made in self._written if made.of}
        self._versions = {(name, made.sha256): made.version for name, made in self._written if made.version}
        self._lines: io.FileIO | None = None
        self._turn = threading.Lock()

    @property
    def is_empty(self) -> bool:
        return not self._names

    def has(self, name: str) -> bool:
        """Return whether dglaunch has put a file of this name there."""
        return name in self._names

    def written_of(self, name: str, of: str) -> str | None:
        """Return the hash of a file that was put there and made of this, if one was."""
        return self._by_content.get((name, of))

    @cached_property
    def _images(self) -> set[tuple[int, int]]:
        """What the system knows the files of the output folder by."""
        return {(info.st_dev, info.st_ino) for info in self._folder.regular_files().values()}

    def may_replace(self, name: str) -> bool:
        """Return whether nothing is lost with what has this name: there is none, or it is one more link to a file of the
        output folder, or as dglaunch wrote it."""
        path = self._filled / name
        if not os.path.lexists(path):
            return True
        if not is_regular(path):
            return False
        info = path.lstat()
        is_link = info.st_nlink > 1 and (info.st_dev, info.st_ino) in self._images
        return is_link or (name in self._names and (name, digest_of(path)) in self._hashes)

    def add(self, name: str, made: Made) -> None:
        """Note a file before it takes its place; several threads may do so.

        Raises:
            OSError: the mark cannot be written.
        """
        if (name, made) in self._written:
            return
        with self._turn:
            if self._lines is None:
                self._lines = open_for_appending(self._path)
                self._lines.write(b"\n" if self._is_torn else b"")
            append_line(self._lines, {"file_name": name, **{key: said for key, said in made._asdict().items() if said}})

    def add_version(self, name: str, made: Made) -> None:
        """Of a file that is an object now: note how the store tells it from others.

        Raises:
            OSError: the mark cannot be written.
        """
        if version := version_of(self._filled / name):
            self.add(name, made._replace(version=version))

    def is_as_put(self, name: str, sha256: str) -> bool:
        """Return whether it is known of an object, without reading it, that it has these bytes."""
        version = version_of(self._filled / name)
        return bool(version) and self._versions.get((name, sha256)) == version

    def settle(self) -> None:
        """Before what was added is there: it is noted where the folder lies.

        Raises:
            OSError: the mark cannot be written.
        """
        if self._lines is not None:
            was_added_to(self._path)

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()


def _read_mark(path: Path) -> tuple[set[tuple[str, Made]], bool]:
    """The names and hashes of a mark, and whether its last line was cut by a kill. Anyone may have written it.

    Raises:
        UserError: it cannot be read, or is none.
    """
    written: set[tuple[str, Made]] = set()
    raw = b"\n"
    for _, raw in raw_lines(path):
        try:
            line = strict_json.loads(raw)
        except ValueError:
            continue
        if (entry := _entry(line)) is not None:
            written.add(entry)
    if os.path.lexists(path) and not (written or is_empty(path)):
        raise UserError(f"{path} is there, and dglaunch did not make it; rename it and start the same command again.")
    return written, not raw.endswith(b"\n")


def _entry(line: object) -> tuple[str, Made] | None:
    """The name and the hash in a line of a mark; None if it is a line of something else, such as a ledger."""
    if not isinstance(line, dict) or line.keys() - {"of", "version"} != {"file_name", "sha256"}:
        return None
    name, hashes = path_inside(line["file_name"]), [line["sha256"], *([line["of"]] if "of" in line else [])]
    are_right = all(isinstance(each, str) and _HASH.fullmatch(each) for each in hashes)
    are_right = are_right and isinstance(line.get("version", ""), str)
    return (name, Made(line["sha256"], line.get("of", ""), line.get("version", ""))) if name and are_right else None


def _inside(folder: Path, paths: Iterable[Path]) -> set[Path]:
    """Those of some files that lie in a folder, wherever links lead."""
    real = (Path(os.path.realpath(path)) for path in paths if os.path.lexists(path))
    return {path for path in real if path.is_relative_to(folder)}


def refuse_foreign_copies(folder: OutputFolder, copies: Mapping[str, str]) -> None:
    """Check that no copy of an input image would replace a file of the user's.

    Args:
        folder: the output folder.
        copies: the names of the copies in it, with their hashes.

    Raises:
        UserError: one would.
    """
    there = folder.path / "inputs"
    if not there.is_dir() or there.is_symlink():
        return
    named = {name for record in folder.records() for name in _copies(record)}
    present = [
        name for name in (f"inputs/{name}" for name in os.listdir(there)) if name in copies and name not in named
    ]
    others = sorted(name for name in present if not is_as_written(folder.path / name, copies[name]))
    if others:
        raise UserError(
            f"{folder.path} has files that --save_inputs did not write ({', '.join(others[:SHOWN])}). Choose another "
            "--output_dir, or move them away."
        )


# -- out of the way -----------------------------------------------------------------------------------------------


def set_aside(folder: OutputFolder, path: Path, name: str | None = None) -> None:
    """Move a file of the folder to `.dglaunch-aside`; a missing one is no error.

    Args:
        name: what it is called there, if not as it is.

    Raises:
        OSError: it cannot be moved.
    """
    target_folder = folder.path / ASIDE
    if not os.path.lexists(path):
        return
    make_folder(target_folder)
    target = wanted = target_folder / (path.name if name is None else name)
    number = 1
    while os.path.lexists(target):
        target, number = target_folder / f"{wanted.stem}-{number}{wanted.suffix}", number + 1
    rename(path, target)


def keep_bad_lines(folder: OutputFolder, name: str, lines: Iterable[str]) -> None:
    """Add lines that leave a ledger to a file of its name in `.dglaunch-aside`.

    Raises:
        OSError: it cannot be written.
    """
    texts = list(lines)
    if not texts:
        return
    target = folder.path / ASIDE / name
    make_folder(target.parent)
    with open_for_appending(target) as out:
        out.write("".join(texts).encode("utf-8", "surrogateescape"))
    was_added_to(target)


def make_folder(path: Path) -> None:
    """Make a folder in the output folder; a link to one elsewhere is refused.

    Raises:
        OSError: it is a link, or cannot be made.
    """
    path.mkdir(exist_ok=True)
    if path.is_symlink():
        raise OSError(f"{path} is a link, and what is written does not follow links")


def make_way(folder: OutputFolder, name: str, image: Identity) -> None:
    """Before an image takes this name: what stands there and is not known to be replaceable is moved aside.

    Raises:
        OSError: it cannot be moved.
    """
    path = folder.path / name
    if os.path.lexists(path) and not is_remains(path, image):
        set_aside(folder, path)


# -- what is removed ----------------------------------------------------------------------------------------------


def remove(paths: Iterable[Path]) -> None:
    """Delete files that this process, or one of its part, has written; a missing one is no error."""
    unlink(list(paths))


def remove_results(folder: OutputFolder) -> None:
    """Remove the results of earlier runs, and nothing else: for --overwrite. What has changed since is moved aside.

    Raises:
        OSError: something cannot be removed.
    """
    named = (
        {*shards.closed_shards(folder.path), *shards.open_shards(folder.path)} if shards.has_own(folder.path) else set()
    )
    for some in _in_parts(folder.records(), TOGETHER):
        named |= {shard for record in some if (shard := shards.shard_of(record))}
        _remove_files(folder, some)
    for shard in named:
        _remove_shard(folder, shard)
    image_folders = folder.image_folders()
    for path in [*(ledger.path for ledger in folder.ledgers()), *folder.files(FAILURES)]:
        if is_regular(path):
            kinds = {line.kind for line in scan(path)}
            remove([path]) if kinds <= {LineKind.OURS, LineKind.REPLACED} else set_aside(folder, path)
    segments.forget_indexes(folder.path)
    for path in (*(folder.path / name for name in image_folders), folder.path / segments.FOLDER):
        with contextlib.suppress(OSError):  # something of the user's is in it, or there is none
            path.rmdir()
    remove(path for path in folder.files(RUN) if is_regular(path) and read_run(path) is not None)
    remove(folder.out_of_memory_notes())
    remove(folder.batch_jobs())  # none of them owes images: the run has looked


def _in_parts(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    left = iter(records)
    while part := list(islice(left, size)):
        yield part


def _remove_files(folder: OutputFolder, records: Collection[Record]) -> None:
    """The images of some lines that are files of their own, and the copies of their input images: what is as it was written, all at
    once. A column of the table may bear the name of a copy."""
    images = [record for record in records if not shards.shard_of(record)]
    ours = [(folder.path / file_name_of(record), record["sha256"]) for record in images]
    copies = [(folder.path / name, digest) for record in records for name, digest in _copies(record).items()]
    copies = [(path, digest) for path, digest in copies if not path.parent.is_symlink()]
    with ThreadPoolExecutor(READERS) as pool:
        are_ours = list(pool.map(is_as_written, *zip(*ours, *copies))) if ours or copies else []
    remove(path for (path, _), is_ours in zip([*ours, *copies], are_ours) if is_ours)
    for (path, _), is_ours in zip(ours, are_ours):
        if not is_ours:
            set_aside(folder, path)


def _remove_shard(folder: OutputFolder, shard: str) -> None:
    """A shard of ours, closed or not, if it is as it was written."""
    paths = [shards.closed_path(folder.path, shard), shards.open_path(folder.path, shard)]
    for path, images in zip(paths, (_in_closed, _in_open)):
        if is_regular(path):
            remove([path]) if images(folder.path, shard) else set_aside(folder, path)
    remove([shards.index_path(folder.path, shard)])


def _in_closed(folder: Path, shard: str) -> bool:
    """Whether a closed shard is ours, and whole."""
    try:
        return bool(shards.index_of(folder, shard))
    except (OSError, ValueError):
        return False


def _in_open(folder: Path, shard: str) -> bool:
    """Whether one that was being filled has an image of ours, or nothing."""
    return is_empty(shards.open_path(folder, shard)) or bool(shards.samples_of(folder, shard))


def _copies(record: Record) -> dict[str, object]:
    """The copies of input images that a line names in the folder for them, with their hashes."""
    names = record.get("input_file_names")
    if not isinstance(names, list):
        return {}
    hashes = [digest for _, digest in inputs_of(record)]
    return {
        name: digest for name, digest in zip(names, hashes) if isinstance(name, str) and _INPUT_COPY.fullmatch(name)
    }


def remove_temporary_files(folder: OutputFolder, part: Part) -> None:
    """Delete what killed processes of this part left half written."""
    remove(folder.temporary_files(part.ledger_suffix))


def remove_old_locks(folder: OutputFolder, part: Part) -> None:
    """Delete the locks of the ranks that wrote beside this rank 0 and were killed; nobody holds them."""
    remove(path for path in folder.lock_files(f"{part.node}-*") if is_empty(path))


def link_or_copy(source: Path, target: Path) -> None:
    """Give an image a second name: a hard link, or a copy where the file system has no links. A temporary file beside a stub of an
    object stands for one more object of the same content, until it is given a name (`atomic_write`).

    Raises:
        FileExistsError: there is something of that name.
        OSError: it cannot be written, or the image is a link or no regular file.
    """
    if not is_regular(source):
        raise OSError(f"{source} is no regular file")
    if is_stub(source):
        _copy_of_stub(source, target)
        return
    try:
        os.link(source, target)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
        with contextlib.suppress(OSError):  # the time of the image: dglaunch status takes the speed from it
            shutil.copystat(source, target)


def _copy_of_stub(source: Path, target: Path) -> None:
    far = behind(source)
    if far is not None and far is behind(target) and target.name.endswith(".tmp"):
        far.files.link(name_there(source), target)
        return
    with open_regular(source) as data, target.open("xb") as out:
        shutil.copyfileobj(data, out)
    os.utime(target, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
