"""A finished folder as an evaluation or a data loader wants it: `t2i --layout NAME` writes OUT/NAME at the end of a run.

    geneval         00017/metadata.jsonl, 00017/samples/00000.png ... 00003.png
    dpg             PROMPT_FILE.png: the 2x2 grid of a prompt's four images (or its only one)
    t2i_compbench   samples/PROMPT_000170.png
    genarena        000017.png
    webdataset      00000.tar: 000017.png, .txt (the prompt) and .json (the ledger line, with scores)
    parquet         00000.parquet: a column `image` that datasets and the Hugging Face viewer decode

A layout is a view, made from the ledger alone: the folder itself stays what it is, so that resume, verify, the gallery
and replay know one form. Its images are hard links (copies where there are none), so it costs no space. Each of its files
is replaced in one step and the whole can be made again at any time: after a kill the same command completes it.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from dglaunch import strict_json
from dglaunch.atomic import atomic_write
from dglaunch.data.tables import PROMPT_FILE
from dglaunch.data.task import Record, Task, file_name
from dglaunch.data.values import MAX_NAME_BYTES
from dglaunch.errors import OutputError, UserError
from dglaunch.files import digest_of, is_regular
from dglaunch.output import parquet_shards, scores, tar_shards
from dglaunch.output.images import Present, StoredImage, image_of
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.lines import IMAGE_SUFFIXES
from dglaunch.output.ownership import MARK, SHOWN, Mark, link_or_copy, make_folder, remove, set_aside
from dglaunch.output.shard_writer import SHARD_IMAGES
from dglaunch.output.shards import IMAGE_SHARD

WriteFile = Callable[[Path], str]
"""Writes one file of a view to the path that it is given, and returns its hash."""
Files = dict[str, WriteFile]
"""The files of a view, by their names in it."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One finished image of a job."""

    number: int
    """Its position among all images of the job, those that failed counted too."""
    index: int
    sample: int
    samples: int
    """How many images its row was to have."""
    image: StoredImage
    size: int
    """Bytes."""
    record: Record
    """Its ledger line."""

    @property
    def suffix(self) -> str:
        """Of its file, with the dot."""
        return PurePosixPath(self.image.name).suffix

    @property
    def prompt(self) -> str:
        return str(self.record.get("prompt", ""))


SHARD_BYTES = 1_000_000_000
GENEVAL_FIELDS = ("tag", "include", "exclude", "prompt")
VIEW_SUFFIXES = (*IMAGE_SUFFIXES, ".tar", ".parquet")
"""Of the files that dglaunch puts into a view."""


def write(layout: str, folder: Path, tasks: Sequence[Task]) -> tuple[Path, int]:
    """Write or complete the view OUT/NAME of a job's images.

    Returns:
        The view's folder, and how many images are in it.

    Raises:
        UserError: it holds other images than those of this job.
        OutputError: it cannot be written.
    """
    pictures = finished(folder, tasks)
    return write_view(folder, layout, LAYOUTS[layout](pictures)), len(pictures)


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
    output_folder = OutputFolder(folder)
    mark = Mark(output_folder, view)
    if changes:
        _take_out(view, mark, files)
    _refuse_other_files(view, mark, files)
    try:
        with closing(mark), ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            _make_folders(view, files)
            for name, may_replace in zip(files, pool.map(mark.may_replace, files)):
                if not may_replace:
                    set_aside(output_folder, view / name)
            list(pool.map(lambda name: _write_file(folder, view, mark, name, files[name]), files))
    except (OSError, ValueError) as error:  # a picture that was damaged since
        raise OutputError(
            f"The layout {view} cannot be written: {error}. The images are safe in {folder}; start "
            "the same command again to write the layout."
        ) from None
    return view


def _take_out(view: Path, mark: Mark, files: Files) -> None:
    """Remove files that dglaunch has put into a view and that do not belong there any more; what was changed since stays, and
    is refused."""
    if view.is_symlink() or not view.is_dir():
        return
    names = [path.relative_to(view).as_posix() for path in sorted(view.rglob("*"))]
    remove(view / name for name in names if name not in files and mark.has(name) and mark.may_replace(name))


def present(folder: Path) -> list[str]:
    """Return the names of the views that a folder has."""
    return [
        name for name in LAYOUTS if (folder / name).is_dir() and is_regular((folder / name).with_name(f"{MARK}{name}"))
    ]


