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

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from dglaunch import strict_json
from dglaunch.data.tables import PROMPT_FILE
from dglaunch.data.task import Record, Task, file_name
from dglaunch.data.values import MAX_NAME_BYTES
from dglaunch.files import is_regular
from dglaunch.output import parquet_shards, tar_shards
from dglaunch.output.far import REQUESTS, far_of
from dglaunch.output.finished import Picture, Pictures, finished
from dglaunch.output.images import StoredImage
from dglaunch.output.in_window import in_window
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.ownership import MARK, Mark
from dglaunch.output.shard_writer import SHARD_IMAGES
from dglaunch.output.views import Files, Link, MadeOfImages, Text, ViewFile, refuse_other_files, write_view

SHARD_BYTES = 1_000_000_000
SHARD_VERSION = GRID_VERSION = "1"
"""Another one where the same images would be written in other bytes."""
GENEVAL_FIELDS = ("tag", "include", "exclude", "prompt")


def write(layout: str, folder: Path, tasks: Sequence[Task]) -> tuple[Path, int]:
    """Write or complete the view OUT/NAME of a job's images.

    Returns:
        The view's folder, and how many images are in it.

    Raises:
        UserError: it holds other images than those of this job.
        OutputError: it cannot be written.
    """
    pictures = finished(folder, tasks)
    files = SHARDS[layout](pictures) if layout in SHARDS else EVALUATIONS[layout](pictures)
    return write_view(folder, layout, files), len(pictures)


def present(folder: Path) -> list[str]:
    """Return the names of the views that a folder has."""
    return [
        name
        for name in (*EVALUATIONS, *SHARDS)
        if (folder / name).is_dir() and is_regular((folder / name).with_name(f"{MARK}{name}"))
    ]


def check(layout: str, folder: Path, tasks: Sequence[Task], output_format: str) -> None:
    """Check before the run that its view would not stand among another job's files.

    Raises:
        UserError: it would.
    """
    if layout == "indexed" or not ((folder / layout).exists() or (folder / layout).is_symlink()):
        return
    view = folder / layout
    refuse_other_files(view, Mark(OutputFolder(folder), view), _expected(layout, folder, tasks, output_format))


def _expected(layout: str, folder: Path, tasks: Sequence[Task], output_format: str) -> Container[str]:
    """The names that files of the view may have. How many shards there will be is not known yet, at most one for each image."""
    if layout in SHARDS:
        return _NamesOfShards(layout, len(tasks))
    samples = Counter(task.index for task in tasks)
    return EVALUATIONS[layout]([
        Picture(number, task.index, task.sample, samples[task.index],
                StoredImage(folder, file_name(task, output_format)), {**(task.extra or {}), "prompt": task.prompt})
        for number, task in enumerate(tasks)
    ])  # fmt: skip


def _link(picture: Picture) -> Link:
    return Link(picture.image, str(picture.record.get("sha256")))


def _json(record: Record) -> str:
    return strict_json.dumps(record)


def _by_row(pictures: Iterable[Picture]) -> list[list[Picture]]:
    rows: dict[int, list[Picture]] = {}
    for picture in pictures:
        rows.setdefault(picture.index, []).append(picture)
    return list(rows.values())


# -- evaluations --------------------------------------------------------------------------------------------------


def _geneval(pictures: Iterable[Picture]) -> Files:
    files: dict[str, ViewFile] = {}
    for row in _by_row(pictures):
        folder, record = f"{row[0].index:05d}", row[0].record
        files[f"{folder}/metadata.jsonl"] = Text(
            _json({name: record[name] for name in GENEVAL_FIELDS if name in record})
        )
        for picture in row:
            files[f"{folder}/samples/{picture.sample:05d}.png"] = _link(picture)
    return files


def _dpg(pictures: Iterable[Picture]) -> Files:
    """A prompt of which an image is missing is left out: its grid would have a hole that counts as a wrong answer."""
    files: dict[str, ViewFile] = {}
    for row in _by_row(pictures):
        first = row[0]
        if len(row) == first.samples:
            grid = MadeOfImages(partial(_write_grid, row), partial(_grid_of, row), len(row))
            files[f"{first.record[PROMPT_FILE]}{first.suffix}"] = _link(first) if first.samples == 1 else grid
    return files


def _grid_of(row: list[Picture]) -> str:
    """What a grid is made of."""
    said = [[picture.record["sha256"], picture.image.name] for picture in row]
    return hashlib.sha256(
        _json({"version": GRID_VERSION, "prompt": row[0].prompt, "images": said}).encode()
    ).hexdigest()


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
    return _grid_of(row)


def _t2i_compbench(pictures: Iterable[Picture]) -> Files:
    """Its scripts read the prompt up to the first `_` and the number after the last one."""
    return {
        f"samples/{name_of(picture.prompt)}_{picture.number:06d}{picture.suffix}": _link(picture)
        for picture in pictures
    }