def check(layout: str, folder: Path, tasks: Sequence[Task], output_format: str) -> None:
    """Check before the run that its view would not stand among another job's files.

    Raises:
        UserError: it would.
    """
    if layout == "indexed" or not ((folder / layout).exists() or (folder / layout).is_symlink()):
        return
    samples = Counter(task.index for task in tasks)
    # How many shards there will be is not known yet, so each image gets its own.
    expected = [
        Picture(number, task.index, task.sample, samples[task.index],
                StoredImage(folder, file_name(task, output_format)), SHARD_BYTES,
                {**(task.extra or {}), "prompt": task.prompt})
        for number, task in enumerate(tasks)
    ]  # fmt: skip
    view = folder / layout
    _refuse_other_files(view, Mark(OutputFolder(folder), view), LAYOUTS[layout](expected))


def finished(folder: Path, tasks: Sequence[Task]) -> list[Picture]:
    """Return the images that are done, in the order of the job."""
    output_folder = OutputFolder(folder)
    records, present = output_folder.records_by_id(), Present(output_folder)
    scored = scores.read_all(output_folder)
    samples = Counter(task.index for task in tasks)
    pictures = []
    for number, task in enumerate(tasks):
        record = records.get(task.id)
        if record is not None and present.is_there(record):
            image, size = image_of(folder, record), record["bytes"]
            assert image is not None and isinstance(size, int), f"dglaunch wrote the ledger line of {image}"
            said = {name: value for name, value in record.items() if name != IMAGE_SHARD}
            shown = scores.with_scores(said, scored)
            pictures.append(Picture(number, task.index, task.sample, samples[task.index], image, size, shown))
    return pictures


def _refuse_other_files(view: Path, mark: Mark, files: Files) -> None:
    """An evaluation takes all that it finds, so no image of an earlier job may be among them, and none of the user's. (What an
    evaluation wrote there itself is nobody's business.)"""
    if view.is_symlink():
        raise UserError(f"{view} is a link, and what is written does not follow links; remove it.")
    if not view.exists():
        return
    paths = [(path, path.relative_to(view).as_posix()) for path in sorted(view.rglob("*"))]
    if not view.is_dir() or (paths and mark.is_empty):
        raise UserError(f"{view} is there, and dglaunch did not make it; rename it and start the same command again.")
    found = [name for path, name in paths if name in files or path.suffix in VIEW_SUFFIXES]
    foreign = [name for name in found if not mark.has(name)]
    if foreign:
        raise UserError(
            f"{view} has files that dglaunch did not make ({', '.join(foreign[:SHOWN])}). Move them away, or rename that "
            "folder, and start the same command again."
        )
    others = [name for name in found if name not in files]
    if others:
        raise UserError(
            f"{view} holds files of another job ({', '.join(others[:SHOWN])}), which would be evaluated with this one's. "
            "Remove that folder and start the same command again; images that are done lie beside it."
        )


def _make_folders(view: Path, files: Files) -> None:
    """The view, and the folders in it that its files need."""
    make_folder(view)
    paths = [PurePosixPath(name) for name in files]
    for path in paths:
        if path.is_absolute() or ".." in path.parts:
            raise OSError(f"{path} is no name in {view}")
    here = view.resolve()
    for parent in {path.parent for path in paths}:
        if (view / parent).resolve() != here / parent:
            raise OSError(f"{view / parent} is a link, and what is written does not follow links")
        (view / parent).mkdir(parents=True, exist_ok=True)


def _write_file(folder: Path, view: Path, mark: Mark, name: str, write_file: WriteFile) -> None:
    """The temporary file is beside the images: on the same file system, and never in an evaluation's sight."""
    with atomic_write(view / name, folder) as temporary:
        mark.add(name, write_file(temporary))


def link(picture: Picture, target: Path) -> str:
    if picture.image.shard:
        target.write_bytes(picture.image.read())
    else:
        link_or_copy(picture.image.path, target)
    return str(picture.record["sha256"])


def write_text(text: str, target: Path) -> str:
    target.write_text(text, encoding="utf-8")
    return digest_of(target)


def _json(record: Record) -> str:
    return strict_json.dumps(record)


def _by_row(pictures: Iterable[Picture]) -> list[list[Picture]]:
    rows: dict[int, list[Picture]] = {}
    for picture in pictures:
        rows.setdefault(picture.index, []).append(picture)
    return list(rows.values())


# -- evaluations --------------------------------------------------------------------------------------------------


def _geneval(pictures: list[Picture]) -> Files:
    files: Files = {}
    for row in _by_row(pictures):
        folder, record = f"{row[0].index:05d}", row[0].record
        files[f"{folder}/metadata.jsonl"] = partial(
            write_text, _json({name: record[name] for name in GENEVAL_FIELDS if name in record})
        )
        for picture in row:
            files[f"{folder}/samples/{picture.sample:05d}.png"] = partial(link, picture)
    return files


def _dpg(pictures: list[Picture]) -> Files:
    """A prompt of which an image is missing is left out: its grid would have a hole that counts as a wrong answer."""
    files: Files = {}
    for row in _by_row(pictures):
        first = row[0]
        if len(row) == first.samples:
            write_file = partial(link, first) if first.samples == 1 else partial(_write_grid, row)
            files[f"{first.record[PROMPT_FILE]}{first.suffix}"] = write_file
    return files


def _write_grid(row: list[Picture], target: Path) -> str:
    """Four images of one size as one, two in a row."""
    from PIL import Image

    from dglaunch.data.images import damage_is_a_bad_image, open_image, to_rgb
    from dglaunch.output.encode import encode

    images = []
    for picture in row:
        with damage_is_a_bad_image():
            images.append(to_rgb(open_image(picture.image.read())))
    width, height = images[0].size
    grid = Image.new("RGB", (2 * width, 2 * height))
    for n, image_in_rgb in enumerate(images):
        grid.paste(image_in_rgb, (n % 2 * width, n // 2 * height))
    description: Record = {"prompt": row[0].prompt, "grid_of": [picture.image.name for picture in row]}
    target.write_bytes(encode(grid, row[0].suffix[1:], description))
    return digest_of(target)


def _t2i_compbench(pictures: list[Picture]) -> Files:
    """Its scripts read the prompt up to the first `_` and the number after the last one."""
    return {
        f"samples/{name_of(picture.prompt)}_{picture.number:06d}{picture.suffix}": partial(link, picture)
        for picture in pictures
    }


def name_of(prompt: str) -> str:
    """Return a prompt as the beginning of a file name: it stays in the folder and within what file systems take."""
    name = " ".join(re.sub(r"[/\\_\x00-\x1f\x7f]", " ", prompt).split())
    return name.encode("utf-8", "replace")[:MAX_NAME_BYTES].decode("utf-8", "ignore").strip()


def _genarena(pictures: list[Picture]) -> Files:
    return {f"{picture.index:06d}{picture.suffix}": partial(link, picture) for picture in pictures}


# -- shards -------------------------------------------------------------------------------------------------------


def _shards(pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
    """The images in parts that are neither too many nor too large."""
    shard: list[Picture] = []
    size = 0
    for picture in pictures:
        if shard and (len(shard) == SHARD_IMAGES or size + picture.size > SHARD_BYTES):
            yield shard
            shard, size = [], 0
        shard.append(picture)
        size += picture.size
    if shard:
        yield shard


def _webdataset(pictures: list[Picture]) -> Files:
    return {f"{n:05d}.tar": partial(_write_tar, shard) for n, shard in enumerate(_shards(pictures))}


def _write_tar(pictures: list[Picture], target: Path) -> str:
    tar_shards.write(target, ((_key(picture), picture.record, picture.image.read()) for picture in pictures))
    return digest_of(target)


def _key(picture: Picture) -> str:
    return f"{picture.index:06d}" + (f"_{picture.sample:02d}" if picture.samples > 1 else "")


def _parquet(pictures: list[Picture]) -> Files:
    return {f"{n:05d}.parquet": partial(_write_parquet, shard) for n, shard in enumerate(_shards(pictures))}


def _write_parquet(pictures: list[Picture], target: Path) -> str:
    parquet_shards.write(target, ((picture.record, picture.image.read()) for picture in pictures))
    return digest_of(target)


LAYOUTS: dict[str, Callable[[list[Picture]], Files]] = {
    "geneval": _geneval,
    "dpg": _dpg,
    "t2i_compbench": _t2i_compbench,
    "genarena": _genarena,
    "webdataset": _webdataset,
    "parquet": _parquet,
}
"""By --layout: the files of the view of a job's finished images."""