def name_of(prompt: str) -> str:
    """Return a prompt as the beginning of a file name: it stays in the folder and within what file systems take."""
    name = " ".join(re.sub(r"[/\\_\x00-\x1f\x7f]", " ", prompt).split())
    return name.encode("utf-8", "replace")[:MAX_NAME_BYTES].decode("utf-8", "ignore").strip()


def _genarena(pictures: Iterable[Picture]) -> Files:
    return {f"{picture.index:06d}{picture.suffix}": _link(picture) for picture in pictures}


# -- shards -------------------------------------------------------------------------------------------------------


def _in_shards(pictures: Pictures) -> Iterator[Pictures]:
    """The images in parts that are neither too many nor too large."""
    ends, start = np.cumsum(pictures.sizes), 0
    while start < len(pictures):
        before = int(ends[start - 1]) if start else 0
        fit = int(np.searchsorted(ends, before + SHARD_BYTES, "right"))
        end = max(start + 1, min(fit, start + SHARD_IMAGES))
        yield pictures[start:end]
        start = end


class _NamesOfShards(Container[str]):
    """The names of at most so many shards.

    Args:
        layout: what they are.
        count: how many.
    """

    def __init__(self, layout: str, count: int) -> None:
        self._name = re.compile(rf"(\d{{5,12}})\.{SUFFIXES[layout]}", re.ASCII)
        self._count = count

    def __contains__(self, name: object) -> bool:
        found = self._name.fullmatch(name) if isinstance(name, str) else None
        return found is not None and int(found[1]) < self._count


class _Account:
    """What decides the bytes of a shard: how it is written, and of each image its key and its line, which has its hash."""

    def __init__(self, *begins: str) -> None:
        self._hash = hashlib.sha256(repr(begins).encode())

    def add(self, key: str, record: Record) -> None:
        self._hash.update(f"{key}\n{_json(record)}\n".encode())

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


def _tars(pictures: Pictures) -> Files:
    return {
        f"{n:05d}.tar": MadeOfImages(partial(_write_tar, shard), partial(_account_of_tar, shard), len(shard))
        for n, shard in enumerate(_in_shards(pictures))
    }


def _write_tar(pictures: Pictures, target: Path) -> str:
    account = _Account("tar", SHARD_VERSION)

    def images() -> Iterator[tuple[str, Record, bytes]]:
        for picture, data in _with_bytes(pictures):
            account.add(_key(picture), picture.record)
            yield _key(picture), picture.record, data

    tar_shards.write(target, images())
    return account.digest


def _with_bytes(pictures: Pictures) -> Iterator[tuple[Picture, bytes]]:
    """The images with their bytes; of those in an object store some are fetched ahead."""
    if not len(pictures) or far_of(pictures.folder) is None:
        yield from ((picture, picture.image.read()) for picture in pictures)
        return
    with ThreadPoolExecutor(REQUESTS) as pool:
        yield from in_window(pool, lambda picture: (picture, picture.image.read()), pictures, REQUESTS)


def _account_of_tar(pictures: Pictures) -> str:
    account = _Account("tar", SHARD_VERSION)
    for picture in pictures:
        account.add(_key(picture), picture.record)
    return account.digest


def _key(picture: Picture) -> str:
    return f"{picture.index:06d}" + (f"_{picture.sample:02d}" if picture.samples > 1 else "")


def _parquets(pictures: Pictures) -> Files:
    return {
        f"{n:05d}.parquet": MadeOfImages(
            partial(_write_parquet, shard), partial(_account_of_parquet, shard), len(shard)
        )
        for n, shard in enumerate(_in_shards(pictures))
    }


def _write_parquet(pictures: Pictures, target: Path) -> str:
    account = _Account("parquet", SHARD_VERSION, parquet_shards.writer_version())

    def images() -> Iterator[tuple[Record, bytes]]:
        for picture, data in _with_bytes(pictures):
            account.add("", picture.record)
            yield picture.record, data

    parquet_shards.write(target, images())
    return account.digest


def _account_of_parquet(pictures: Pictures) -> str:
    account = _Account("parquet", SHARD_VERSION, parquet_shards.writer_version())
    for picture in pictures:
        account.add("", picture.record)
    return account.digest


EVALUATIONS: dict[str, Callable[[Iterable[Picture]], Files]] = {
    "geneval": _geneval,
    "dpg": _dpg,
    "t2i_compbench": _t2i_compbench,
    "genarena": _genarena,
}
SHARDS: dict[str, Callable[[Pictures], Files]] = {"webdataset": _tars, "parquet": _parquets}
"""By --layout: the files of the view of a job's finished images."""
SUFFIXES = {"webdataset": "tar", "parquet": "parquet"}
"""Of the shards of each."""
